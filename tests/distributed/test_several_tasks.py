"""Students of several tasks in real processes: every engine trains them alike, and a whole run of them on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dtrain as package
from dtrain.runfolder import read_json
from tests.distributed.several_worker import WAYS
from tests.distributed.test_engines import NO_GPU
from tests.distributed.test_pipeline import read
from tests.processes import dtrain as run
from tests.processes import ended, start_ranks
from tests.several.conftest import TASKS, write_tasks

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).parent / "several_worker.py"
ENCODER = "{type: bert, hidden: 16, heads: 2, layers: 2, intermediate: 32, vocabulary_size: 120, dropout: 0.0}"
ALONE = f"""\
students:
  - &one
    name: one
    tasks: [topic, same, names]
    model: {{type: multi_task, encoder: {ENCODER}, dropout: 0.0}}
    epochs: 2
    batch_size: 13 # of 40 rows one is left, which is no row for one of two ranks
    accumulation: 2
    optimizer: {{lr: 0.002}}
    parallel: data
  - {{<<: *one, name: tuned, epochs: 1, phases: [{{name: all}}, {{name: one, tasks: [names]}}]}}
"""
# A fourth task, a regression on pairs.
NUMBERS = """\
  like:
    task: regression
    train: {folder}/like.tsv
    split: {{valid: 0.2, test: 0.2}}
    header: false
    columns: {{text: 0, text_b: 1, label: 2}}
    max_length: 24
    vocabulary: {{min_count: 1}}
"""
TAUGHT = f"""\
teachers:
  - {{name: topic_t, task: topic, model: {{type: textcnn, embedding: 8, filters: 8}}, epochs: 2}}
  - {{name: names_t, task: names, model: {{type: tagger, embedding: 8, lstm: 8}}, epochs: 4, optimizer: {{lr: 0.02}}}}
students:
  - name: one
    tasks: [topic, same, names, like]
    model: {{type: multi_task, encoder: {ENCODER}}}
    mixing: {{temperature: 2}}
    losses: {{topic: [{{type: teacher_annealing}}]}}
    metrics: {{like: spearman}}
    baseline: {{topic: topic_t, same: 0.5, names: 0.9, like: 1}}
    epochs: 6
    batch_size: 16
    optimizer: {{lr: 0.01}}
    parallel: data
  - {{name: names_s, task: names, model: {{type: tagger, encoder: {ENCODER}}}, epochs: 1}}
  - {{name: topic_s, task: topic, model: {ENCODER}, epochs: 1}}
launch: {{processes: 2}}
report: {{latency: false}}
"""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One launch: starting processes and importing takes longer than training."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("engines")
    write_tasks(folder)
    recipe, results = folder / "recipe.yaml", folder / "results.json"
    text = f"name: r\nseed: 4\noutput_dir: {folder}/runs\n{TASKS.format(folder=folder)}{ALONE}"
    recipe.write_text(text, encoding="utf-8")
    codes, told = ended(start_ranks([WORKER, recipe, results], folder, 2, **NO_GPU), seconds=600)
    assert codes == [0, 0], told[-6000:]
    return json.loads(results.read_text())


@pytest.mark.parametrize("way", WAYS)
def test_every_engine_trains_it_as_one_process_does(engines: dict[str, Any], way: str) -> None:
    found = engines[way]
    assert found["error"] < 1e-5
    assert found["tuned"] < 1e-5  # after a phase on one task, in which the other heads are frozen
    assert found["heads"] == ["names", "same", "topic"]
    own, expected = found["losses"]
    assert len(own) == 4 and own == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    write_tasks(folder)
    pairs = (folder / "same-train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [f"{line[:-1]}{int(line[-1]) * 3 + number % 3}\n" for number, line in enumerate(pairs * 3)]
    (folder / "like.tsv").write_text("".join(rows), encoding="utf-8")
    tasks = (TASKS + NUMBERS).format(folder=folder)
    text = f"name: several\nseed: 4\noutput_dir: {folder}/runs\n{tasks}{TAUGHT}"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    run("run", folder / "recipe.yaml")
    return folder


def test_a_whole_run_on_two_ranks(finished: Path) -> None:
    root = finished / "runs" / "several"
    results = read(root / "report" / "results.json")
    assert list(results["tasks"]) == ["topic", "same", "names", "like"]
    assert {name: of["lead"] for name, of in results["tasks"].items()} == {
        "topic": "accuracy", "same": "accuracy", "names": "f1", "like": "pearson",
    }  # fmt: skip
    rows = {row["name"]: row for row in results["groups"]}
    assert set(rows) == {"topic_t", "names_t", "one", "names_s", "topic_s"}
    assert set(rows["one"]["scores"]) == {"topic", "same", "names", "like"} and "mean" in rows["one"]
    assert set(rows["names_s"]["scores"]) == {"names"} and "mean" not in rows["names_s"]
    assert rows["one"]["teachers"] == ["topic_t", "names_t"]
    assert rows["one"]["scores"]["names"]["mean"] > 0.8  # six words to learn
    page = (root / "report" / "report.md").read_text(encoding="utf-8")
    assert "| **one** | student of topic_t, names_t |" in page and "[names](names/report.md)" in page
    for task in results["tasks"]:
        assert read(root / "report" / task / "results.json")["student"] is not None
        assert (root / "data" / task / "rows" / "data.json").is_file()
    metrics = read(root / "students" / "one" / "metrics.json")
    own = [metrics[key] for key in ("topic.accuracy", "same.accuracy", "names.f1", "like.spearman")]
    measures = [read(root / "teachers" / "topic_t" / "metrics.json")["accuracy"], 0.5, 0.9, 1]
    assert metrics["baseline"] == dict(zip(("topic", "same", "names", "like"), measures, strict=True))
    assert metrics["mean"] == pytest.approx(sum(score / by for score, by in zip(own, measures, strict=True)) / 4)
    assert "nothing to do" in run("run", finished / "recipe.yaml")


def test_its_scores_are_those_of_one_rank(finished: Path, tmp_path: Path) -> None:
    """Every row is scored exactly once, by whichever rank."""
    root = finished / "runs" / "several"
    record = root / "students" / "one" / "evaluation.json"
    before = record.read_text(encoding="utf-8")
    record.unlink()
    run("evaluate", finished / "recipe.yaml")  # one process
    assert record.read_text(encoding="utf-8") == before


def test_it_answers_for_each_task(finished: Path, tmp_path: Path) -> None:
    model = finished / "runs" / "several" / "students" / "one"
    written = tmp_path / "names.jsonl"
    (tmp_path / "new.txt").write_text("王明在北京市\n", encoding="utf-8")
    words = ["--input", tmp_path / "new.txt", "--output", written]
    run("predict", finished / "recipe.yaml", "--model", "one", "--task", "names", *words)
    of_recipe = written.read_text(encoding="utf-8")
    run("predict", model, "--task", "names", *words)
    assert json.loads(written.read_text(encoding="utf-8"))["spans"] == json.loads(of_recipe)["spans"]
    (answer,) = package.Predictor(model, task="names")(["王明在北京市"])
    assert {(span["text"], span["type"]) for span in answer} == {("王明", "PER"), ("北京市", "LOC")}
    (number,) = package.Predictor(model, task="like")(["球赛"], ["股票"])
    assert isinstance(number["number"] if isinstance(number, dict) else number, float)
    told = run("predict", model, "--task", "nams", *words, code=2)
    assert "no task 'nams'; did you mean 'names'? (allowed: topic, same, names, like)" in told


def test_another_model_begins_with_its_encoder(finished: Path, tmp_path: Path) -> None:
    """The last step of MT-DNN: fine-tuning on one task."""
    encoder = finished / "runs" / "several" / "students" / "one" / "encoder"
    section = TASKS.format(folder=finished).split("  topic:\n")[1].split("  same:\n")[0]
    model = f"{{type: bert, pretrained: {encoder}}}"
    student = (
        f"  - {{name: tuned, model: {model}, teachers: [], epochs: 1, batch_size: 16, optimizer: {{lr: 1.0e-4}}}}\n"
    )
    text = f"name: tuned\noutput_dir: {tmp_path}/runs\ndata:\n{section}students:\n{student}launch: {{processes: 1}}\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    run("run", tmp_path / "r.yaml", "--stages", "prepare,distill")
    assert read_json(tmp_path / "runs" / "tuned" / "students" / "tuned" / "config.json")["model_type"] == "bert"
