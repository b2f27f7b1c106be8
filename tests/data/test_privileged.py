"""Annotations that only teachers may read: from JSON lines and CoNLL files to numbers beside the tags, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtrain.data import PreparedData
from dtrain.data.corpus import Corpus
from dtrain.data.schemes import Span
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe.data import Data
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.tasks.corpus import check_sources

COLUMNS = {"text": "text", "label": "triggers", "privileged": "arguments", "span_end": "exclusive"}
ROW = {"text": "王明去北京。", "triggers": [[2, 3, "go"]], "arguments": [[0, 2, "who"], [3, 5, "where"]]}
BARE = {"text": "好。", "triggers": [], "arguments": []}
Jsonl = Callable[[str, list[Any]], str]


def read(train: str, **keys: Any) -> Corpus:
    section = {"task": "tagging", "columns": COLUMNS, "split": {"valid": 0}, **keys, "train": train}
    return check_sources(Data.model_validate(section))


def refused(train: str, **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(train, **keys)
    return caught.value.problems


def test_spans_in_every_form_and_tags_a_character_are_the_same(jsonl: Jsonl) -> None:
    objects = [{"start": s, "end": e, "type": t} for s, e, t in ROW["arguments"]]
    tags = ["B-who", "I-who", "O", "B-where", "I-where", "O"]
    clue = {"who": {"王明": [[0, 2]]}, "where": {"北京": [[3, 5]]}}
    rows = [{**ROW, "arguments": form} for form in (ROW["arguments"], objects, tags, clue)]
    corpus = read(jsonl("train.jsonl", [*rows, BARE]))
    wanted = [Span(0, 2, "who"), Span(3, 5, "where")]
    assert list(corpus.parts["train"].privileged) == [*[wanted] * 4, []]
    assert list(corpus.parts["train"].spans) == [*[[Span(2, 3, "go")]] * 4, []]
    assert corpus.privileged == ["where", "who"] and corpus.types == ["go"]


def test_triples_are_spans_of_labels_too(jsonl: Jsonl) -> None:
    columns = {"label": "triggers", "span_end": "exclusive"}
    assert list(read(jsonl("train.jsonl", [ROW]), columns=columns).parts["train"].spans) == [[Span(2, 3, "go")]]


def test_a_column_of_a_conll_file(tmp_path: Path) -> None:
    lines = ["王 S-p B-who", "明 O E-who", "去 O O", "New S-go B-where", "York O E-where"]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n\n好 O O\n", encoding="utf-8")
    corpus = read(str(tmp_path / "train.txt"), columns={"label": 1, "privileged": 2}, scheme="bioes")
    assert list(corpus.parts["train"].text) == ["王明去New York", "好"]
    assert list(corpus.parts["train"].privileged) == [[Span(0, 2, "who"), Span(3, 11, "where")], []]
    # The scheme of the annotations is found from their own tags.
    found = read(str(tmp_path / "train.txt"), columns={"label": 1, "privileged": 2})
    assert list(found.parts["train"].privileged) == list(corpus.parts["train"].privileged)
    (problem,) = refused(str(tmp_path / "train.txt"), columns={"label": 1, "privileged": 3}, scheme="bioes")
    assert "train.txt:1: has no column 3 (data.columns.privileged" in problem
    (problem,) = refused(str(tmp_path / "train.txt"), columns={"privileged": 2}, scheme="bioes")
    assert "its last column is that of data.columns.privileged" in problem
    (tmp_path / "train.txt").write_text("王 O B-who\n明 O X-who\n", encoding="utf-8")
    problems = refused(str(tmp_path / "train.txt"), columns={"label": 1, "privileged": 2}, scheme="bio")
    assert "train.txt:2: data.columns.privileged: tag 'X-who' is not in scheme bio" in problems[0]


def test_a_conll_file_beside_json_lines_has_no_column_of_that_name(jsonl: Jsonl, tmp_path: Path) -> None:
    """Its rows would have no annotations, and nobody would see."""
    (tmp_path / "test.txt").write_text("王 B-who O\n明 I-who O\n", encoding="utf-8")
    (problem,) = refused(jsonl("train.jsonl", [ROW]), test=str(tmp_path / "test.txt"))
    assert "data.columns.privileged: 'arguments' is a name, and the columns of" in problem and "give its num" in problem
    label, privileged = sorted(refused(str(tmp_path / "test.txt")))
    assert "columns.label: 'triggers' is a name" in label and "columns.privileged: 'arguments' is a n" in privileged


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([[3, 9, "where"]], "'arguments': span [3, 9] (where) is not within the text (0 to 6, end excluded)"),
        ([[-1, 2, "who"]], "'arguments': span [-1, 2] (who) is not within the text"),
        ([[0, 3, "who"], [2, 5, "where"]], "'arguments': spans overlap: '王明去' (who, [0, 3]) and '去北京'"),
        ([[0, 2, "who"], [0, 2, "where"]], "'arguments': spans overlap"),
        (["B-who", "I-who"], "'arguments': must have a tag for each character, found 2 for 6 characters"),
        ("who", "'arguments' must be an object or a list of spans"),
        ([[0, "2", "who"]], "'arguments': start and end of a span (who) must be whole numbers"),
        ([[0, 2]], "'arguments': a span must be an object"),
        ([[0, 2, None]], "'arguments': an entity type must be a text"),
        (None, "'arguments' is null: a row needs its annotations ([] for none)"),
    ],
)
def test_what_is_no_annotation(jsonl: Jsonl, arguments: Any, reason: str) -> None:
    problems = refused(jsonl("train.jsonl", [ROW, {**ROW, "arguments": arguments}]))
    assert len(problems) == 1 and "train.jsonl:2: " in problems[0] and reason in problems[0]


def test_of_nested_ones_the_outer_is_kept_and_told(jsonl: Jsonl) -> None:
    nested = {**ROW, "arguments": [[0, 2, "who"], [0, 1, "where"], [0, 2, "who"]]}
    corpus = read(jsonl("train.jsonl", [ROW, nested]))
    assert corpus.parts["train"].privileged[1] == [Span(0, 2, "who")]
    told = [remark for remark in corpus.remarks if "'arguments'" in remark]
    assert len(told) == 2 and "1 span(s) inside another left out" in told[0] and "given twice" in told[1]


def test_every_row_of_every_part_has_them(jsonl: Jsonl, tmp_path: Path) -> None:
    train = jsonl("train.jsonl", [ROW])
    text = {"text": "北京。"}
    for part in ("train", "valid", "test", "transfer"):
        other = jsonl("other.jsonl", [ROW, text if part == "transfer" else {**text, "triggers": []}])
        (problem,) = refused(other) if part == "train" else refused(train, **{part: other})
        assert "other.jsonl:2: has no 'arguments'" in problem
    (tmp_path / "more.txt").write_text("北京。\n", encoding="utf-8")
    (problem,) = refused(train, transfer=str(tmp_path / "more.txt"))
    assert "plain lines hold no annotations" in problem


def test_types_are_those_of_training(jsonl: Jsonl) -> None:
    train, other = jsonl("train.jsonl", [ROW]), {**ROW, "arguments": [[0, 2, "wo"]]}
    (problem,) = refused(train, test=jsonl("test.jsonl", [ROW, other]))
    assert (
        "test.jsonl:2: data.columns.privileged: no training row has an annotation of type 'wo'; did you mean 'who'?"
        in problem
    )
    (problem,) = refused(jsonl("train.jsonl", [BARE, {**ROW, "arguments": []}]))
    assert "data.columns.privileged: no training row has an annotation there" in problem


def test_roles_and_tasks() -> None:
    for columns, reason in (({"privileged": "label"}, "column 'label' is given two roles"),):
        with pytest.raises(ValueError, match=reason):
            Data.model_validate({"task": "tagging", "train": "t", "columns": columns})
    with pytest.raises(ValueError, match="columns.privileged: is only for task 'tagging'"):
        Data.model_validate({"train": "t", "columns": {"privileged": "more"}})
    # What a section without them comes to, and so its fingerprints, is what it was.
    assert "privileged" not in Data.model_validate({"task": "tagging", "train": "t"}).model_dump()["columns"]


def test_they_are_prepared_piece_by_piece_beside_the_tags(jsonl: Jsonl, prepare_run: Callable[..., RunFolder]) -> None:
    long = {
        "text": "王明去。他到了北京西站。",
        "triggers": [[5, 6, "go"]],
        "arguments": [[0, 2, "who"], [7, 11, "where"]],
    }
    data = {
        "task": "tagging",
        "columns": COLUMNS,
        "train": jsonl("train.jsonl", [long, BARE]),
        "valid": jsonl("valid.jsonl", [long]),
        "max_length": 9,
        "vocabulary": {"min_count": 1},
    }
    tagger = {"name": "t", "model": {"type": "tagger", "privileged": {"size": 4}}}
    folder = prepare_run(data, teachers=(tagger,), students=())
    prepared = PreparedData.open(folder)
    assert prepared.privileged == ["where", "who"]
    own, beside = (prepared.part("train", "students", which) for which in ("own", "teachers"))
    # B I I E of `where` are 1 2 2 3, of `who` 5 6 6 7; a piece ends behind the first full stop, and at 7 characters.
    given = own.collate(np.array([0, 1, 2, 3]))["privileged"]
    rows = [list(row) for row in own.rows()["privileged"]]
    assert rows == [[5, 7, 0, 0], [0, 0, 0, 1, 2, 2, 3], [0], [0, 0]]
    assert given.tolist() == [row + [0] * (7 - len(row)) for row in rows]
    assert "privileged" not in beside.collate(np.array([0])) and "privileged" not in prepared.part("train", "students").collate(np.array([0]))  # fmt: skip
    assert beside.collate_for_teachers(np.array([1]))["privileged"].tolist() == [rows[1]]
    assert own.collate_for_teachers(np.array([1])) == {}
    both = type(own).concat([own, prepared.part("valid", "students", "own")])
    assert both.collate(np.array([4]))["privileged"].tolist() == [[5, 7, 0, 0]]


def test_they_decide_the_rows_identity(jsonl: Jsonl, prepare_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    other = {**ROW, "arguments": [[0, 2, "who"]]}
    found = set()
    for number, row in enumerate((ROW, other)):
        train = jsonl("train.jsonl", [row, ROW, BARE])
        data = {"task": "tagging", "columns": COLUMNS, "train": train, "valid": train}
        folder = prepare_run(data, identities={"rows": f"rows-{number}"}, students=())
        found.add(json.loads((folder.data / "rows" / "data.json").read_text())["fingerprint"])
        found.add(Plan(Recipe.model_validate({"name": "run", "data": data})).data)
    assert len(found) == 4
