"""Twelve students on two ranks: the result of each does not depend on the others, nor on kills and restarts."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrain.runfolder import file_fingerprint
from tests.distributed.test_pipeline import read, write_data
from tests.processes import dtrain, start, wait_for

pytestmark = pytest.mark.distributed

RECIPE = """\
name: many
seed: 5
output_dir: {folder}/runs
data:
  train: {folder}/train.jsonl
  test: {folder}/test.jsonl
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: cnn
    model: {{type: textcnn, embedding: 16, filters: 8, dropout: 0.1}}
    epochs: 1
    batch_size: 16
students:
  - name: cnn
    model: {{type: textcnn, embedding: 16, filters: 8, dropout: 0.2}}
    epochs: 6
    batch_size: 16
    grid: {{optimizer.lr: [0.001, 0.01], seed: [1, 2]}}
  - name: lstm
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    epochs: 6
    batch_size: 16
    grid: {{losses.0.weight: [0.1, 1.0], seed: [1, 2, 3]}}
    losses: [{{type: soft_targets}}, {{type: cross_entropy}}]
  - name: diverging
    model: {{type: textcnn, embedding: 16, filters: 8, dropout: 0.2}}
    epochs: 6
    batch_size: 16
    clip: null
    optimizer: {{type: adamw, lr: 1.0e+30}}
  - name: raising
    model: {{type: textcnn, embedding: 16, filters: 8, dropout: 0.2}}
    epochs: 6
    batch_size: 16
    seed: 7
placement: {{fuse: {fuse}}}
launch: {{processes: 2}}
report: {{latency: false}}
"""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with data and knowledge store, but without students."""
    folder = tmp_path_factory.mktemp("many")
    write_data(folder)
    for fuse in ("always", "never"):
        (folder / f"{fuse}.yaml").write_text(RECIPE.format(folder=folder, fuse=fuse), encoding="utf-8")
    dtrain("run", folder / "always.yaml", "--stages", "prepare,finetune,precompute", "launch.processes=1")
    return folder


def copy(taught: Path, target: Path) -> Path:
    """A run folder in which the student `raising` cannot write its checkpoints."""
    run = target / "many"
    shutil.copytree(taught / "runs" / "many", run)
    (run / "checkpoints" / "students").mkdir(parents=True)
    (run / "checkpoints" / "students" / "raising").touch()
    return run


def weights(run: Path) -> dict[str, str]:
    return {path.parent.name: file_fingerprint(path) for path in sorted((run / "students").rglob("model.safetensors"))}


@pytest.mark.parametrize("fuse", ["always", pytest.param("never", marks=pytest.mark.slow)])
def test_a_rank_killed_and_the_command_run_again(taught: Path, tmp_path: Path, fuse: str) -> None:
    """One student diverges, one raises, a rank is killed: the other ten end with the same bytes."""
    recipe = taught / f"{fuse}.yaml"
    command = ["-m", "dtrain", "run", recipe, "--stages", "distill"]
    undisturbed = copy(taught, tmp_path / "undisturbed")
    told = distill(recipe, f"output_dir={undisturbed.parent}")
    expected = weights(undisturbed)
    assert len(expected) == 10
    assert "diverging: FAILED" in told and "raising: FAILED" in told
    assert read(undisturbed / "students" / "diverging" / "failed.json")["final"]
    assert not read(undisturbed / "students" / "raising" / "failed.json")["final"]
    assert ("as one stacked model" in told) == (fuse == "always")

    run = copy(taught, tmp_path / "killed")
    where = f"output_dir={run.parent}"
    process = start([*command, where])
    wait_for(lambda: len(list((run / "checkpoints" / "students").glob("*/step-*"))) > 2)
    psutil.Process(process.pid).children()[-1].kill()
    process.communicate(timeout=120)
    assert process.returncode == 1
    ended = {name: path.stat().st_mtime_ns for name, path in finished(run).items()}
    assert len(ended) < 10
    distill(recipe, where)
    assert weights(run) == expected
    assert ended.items() <= {name: path.stat().st_mtime_ns for name, path in finished(run).items()}.items()


def finished(run: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in (run / "students").rglob("model.safetensors")}


def distill(recipe: Path, *changes: str) -> str:
    """Run `distill` and return its stdout. The traceback of an unexpected error is on stderr."""
    process = start(["-m", "dtrain", "run", recipe, *changes, "--stages", "distill"])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def test_the_plan_is_told_and_nothing_is_written(taught: Path) -> None:
    before = sorted((taught / "runs").rglob("*"))
    told = dtrain("distill", taught / "always.yaml", "--plan")
    assert "12 students in" in told
    assert "lstm-weight0.1-seed1" in told and "as one stacked model" in told
    assert "placement.fuse is never" in dtrain("distill", taught / "never.yaml", "--plan")
    assert sorted((taught / "runs").rglob("*")) == before


def test_search_stops_the_worst(taught: Path, tmp_path: Path) -> None:
    """Nine of the eleven that do not diverge are stopped early, including those that all ranks train; each decision is
    made only once.
    """
    run = tmp_path / "many"
    shutil.copytree(taught / "runs" / "many", run)
    changes = [f"output_dir={tmp_path}", "search={epochs: [1, 3], keep: 0.4}", "students.cnn.parallel=data"]
    told = dtrain("run", taught / "never.yaml", *changes, "--stages", "distill")
    search = read(run / "search.json")
    assert [rung["epoch"] for rung in search["rungs"]] == [1, 3]
    assert [len(rung["kept"]) for rung in search["rungs"]] == [5, 2]
    assert set(weights(run)) == set(search["rungs"][1]["kept"])
    assert told.count("stopped by the search") == 9
    assert "all ranks: cnn-lr0.01-seed1: by all ranks (not stacked: parallel: data)" in told
    for rung in search["rungs"]:
        lowest = min(rung["scores"][name] for name in rung["kept"])
        assert all(rung["scores"][name] <= lowest for name in rung["stopped"])
    assert not list((run / "checkpoints").rglob("step-*"))
    for name in search["rungs"][0]["scores"]:  # stopped or not, each is a row of TensorBoard's table
        found = EventAccumulator(str(run / "tensorboard" / "students" / name)).Reload()
        assert "_hparams_/session_end_info" in found.PluginTagToContent("hparams"), name
        assert 0 < found.Scalars("valid_best/accuracy")[-1].value <= 1, name
    again = dtrain("run", taught / "never.yaml", *changes, "--stages", "distill,evaluate,report")
    assert "distill: complete, nothing to do" in again
    assert "## Search" in (run / "report" / "report.md").read_text(encoding="utf-8")
