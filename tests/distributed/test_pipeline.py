"""The whole pipeline in real processes: first `dtrain run` as a user starts it, with `accelerate launch`; then forked,
on 1, 2 and 3 ranks.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from dtrain.runfolder import file_fingerprint
from tests.processes import dtrain, start, wait_for

pytestmark = pytest.mark.distributed

RECIPE = """\
name: tiny
seed: 5
output_dir: {folder}/runs
data:
  train: {folder}/train.jsonl
  test: {folder}/test.jsonl
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: cnn
    model: {{type: textcnn, embedding: 12, filters: 8, dropout: 0.1}}
    epochs: 3
    batch_size: 16
    optimizer: {{lr: 0.01}}
  - name: bert
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, vocabulary_size: 200}}
    epochs: 2
    batch_size: 16
knowledge: {{shard_rows: 64, batch_tokens: 256}}
students:
  - name: lstm
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    epochs: 2
    batch_size: 16
    losses: [{{type: soft_targets, temperature: 2.0}}, {{type: cross_entropy}}]
    grid: {{seed: [1, 2]}}
  - name: scratch
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    epochs: 2
    batch_size: 16
    teachers: []
  - name: small
    model: {{type: bert, size: tiny, hidden: 16, heads: 2, layers: 1, vocabulary_size: 200}}
    epochs: 1
    batch_size: 16
launch: {{processes: {processes}}}
report: {{latency: false}}
"""
TOPICS = {"sport": "球队比赛进球冠军", "food": "好吃餐厅美味火锅", "money": "股票基金银行利率"}


def write_data(folder: Path) -> None:
    draw = random.Random(0)

    def row(topic: str) -> str:
        return "".join(draw.choice(TOPICS[topic] + "的了是在我") for _ in range(draw.randint(3, 14)))

    for name, count in (("train", 240), ("test", 61)):
        rows = [{"text": row(topic), "label": topic} for topic in draw.choices(list(TOPICS), k=count)]
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    more = "".join(row(topic) + "\n" for topic in draw.choices(list(TOPICS), k=100))
    (folder / "more.txt").write_text(more, encoding="utf-8")


def write_recipe(folder: Path, processes: int) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, processes=processes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of the whole recipe on two ranks."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_data(folder)
    dtrain("run", write_recipe(folder, 2), for_real=True)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(run: Path) -> dict[str, str]:
    """The bytes of all files with results."""
    shards = {str(p.relative_to(run)): file_fingerprint(p) for p in sorted((run / "knowledge").rglob("*.arrow"))}
    scores = {str(p.relative_to(run)): p.read_text() for p in sorted(run.rglob("evaluation.json"))}
    assert shards
    assert scores
    return shards | scores


@pytest.mark.parametrize("processes", [1, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_scores_and_knowledge_do_not_depend_on_the_world_size(finished: Path, tmp_path: Path, processes: int) -> None:
    """The same models, evaluated and precomputed by another number of ranks: the same bytes."""
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", run)
    expected = outputs(run)
    shutil.rmtree(run / "knowledge")
    for path in run.rglob("evaluation.json"):
        path.unlink()
    recipe = finished / "recipe.yaml"
    dtrain(
        "run", recipe, f"output_dir={tmp_path}/runs", f"launch.processes={processes}", "--stages", "precompute,evaluate"
    )
    assert outputs(run) == expected


def test_check_store_reads_every_byte_and_names_both_fingerprints(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", run)
    command = ["check", finished / "recipe.yaml", "--store", f"output_dir={tmp_path}/runs"]
    stores = [run / "knowledge" / name for name in ("cnn", "bert")]
    told = dtrain(*command)
    assert all(f"{store}: whole" in told for store in stores)
    told = dtrain(*command, "knowledge.dtype=float32", code=1)
    assert "whole, but not what this recipe asks for" in told
    shard = stores[0] / "shard-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{shard}: damaged: " in dtrain(*command, code=1)
    shard.write_bytes(content)
    ours, theirs = (read(store / "manifest.json")["fingerprints"]["teacher"] for store in stores)
    stores[0].rename(tmp_path / "aside")
    stores[1].rename(stores[0])
    told = dtrain(*command, code=1)
    assert f"another teacher: its fingerprint is {theirs}, expected {ours}" in told


def test_a_rank_killed_while_precomputing_leaves_whole_shards(finished: Path, tmp_path: Path) -> None:
    def command(root: Path) -> list[str | Path]:
        words: list[str | Path] = ["run", finished / "recipe.yaml", f"output_dir={root}"]
        return [*words, "knowledge.shard_rows=2", "--stages", "precompute"]

    roots = [tmp_path / name for name in ("killed", "whole")]
    for root in roots:
        ignored = shutil.ignore_patterns("knowledge")
        shutil.copytree(finished / "runs" / "tiny", root / "tiny", ignore=ignored)
    stores = [root / "tiny" / "knowledge" for root in roots]
    process = start(["-m", "dtrain", *command(roots[0])])
    wait_for(lambda: list(stores[0].rglob("shard-*")))
    psutil.Process(process.pid).children()[-1].kill()
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 1, told
    assert "SIGKILL" in told
    for path in stores[0].rglob("shard-*"):
        with pa.memory_map(str(path)) as source:
            pa.ipc.open_file(source).read_all()
    for root in roots:
        dtrain(*command(root))
    found = [{str(p.relative_to(s)): file_fingerprint(p) for p in s.rglob("*.arrow")} for s in stores]
    assert found[0] == found[1]
    assert len(found[0]) > 200


def test_training_does_not_depend_on_the_world_size(finished: Path, tmp_path: Path) -> None:
    """Without dropout, 1, 2 and 3 ranks compute the same gradients up to rounding: sums over global counts."""
    from safetensors.torch import load_file

    changes = ["teachers.0.model.dropout=0", "teachers.0.optimizer={type: sgd, lr: 0.1}", "teachers.0.accumulation=2"]
    changes.append(
        "teachers.bert.model={type: bert, size: tiny, hidden: 16, heads: 2, dropout: 0, vocabulary_size: 200}"
    )
    weights = []
    for processes in (1, 2, 3):
        where = [f"output_dir={tmp_path}/{processes}", f"launch.processes={processes}"]
        dtrain("run", finished / "recipe.yaml", *changes, *where, "--stages", "prepare,finetune")
        files = [tmp_path / str(processes) / "tiny" / "teachers" / n / "model.safetensors" for n in ("cnn", "bert")]
        weights.append([load_file(file) for file in files])
    for others in weights[1:]:
        for one, other in zip(weights[0], others, strict=True):
            for name in one:
                difference = (one[name] - other[name]).norm() / (one[name].norm() + 1e-6)
                # Adam turns the rounding errors of a gradient that should be zero (that of the keys' bias) into steps.
                assert difference < 1e-4 or "key.bias" in name, (name, difference)


def test_every_row_is_evaluated_once(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    for path in run.rglob("evaluation.json"):
        parts = read(path)["parts"]
        assert parts["valid"]["scores"]["rows"] == 48
        assert parts["test"]["scores"]["rows"] == 61


def test_a_second_run_does_nothing_and_is_quick(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()}
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "nothing to do" in dtrain("run", finished / "recipe.yaml", for_real=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of CPU time, since other processes may be running, too.
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 10
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()}


def models(run: Path) -> dict[str, int]:
    return {f"{p.parent.parent.name}/{p.parent.name}": p.stat().st_mtime_ns for p in run.rglob("model.safetensors")}


def test_a_changed_student_is_done_again_alone(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", run)
    before = models(run)
    dtrain("run", finished / "recipe.yaml", f"output_dir={tmp_path}/runs", "students.scratch.epochs=1")
    assert {name for name, time in models(run).items() if before[name] != time} == {"students/scratch"}
    assert len(read(run / "report" / "results.json")["models"]) == 6


def test_changed_data_does_everything_again(finished: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    recipe = write_recipe(tmp_path, 1)
    shutil.copytree(finished / "runs", tmp_path / "runs")
    before = models(tmp_path / "runs" / "tiny")
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "新的比赛", "label": "sport"}, ensure_ascii=False) + "\n")
    dtrain("run", recipe)
    after = models(tmp_path / "runs" / "tiny")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_everything_written_is_loaded_back(finished: Path) -> None:
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import dtrain as package

    run = finished / "runs" / "tiny"
    names = [
        "teachers/cnn",
        "teachers/bert",
        "students/lstm-seed1",
        "students/lstm-seed2",
        "students/scratch",
        "students/small",
    ]
    for name in names:
        folder = run / name
        model = package.load(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer(["球队比赛进球", "好吃的火锅火锅"], return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert logits.shape == (2, 3)
        assert not model.training
        metrics = read(folder / "metrics.json")
        assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
        assert metrics["bytes"] == (folder / "model.safetensors").stat().st_size
        events = EventAccumulator(str(run / "tensorboard" / name)).Reload()
        tags = set(events.Tags()["scalars"])
        assert {"train/loss", "train/lr", "train/gradient_norm", "speed/rows_per_second", "speed/memory_gib"} <= tags
        assert ("train/communication_share" in tags) == name.startswith("teachers/")
        if name.startswith("teachers/"):
            assert all(0.0 < scalar.value <= 1.0 for scalar in events.Scalars("train/communication_share"))
        assert events.Scalars("valid/accuracy")[-1].step == metrics["steps"]
        best = max(s.value for s in events.Scalars("valid/accuracy"))
        assert best == pytest.approx(metrics["accuracy"])
    from dtrain.predict.predictor import Predictor

    assert [row["label"] for row in Predictor(run / "teachers" / "cnn")(["球队比赛进球", "好吃的火锅火锅"])] == [
        "sport",
        "food",
    ]
    loaded = AutoModelForSequenceClassification.from_pretrained(run / "teachers" / "bert")
    assert loaded.config.id2label == {0: "food", 1: "money", 2: "sport"}
    assert not (run / "checkpoints").exists()
    assert not list(run.rglob(".tmp-*"))
    assert not [p for p in run.rglob("*") if p.suffix in (".pkl", ".pt", ".bin")]


def test_report_has_every_model(finished: Path) -> None:
    results = read(finished / "runs" / "tiny" / "report" / "results.json")
    assert {m["name"] for m in results["models"]} == {"cnn", "bert", "lstm-seed1", "lstm-seed2", "scratch", "small"}
    for name in ("report.md", "report.html"):
        text = (finished / "runs" / "tiny" / "report" / name).read_text(encoding="utf-8")
        assert "lstm" in text


def test_predict_from_stdin(finished: Path) -> None:
    command = ["predict", finished / "recipe.yaml", "--model", "cnn", "--input", "-"]
    told = dtrain(*command, stdin="球队比赛进球\n好吃的火锅火锅\n")
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert [row["label"] for row in rows] == ["sport", "food"]


LONGER = ["teachers.0.epochs=40", "students.scratch.epochs=40"]


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `LONGER` that was not stopped."""
    root = tmp_path_factory.mktemp("undisturbed")
    dtrain("run", finished / "recipe.yaml", *LONGER, f"output_dir={root}")
    return root / "tiny"


@pytest.mark.parametrize("kind", ["teachers", "students"])
def test_stopped_by_signal_and_continued_equals_undisturbed(
    finished: Path, undisturbed: Path, tmp_path: Path, kind: str
) -> None:
    """After SIGTERM to the launcher the exit code is 75 and a checkpoint is complete; the next run ends with the same
    weights, bit for bit.
    """
    command = ["run", finished / "recipe.yaml", f"output_dir={tmp_path}/runs", *LONGER]
    process = start(["-m", "dtrain", *command])
    run = tmp_path / "runs" / "tiny"
    name = "cnn" if kind == "teachers" else "scratch"
    wait_for(lambda: list((run / "checkpoints" / kind / name).glob("step-*")))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    assert "stopped on request (SIGTERM)" in err
    assert "Traceback" not in err
    assert (run / "checkpoints").exists()
    dtrain(*command)
    for path in sorted(run.rglob("model.safetensors")):
        assert file_fingerprint(path) == file_fingerprint(undisturbed / path.relative_to(run)), path


@pytest.mark.slow
def test_stopped_on_four_ranks_and_continued_equals_undisturbed(finished: Path, tmp_path: Path) -> None:
    """In floating point the sum of four numbers depends on the order: gradients must be added in the same order after a
    restart.
    """
    weights = []
    for name in ("stopped", "undisturbed"):
        root = tmp_path / name
        shutil.copytree(finished / "runs" / "tiny" / "data", root / "tiny" / "data")
        command = ["run", finished / "recipe.yaml", f"output_dir={root}", "launch.processes=4", "teachers.0.epochs=30"]
        command += ["--stages", "finetune"]
        if name == "stopped":
            process = start(["-m", "dtrain", *command])
            wait_for(lambda root=root: list((root / "tiny" / "checkpoints").rglob("step-*")))
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 75
            assert list((root / "tiny" / "checkpoints" / "teachers" / "cnn").glob("step-*"))
        dtrain(*command)
        weights.append([file_fingerprint(path) for path in sorted(root.rglob("model.safetensors"))])
    assert len(weights[0]) == 2
    assert weights[0] == weights[1]


def test_a_killed_rank_ends_the_run_and_the_next_one_continues(finished: Path, tmp_path: Path) -> None:
    recipe = finished / "recipe.yaml"
    changes = [f"output_dir={tmp_path}/runs", "teachers.0.epochs=60"]
    process = start(["-m", "dtrain", "run", recipe, *changes, "--stages", "prepare,finetune"])
    run = tmp_path / "runs" / "tiny"
    wait_for(lambda: list((run / "checkpoints" / "teachers" / "cnn").glob("step-*")))
    psutil.Process(process.pid).children()[-1].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "killed by SIGKILL" in err
    dtrain("run", recipe, *changes, "--stages", "prepare,finetune")
    assert (run / "teachers" / "cnn" / "model.safetensors").exists()


def test_one_diverging_student_is_its_own_failure(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", run)
    before = models(run)
    changes = [
        f"output_dir={tmp_path}/runs",
        "students.scratch.optimizer={type: sgd, lr: 1e30}",
        "students.scratch.clip=",
    ]
    told = dtrain("run", finished / "recipe.yaml", *changes)
    assert "student scratch: FAILED" in told
    results = read(run / "report" / "results.json")
    (failed,) = results["failed"]
    assert failed["name"] == "scratch"
    assert "nan" in failed["reason"] or "inf" in failed["reason"]
    assert len(results["models"]) == 5
    after = models(run)
    assert after == {name: time for name, time in before.items() if name != "students/scratch"}
    assert "nothing to do" in dtrain("run", finished / "recipe.yaml", *changes)


def test_two_runs_do_not_share_a_folder(finished: Path, tmp_path: Path) -> None:
    recipe = finished / "recipe.yaml"
    changes = [f"output_dir={tmp_path}/runs", "teachers.0.epochs=200", "launch.processes=1"]
    process = start(["-m", "dtrain", "run", recipe, *changes, "--stages", "prepare,finetune", "--here"])
    try:
        wait_for(lambda: list((tmp_path / "runs" / "tiny" / "checkpoints").rglob("step-*")))
        told = dtrain("prepare", recipe, *changes, code=1)
        assert "another run is at work here" in told
    finally:
        process.kill()
        process.communicate()
    dtrain("prepare", recipe, *changes)


def test_a_stop_file_ends_any_stage(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", run)
    shutil.rmtree(run / "knowledge")
    (run / "STOP").touch()
    told = dtrain("precompute", finished / "recipe.yaml", f"output_dir={tmp_path}/runs", code=75)
    assert "stopped on request" in told
    (run / "STOP").unlink()
    dtrain("precompute", finished / "recipe.yaml", f"output_dir={tmp_path}/runs")
    shards = sorted((run / "knowledge").rglob("*.arrow"))
    assert [file_fingerprint(p) for p in shards] == [
        file_fingerprint(finished / "runs" / "tiny" / p.relative_to(run)) for p in shards
    ]
