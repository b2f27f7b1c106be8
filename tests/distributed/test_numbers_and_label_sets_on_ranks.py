"""Tasks `regression` and `multi_label` through every stage: two ranks store and score the same as one; model folders
can be used alone.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dtrain import Predictor
from dtrain.__main__ import main
from dtrain.data import EncodedSplit, PreparedData
from dtrain.errors import InputError
from dtrain.runfolder import RunFolder, read_json
from dtrain.tasks.registry import task_of
from tests.distributed.test_sharded_teachers import distance
from tests.processes import ended, start, start_ranks

pytestmark = pytest.mark.distributed
BERT = "{type: bert, hidden: 8, heads: 2, layers: 1, intermediate: 16, vocabulary_size: 100, dropout: 0}"
BAG = "{type: fasttext, embedding: 6, buckets: 32, dropout: 0}"
TRAINED = "epochs: 2, batch_size: 16, optimizer: {lr: 0.02}"
COMMON = f"""
teachers:
  - {{name: big, model: {BERT}, {TRAINED}}}
  - {{name: bag, model: {BAG}, {TRAINED}}}
launch: {{timeout: 60}}
report: {{latency: false}}
knowledge: {{dtype: float32}}
"""
# Pairs with a number, some of them without one; and texts with any number of labels, some of them with none.
RECIPES = {
    "numbers": f"""name: numbers
data: {{task: regression, standardize: true, train: n.tsv, transfer: more.tsv, split: {{valid: 0.2, test: 0.2}},
  columns: {{text: one, text_b: two, label: score}}, vocabulary: {{min_count: 1, unit: word}}}}
students:
  - {{name: twin, model: {{type: siamese, embedding: 6, hidden: 4}}, parallel: data, {TRAINED}}}
  - {{name: annealed, model: {{type: text_rcnn, embedding: 6, hidden: 4, features: 6, dropout: 0}}, {TRAINED},
     losses: [{{type: number_annealing, weighting: {{type: fixed, weights: {{big: 3, bag: 1}}}}}}, {{type: logit_regression}}]}}
""",
    "sets": f"""name: sets
data: {{task: multi_label, train: s.jsonl, transfer: more.txt, split: {{valid: 0.2, test: 0.2}}, threshold: 0.4,
  vocabulary: {{min_count: 1, unit: word}}}}
students:
  - {{name: conv, model: {{type: textcnn, embedding: 6, filters: 4, widths: [1, 2], dropout: 0}}, parallel: data, {TRAINED}}}
  - {{name: annealed, model: {{type: bilstm, embedding: 6, hidden: 4}}, {TRAINED},
     losses: [{{type: label_set_annealing}}, {{type: soft_label_sets, weighting: average}}]}}
""",
}
RUN = ["-m", "dtrain", "run"]
GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "awful"]


def write(folder: Path) -> None:
    draw = random.Random(0)

    def words(pool: list[str]) -> str:
        return " ".join(draw.choices(pool, k=draw.randint(1, 6)))

    pairs = [(words(GOOD + BAD), words(GOOD + BAD)) for _ in range(160)]
    scores = [sum(word in GOOD for word in f"{one} {two}".split()) / 2 - 1 for one, two in pairs]
    lines = [
        f"{one}\t{two}\t{score if n % 9 else ''}\n"
        for n, ((one, two), score) in enumerate(zip(pairs, scores, strict=True))
    ]
    (folder / "n.tsv").write_text("one\ttwo\tscore\n" + "".join(lines[:120]))
    (folder / "more.tsv").write_text("one\ttwo\n" + "".join(f"{one}\t{two}\n" for one, two in pairs[120:]))
    texts = [words(["sun", "rain", "dog", "cat", "tree"]) for _ in range(160)]
    rows = [{"text": text, "label": sorted({*text.split()} & {"sun", "rain", "dog"})} for text in texts[:120]]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "more.txt").write_text("".join(text + "\n" for text in texts[120:]))
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe + COMMON)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one rank and of two, each with a run of both recipes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    one, two = folders
    for folder in folders:
        write(folder)
    processes = [start([*RUN, f"{name}.yaml", "launch.processes=1"], one) for name in RECIPES]
    for name in RECIPES:
        processes += start_ranks([*RUN, f"{name}.yaml"], two)
    codes, told = ended(processes)
    assert set(codes) == {0}, told
    return one, two


@pytest.mark.parametrize("name", RECIPES)
def test_two_ranks_make_what_one_makes(runs: tuple[Path, Path], name: str) -> None:
    one, two = (folder / "runs" / name for folder in runs)
    models = [f"teachers/{model}" for model in ("big", "bag")]
    models += [f"students/{path.name}" for path in sorted((one / "students").iterdir())]
    for model in models:
        assert distance(one / model, two / model) < 1e-4, model
        assert (
            (read_json(one / model / "metrics.json"))["steps"] == read_json(two / model / "metrics.json")["steps"] > 4
        )
        first, second = (read_json(run / model / "evaluation.json")["parts"]["test"]["scores"] for run in (one, two))
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-3) and first["rows"] == second["rows"]
    details = read_json(one / "report/results.json")["details"]
    assert {"scatter", "per_class"} & set(details)
    drawn = (one / "report/scatter.png").exists()
    assert drawn == (name == "numbers")
    assert ("predicted numbers against" in (one / "report/report.md").read_text()) == drawn


def test_stores_and_scores_are_the_same_bytes_on_one_rank_and_two(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """One rank computes the stores and the scores of the models of two ranks again."""

    def outputs(folder: Path) -> dict[str, bytes]:
        files = [*folder.rglob("knowledge/*/shard-*"), *folder.rglob("evaluation.json")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    shutil.copytree(runs[1], tmp_path, dirs_exist_ok=True)
    expected = outputs(tmp_path)
    # For each recipe two teachers with two shards, and the scores of four models.
    assert len(expected) == 2 * (2 * 2 + 4)
    for place in [*tmp_path.glob("runs/*/knowledge"), *tmp_path.rglob("evaluation.json")]:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    again = ["launch.processes=1", "--stages", "precompute,evaluate"]
    codes, told = ended([start([*RUN, f"{name}.yaml", *again], tmp_path) for name in RECIPES])
    assert codes == [0, 0], told
    assert outputs(tmp_path) == expected


def test_folders_answer_by_themselves(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs[0])
    for name, row in (("numbers", ["good good", "bad fine"]), ("sets", ["a sun and a dog"])):
        for model in (f"runs/{name}/teachers/big", f"runs/{name}/students/annealed"):
            predictor = Predictor(model)
            (answer,) = predictor(*([text] for text in row))
            names = ["--columns", "text=one,text_b=two"] if name == "numbers" else []
            Path("new.tsv" if names else "new.txt").write_text(
                "one\ttwo\n" + "\t".join(row) + "\n" if names else row[0] + "\n"
            )
            words = [
                "predict",
                f"{name}.yaml",
                "--model",
                Path(model).name,
                "--input",
                "new.tsv" if names else "new.txt",
            ]
            capsys.readouterr()
            assert main([*words, *names]) == 0
            told = json.loads(capsys.readouterr().out)
            assert {key: told[key] for key in answer} == answer
            assert main([*words, *names, "--form", "tsv"]) == 0
            header, line = capsys.readouterr().out.splitlines()
            cell = line.split("\t")[1]
            assert header.split("\t")[1] == ("number" if name == "numbers" else "labels")
            assert json.loads(cell) == (answer["number"] if name == "numbers" else answer["labels"])
        with pytest.raises(InputError, match="give two texts a row" if name == "numbers" else "give one text a row"):
            predictor(*([text] for text in (["x"] if name == "numbers" else ["x", "y"])))


def test_transformers_reads_the_folders_and_what_they_say(runs: tuple[Path, Path]) -> None:
    """`problem_type` is a key of transformers; config.json also says what each logit stands for."""
    numbers, sets = (runs[0] / "runs" / name / "teachers/big" for name in RECIPES)
    for folder, problem in ((numbers, "regression"), (sets, "multi_label_classification")):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert model.config.problem_type == problem and model.config.num_labels == (1 if folder == numbers else 3)
        tokens = AutoTokenizer.from_pretrained(folder)(*["good bad"] * (1 + (folder == numbers)), return_tensors="pt")
        with torch.no_grad():
            (logits,) = model(**tokens).logits.double().tolist()
        answer = Predictor(folder)(*[["good bad"]] * (1 + (folder == numbers)))[0]
        if folder == numbers:
            unit = model.config.standardized
            assert answer["number"] == pytest.approx(logits[0] * unit["deviation"] + unit["mean"], rel=1e-5, abs=1e-5)
            stored = read_json(folder.parents[1] / "data/rows/data.json")["numbers"]
            assert unit == {"mean": stored["mean"], "deviation": stored["deviation"]}
        else:
            shares = [1 / (1 + math.exp(-logit)) for logit in logits]
            assert list(answer["scores"].values()) == pytest.approx(shares, abs=1e-5)
            assert model.config.threshold == 0.4
            assert answer["labels"] == [label for label, share in answer["scores"].items() if share > 0.4]
    assert "- answer: a number, the model's one logit x " in (numbers / "README.md").read_text()
    assert (
        "- labels: dog, rain, sun; any number of them a row, of a probability above 0.4"
        in (sets / "README.md").read_text()
    )


def test_teachers_that_are_given(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model folder of another run can be a teacher, unless its numbers have another unit."""
    monkeypatch.chdir(runs[0])
    for name, changes, code in (("sets", [], 0), ("numbers", [], 2), ("numbers", ["data.standardize=false"], 2)):
        given = f"teachers=[{{name: big, from: runs/{name}/students/annealed}}]"
        students = "students=[{name: bag, model: {type: fasttext}}]"
        assert main(["check", f"{name}.yaml", "name=other", given, students, *changes]) == code
        told = capsys.readouterr().err
        assert (code == 0) == ("data.standardize" not in told), told


def test_numbers_are_standardised_by_the_training_rows_alone(runs: tuple[Path, Path]) -> None:
    folder = RunFolder(runs[0] / "runs/numbers")
    data = PreparedData.open(folder)
    train = data.part("train", "students")
    values, owner = train.collate_values(np.arange(len(train)))
    assert data.info["numbers"]["mean"] == math.fsum(values) / len(values)
    assert data.info["numbers"]["deviation"] == pytest.approx(np.std(values), rel=1e-12)
    assert owner.tolist() == np.flatnonzero(train.labels >= 0).tolist() and len(owner) < len(train)
    batch = task_of(data).collate(train, np.arange(len(train)), {"numbers"})
    learnt = batch.targets["numbers"][batch.labelled]
    assert learnt.mean().item() == pytest.approx(0, abs=1e-6)
    assert learnt.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    both = EncodedSplit.concat([train, data.part("transfer", "students")])
    first = int(owner[0])
    values, of = both.collate_values(np.array([len(train), first]))
    assert (of.tolist(), values.tolist()) == ([1], [train.collate_values(np.array([first]))[0][0]])
