"""Columns of rows read as lists do, whatever lies in the temporary file, and take few bytes a row."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.data import arrow, tables
from dtrain.data import columns as module
from dtrain.data.columns import (
    Column,
    JsonColumn,
    KeyColumn,
    LabelColumn,
    LabelSetColumn,
    NumberColumn,
    SpanColumn,
    TextColumn,
    hashes,
)
from dtrain.data.ids import SeenIds, read_once_or_twice
from dtrain.data.problems import Problems
from dtrain.data.remarks import _contradicted
from dtrain.data.schemes import Span
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.tasks.corpus import read_corpus

LABELS = st.sampled_from(["a", "b", "ß", ""])
SPANS = st.builds(Span, st.integers(0, 9), st.integers(10, 20), LABELS)
VALUES: dict[type[Column[Any]], st.SearchStrategy[Any]] = {
    TextColumn: st.text(max_size=8),
    JsonColumn: st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=3),
    LabelColumn: st.none() | LABELS,
    NumberColumn: st.none() | st.floats(-1e18, 1e18),
    LabelSetColumn: st.none() | st.lists(LABELS, max_size=3),
    SpanColumn: st.none() | st.lists(SPANS, max_size=3),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes in memory, the rest in the file."""
    monkeypatch.setattr(module, "KEPT", 16)
    monkeypatch.setattr(module, "BLOCK", 3)


@pytest.mark.parametrize("kind", VALUES)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_column_is_a_list_of_its_values(kind: type[Column[Any]], data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[kind], max_size=12))
    column = kind(values)
    assert list(column) == values == [column[row] for row in range(len(values))]
    assert column == values and column[1:5] == values[1:5] and len(column) == len(values)
    index = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=20)) if values else []
    taken = column.take(np.array(index, dtype=np.int64))
    more = data.draw(VALUES[kind])
    taken.append(more)
    assert list(taken) == [*(values[row] for row in index), more]
    assert list(column) == values, "what was taken changes nothing here"
    assert pickle.loads(pickle.dumps(taken)) == taken


@given(st.lists(st.tuples(st.none() | st.text(min_size=1, max_size=5), st.integers(0, 3), st.integers(1, 99))))
@settings(max_examples=50, deadline=None)
def test_keys_are_the_users_or_file_and_line(rows: list[tuple[str | None, int, int]]) -> None:
    column = KeyColumn()
    for row in rows:
        column.add(*row)
    wanted = [key or f"{file}:{line}" for key, file, line in rows]
    assert list(column) == wanted == [column[row] for row in range(len(rows))]
    backwards = np.arange(len(rows))[::-1]
    assert list(column.take(backwards)) == wanted[::-1]


def test_counts_and_new_names() -> None:
    labels = LabelColumn(["1", None, "0", "1"])
    assert (labels.counts(), labels.codes.tolist()) == ({"1": 2, "0": 1}, [0, -1, 1, 0])
    assert labels.renamed({"0": "x", "1": "x"}) == ["x", None, "x", "x"]
    several = LabelSetColumn([["b", "a"], None, [], ["a"]])
    assert several.counts() == {"b": 1, "a": 2}
    assert several.take(np.array([3, 1])).counts() == {"a": 1}
    assert (several.bare.tolist(), several.sizes.tolist()) == ([False, True, False, False], [2, 0, 0, 1])
    spans = SpanColumn([None, None])
    spans[1] = [Span(0, 2, "ORG")]
    assert spans == [None, [Span(0, 2, "ORG")]]


def test_hashes_tell_texts_and_pairs_apart() -> None:
    texts, others = TextColumn(["a", "b", "a", "ab", ""]), TextColumn(["b", "a", "b", "", "ab"])
    alone, pairs = hashes(texts), hashes(texts, others)
    assert [len(np.unique(found)) for found in (alone, pairs)] == [4, 4]
    assert alone[0] == alone[2] and pairs[0] == pairs[2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=12))
@settings(max_examples=100, deadline=None)
def test_contradictions_against_a_dictionary(rows: list[tuple[int, int]]) -> None:
    labels: dict[int, int] = {}
    found: dict[int, int] = {}
    for row, (text, label) in enumerate(rows):
        if labels.setdefault(text, label) != label:
            found.setdefault(text, row)
    told, row, earlier = _contradicted(
        np.array([text for text, _ in rows], dtype=np.uint64), np.array([label for _, label in rows], dtype=np.int32)
    )
    assert told == sum(text in found for text, _ in rows)
    if found:
        text, first = next(iter(found.items()))
        assert (row, earlier) == (first, [each for each, _ in rows].index(text))


def test_ids_are_read_again_only_where_two_may_be_the_same() -> None:
    problems, times = Problems(), []

    def read(ids: list[str], seen: SeenIds) -> int:
        times.append(seen.exact)
        problems.remark("once")
        for line, key in enumerate(ids, 1):
            try:
                seen.see("train", key, "f", line)
            except ValueError as error:
                problems.add_row("f", line, error)
        return len(ids)

    assert read_once_or_twice(lambda seen: read(["a", "b"], seen), problems) == 2
    assert (times, problems.lines) == ([False], [])
    assert read_once_or_twice(lambda seen: read(["a", "b", "a", "b"], seen), problems) == 4
    assert times == [False, False, True]
    assert problems.lines == ["f:3: id 'a' is already that of f:1 (1 more like it)"]
    assert problems.remarks == ["once"]


def test_an_id_that_is_there_twice_is_told_though_reading_ended_early(tmp_path: Path) -> None:
    """Twenty other kinds of problems stop the first reading; the id is the first of them."""
    lines = ["id\ttext\tlabel", "1\ta\tx", "1\tb\ty", *("\t" * (3 + number % 18) for number in range(60))]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        read_corpus(Data(train=[str(tmp_path / "train.tsv")], columns={"id": "id"}), seed=0)  # type: ignore[arg-type]
    assert "train.tsv:3: id '1' is already that of" in error.value.problems[0]


def test_a_full_disk_is_told_with_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left on device .*20 bytes so far; TMPDIR names"):
        TextColumn(["x" * 20])


def test_a_stray_quote_is_told_however_many_labels_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swallowed row's label is among those that are kept as hashes alone."""
    monkeypatch.setattr(tables, "MOST_LABELS", 3)
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"t{n},{n}\n" for n in range(9)) + '"open,x\nt,7\nshut",1\n')
    with pytest.raises(InputError, match=r"train.csv:11: a quotation mark opens here .* line 12 looks like a row"):
        read_corpus(Data(task="regression", train=[str(path)]), seed=0)


def test_parquet_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BLOCK", 7)
    labels = ClassLabel(names=["no", "yes"])
    rows = {"text": [f"t{n}" for n in range(40)], "label": [n % 2 for n in range(39)] + [0]}
    Dataset.from_dict(rows, Features({"text": Value("string"), "label": labels})).to_parquet(tmp_path / "a.parquet")
    data = Data(train=[str(tmp_path / "a.parquet")], split={"valid": 0.0, "test": 0.0})  # type: ignore[arg-type]
    found = read_corpus(data, seed=0).parts["train"]
    assert (found.text, found.label[:3]) == (rows["text"], ["no", "yes", "no"])
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:8] + bytes(90) + whole[98:])  # the footer is whole, the pages are not
    with pytest.raises(InputError, match=r"data.train: .*a.parquet: cannot be read: "):
        read_corpus(data, seed=0)


def test_few_bytes_a_row_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50 characters a row, 150 bytes in UTF-8: 24 bytes of places, a label's number, 8 of its copy, and what is sorted."""
    monkeypatch.setattr(module, "KEPT", 1 << 16)
    monkeypatch.setattr(module, "BLOCK", 1024)
    path, rows = tmp_path / "train.tsv", 20_000
    path.write_text("".join(f"{'文' * 44}{row:06}\tlabel{row % 7}\n" for row in range(rows)), encoding="utf-8")
    data = Data(train=[str(path)], header=False, columns={"text": 0, "label": 1})  # type: ignore[arg-type]
    read_corpus(data, seed=0)  # what is imported and compiled on the way
    tracemalloc.start()
    corpus = read_corpus(data, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.parts["train"]) > 0.8 * rows
    assert peak < 110 * rows, f"{peak / rows:.0f} bytes a row"
