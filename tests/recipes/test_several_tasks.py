"""Shipped recipes of several tasks: run whole on a few rows of their files' formats, and checked against the real files."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from dtrain.recipe import load_recipe, shipped_recipes
from dtrain.runfolder import read_json
from dtrain.stages.check import check_inputs
from tests.processes import dtrain

SHAPE = "hidden: 24, heads: 2, layers: 1, intermediate: 24, vocabulary_size: 200"
SMALLER = (
    (r"pretrained: [\w./-]+\}", SHAPE + "}"),
    (r"epochs: \d+", "epochs: 1"),
    (r"seed: \[1, 2, 3\]", "seed: [1]"),
    (r"split: \{valid: [\d.]+\}", "split: {valid: 0.2}"),
    (r"processes: auto", "processes: 1"),
)
WORDS = [
    "the",
    "plan",
    "of",
    "a",
    "new",
    "film",
    "is",
    "good",
    "bad",
    "news",
    "for",
    "some",
    "people",
    "who",
    "like",
    "it",
]
RECIPES = {
    "glue_multitask": ["sst2", "mrpc", "rte", "stsb"],
    "clue_multitask": ["tnews", "afqmc", "cluener"],
}


def english(folder: Path) -> None:
    """GLUE's own files: a byte order mark and quotes that are never closed in MRPC, columns that nobody reads."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))

    def table(name: str, header: list[str], rows: list[list[str]], mark: str = "") -> None:
        lines = ["\t".join(cells) for cells in [header, *rows]]
        (folder / name).write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")

    for task in RECIPES["glue_multitask"]:
        (folder / "data" / task).mkdir(parents=True)
    for part, count in (("train", 40), ("dev", 12)):
        numbers = [str(n) for n in range(count)]
        table(f"data/sst2/{part}.tsv", ["sentence", "label"], [[text() + " ", str(int(n) % 2)] for n in numbers])
        pairs = [[str(int(n) % 3 // 2), n, n, f'" {text()}', f"{text()} ''"] for n in numbers]
        names = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        table(f"data/mrpc/{part}.tsv", names, pairs, mark="\ufeff")
        entailed = [[n, text(), text(), ("entailment", "not_entailment")[int(n) % 2]] for n in numbers]
        table(f"data/rte/{part}.tsv", ["index", "sentence1", "sentence2", "label"], entailed)
        alike = [[n, "genre", text(), text(), f"{int(n) % 11 / 2:.3f}"] for n in numbers]
        table(f"data/stsb/{part}.tsv", ["index", "genre", "sentence1", "sentence2", "score"], alike)


def chinese(folder: Path) -> None:
    draw = random.Random(0)

    def text() -> str:
        return "".join(draw.choices("借呗花呗还款分期怎么开通的了", k=draw.randint(4, 12)))

    for task in RECIPES["clue_multitask"]:
        (folder / "data" / task).mkdir(parents=True)
    labels = load_recipe("clue_multitask").tasks["tnews"].labels
    for part, count in (("train", 60), ("dev", 20)):
        rows: list[object] = [
            {"label": labels[n % 15], "label_desc": "news", "sentence": text(), "keywords": ""} for n in range(count)
        ]
        (folder / f"data/tnews/{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = "".join(f"{text()}\t{text()}\t{n % 3 // 2}\n" for n in range(count))
        (folder / f"data/afqmc/{part}.txt").write_text(pairs, encoding="utf-8")
        rows = [{"text": f"叶老桂{text()}", "label": {"name": {"叶老桂": [[0, 2]]}}} for _ in range(count)]
        (folder / f"data/cluener/{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "tasks"), RECIPES.items())
def test_it_runs_whole(name: str, tasks: list[str], tmp_path: Path) -> None:
    (english if "glue_" in name else chinese)(tmp_path)
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    for pattern, replaced in SMALLER:
        text, count = re.subn(pattern, replaced, text)
        assert count, pattern
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    dtrain("run", f"{name}.yaml", "report.latency=false", folder=tmp_path)
    run = tmp_path / "runs" / name
    results = read_json(run / "report" / "results.json")
    assert list(results["tasks"]) == tasks and {of["headline"] for of in results["tasks"].values()} == {"test"}
    rows = {row["name"]: row for row in results["groups"]}
    assert set(rows) == {*(f"single_{task}-seed1" for task in tasks), "multi-seed1", "distilled-seed1"}
    assert set(rows["distilled-seed1"]["scores"]) == set(rows["multi-seed1"]["scores"]) == set(tasks)
    assert rows["distilled-seed1"]["teachers"] == [f"single_{task}-seed1" for task in tasks]
    if "glue_" in name:  # quotes are text, and the mark no part of a column's name
        info = read_json(run / "data" / "mrpc" / "rows" / "data.json")
        assert (info["rows"]["train"] + info["rows"]["valid"], info["rows"]["test"]) == (40, 12)


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_the_real_files(name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data_folder)
    corpora = check_inputs(load_recipe(name))
    assert list(corpora) == RECIPES[name]
    if "glue_" in name:
        assert {task: corpus.counts["test"] for task, corpus in corpora.items()} == {
            "sst2": 872, "mrpc": 408, "rte": 277, "stsb": 1500,
        }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_compared_differs_in_teachers_alone(name: str) -> None:
    students = {student.name: student for student in load_recipe(name).students}
    for seed in (1, 2, 3):
        plain, taught = students[f"multi-seed{seed}"], students[f"distilled-seed{seed}"]
        assert not plain.teachers and len(taught.teachers) == len(plain.tasks)
        differing = {"name", "teachers", "losses"}
        assert plain.model_dump(exclude=differing) == taught.model_dump(exclude=differing)
