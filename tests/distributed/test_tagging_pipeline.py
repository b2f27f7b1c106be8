"""Tagging in real processes: from `prepare` to `report` on two ranks, with the same answers on one and three."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from dtrain.runfolder import file_fingerprint
from tests.distributed.test_pipeline import read
from tests.processes import dtrain

pytestmark = pytest.mark.distributed

RECIPE = """\
name: tags
seed: 5
output_dir: {folder}/runs
data:
  task: tagging
  train: {folder}/train.bmes
  test: {folder}/test.bmes
  transfer: {folder}/more.txt
  split: {{valid: 0.2}}
  vocabulary: {{min_count: 1}}
  max_length: 24          # of 22 characters: the long documents are cut
teachers:
  - name: nezha
    model:
      type: tagger
      encoder: {{type: nezha, size: tiny, hidden: 16, heads: 2, dropout: 0}}
      fusion: dynamic
      lstm: 8
      dropout: 0
    epochs: 3
    batch_size: 16
    optimizer: {{lr: 0.01, modules: {{encoder: 0.003, crf: 0.05}}}}
    schedule: {{type: exponential, warmup: 0.05}}
    adversarial: {{type: fgm}}
    accumulation: 2
  - name: crf
    model: {{type: tagger, embedding: 8, lstm: 8, constrain: true}}
    epochs: 3
    batch_size: 16
    optimizer: {{lr: 0.02}}
knowledge: {{shard_rows: 64, batch_tokens: 256}}
students:
  - name: cnn
    model: {{type: idcnn, embedding: 8, filters: 8}}
    epochs: 2
    batch_size: 16
    losses: [{{type: tag_likelihood}}, {{type: marginal_matching}}, {{type: emission_regression, weight: 0.01}}]
  - name: scratch
    model: {{type: tagger, embedding: 8, lstm: 8, crf: false}}
    teachers: []
    epochs: 2
    batch_size: 16
launch: {{processes: 2}}
report: {{latency: false}}
"""
NAMES, PLACES, OTHERS = ["王小明", "李雷", "韩梅"], ["北京市", "上海", "大连"], "的了是在我去来看说，ab1"


def document(draw: random.Random, shortest: int = 2) -> tuple[str, list[str]]:
    text, tags = "", []
    length = draw.randint(shortest, shortest + 12)
    while len(text) < length:
        kind, words = draw.choice([("PER", NAMES), ("LOC", PLACES), ("", [])])
        word = draw.choice(words) if words else draw.choice(OTHERS)
        text += word
        tags += ["O"] if not words else [f"B-{kind}", *[f"M-{kind}"] * (len(word) - 2), f"E-{kind}"]
    return text, tags


def write_data(folder: Path) -> None:
    draw = random.Random(0)
    for name, count in (("train", 200), ("test", 40)):
        lines = []
        for number in range(count):
            text, tags = document(draw, 40 if number % 10 == 0 else 2)
            lines += [f"{c} {t}\n" for c, t in zip(text, tags, strict=True)] + ["\n"]
        (folder / f"{name}.bmes").write_text("".join(lines), encoding="utf-8")
    more = "".join(document(draw)[0] + "\n" for _ in range(60))
    (folder / "more.txt").write_text(more, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagging")
    write_data(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    dtrain("run", folder / "recipe.yaml")
    return folder


def test_it_learns_and_reports(finished: Path) -> None:
    run = finished / "runs" / "tags"
    results = read(run / "report" / "results.json")
    assert results["task"] == "tagging"
    record = read(run / "teachers" / "crf" / "evaluation.json")["parts"]["test"]
    assert record["scores"]["f1"] > 0.6  # six words to learn
    assert set(record["per_type"]) == {"LOC", "PER"}
    assert record["examples"][0]["gold"]
    assert record["scores"]["rows"] > 40  # pieces of 40 documents
    manifest = read(run / "knowledge" / "nezha" / "manifest.json")
    assert set(manifest["outputs"]) == {"emissions", "marginals"}
    assert "PER" in (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "nothing to do" in dtrain("run", finished / "recipe.yaml")


@pytest.mark.parametrize("processes", [1, 3])
def test_scores_and_knowledge_do_not_depend_on_the_world_size(finished: Path, tmp_path: Path, processes: int) -> None:
    def outputs(run: Path) -> dict[str, str]:
        shards = {str(p.relative_to(run)): file_fingerprint(p) for p in sorted((run / "knowledge").rglob("*.arrow"))}
        scores = {str(p.relative_to(run)): p.read_text() for p in sorted(run.rglob("evaluation.json"))}
        assert len(shards) > 2
        assert len(scores) == 4
        return shards | scores

    run = tmp_path / "runs" / "tags"
    shutil.copytree(finished / "runs" / "tags", run)
    expected = outputs(run)
    shutil.rmtree(run / "knowledge")
    for path in run.rglob("evaluation.json"):
        path.unlink()
    stages = ["--stages", "precompute,evaluate"]
    dtrain("run", finished / "recipe.yaml", f"output_dir={tmp_path}/runs", f"launch.processes={processes}", *stages)
    assert outputs(run) == expected


def test_training_does_not_depend_on_the_world_size(finished: Path, tmp_path: Path) -> None:
    """NEZHA, dynamic fusion, LSTM, CRF and FGM under accumulation: the same gradients up to rounding."""
    from safetensors.torch import load_file

    weights = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        changes = [f"output_dir={root}", f"launch.processes={processes}", "teachers.nezha.epochs=1"]
        changes.append("teachers.nezha.optimizer={type: sgd, lr: 0.05}")
        dtrain("run", finished / "recipe.yaml", "--stages", "prepare,finetune", *changes)
        weights.append(load_file(root / "tags" / "teachers" / "nezha" / "model.safetensors"))
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).norm() <= 1e-4 * weight.norm() + 1e-6, name


def test_predictions_are_spans_of_the_users_own_text(finished: Path, tmp_path: Path) -> None:
    text = "ＡＢ" + "王小明去北京市看，" * 6 + "\t。"  # full width, and longer than a piece
    (tmp_path / "new.txt").write_text(f"{text}\n\n李雷\n", encoding="utf-8")
    output = tmp_path / "spans.jsonl"
    arguments = ["--model", "crf", "--input", tmp_path / "new.txt"]
    dtrain("predict", finished / "recipe.yaml", *arguments, "--output", output)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == [text, "", "李雷"]
    assert lines[1]["spans"] == []
    assert len(lines[0]["spans"]) >= 6
    for line in lines:
        for span in line["spans"]:
            assert line["text"][span["start"] : span["end"]] == span["text"]
            assert 0 < span["score"] <= 1
    conll = tmp_path / "tags.bmes"
    dtrain("predict", finished / "recipe.yaml", *arguments, "--form", "conll", "--output", conll)
    tagged = conll.read_text(encoding="utf-8").split("\n\n")
    assert len(tagged[0].splitlines()) == len(text)
    assert {tag.split()[1][:2] for tag in tagged[0].splitlines()} <= {"O", "B-", "M-", "E-", "S-"}


def test_a_stopped_teacher_continues_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    root = tmp_path / "runs"
    shutil.copytree(finished / "runs" / "tags" / "data", root / "tags" / "data")
    (root / "tags" / "STOP").write_text("")
    command = ["run", finished / "recipe.yaml", "--stages", "finetune", f"output_dir={root}"]
    dtrain(*command, code=75)
    (root / "tags" / "STOP").unlink()
    dtrain(*command)
    for name in ("nezha", "crf"):
        stopped = load_file(root / "tags" / "teachers" / name / "model.safetensors")
        undisturbed = load_file(finished / "runs" / "tags" / "teachers" / name / "model.safetensors")
        assert all((stopped[key] == undisturbed[key]).all() for key in undisturbed)
