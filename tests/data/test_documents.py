"""The sources of tagging: spans in JSON lines, tag files, and what is refused with file and line."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from seqeval.scheme import IOB2, IOBES, Tokens

from dtrain.data.corpus import Corpus
from dtrain.data.schemes import read_spans, write_tags
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.tasks.corpus import check_sources, read_corpus

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        return str(tmp_path / name)

    return to_file


def section(**keys: Any) -> Data:
    return Data.model_validate({"task": "tagging", "split": {"valid": 0}, **keys})


def read(**keys: Any) -> Corpus:
    return read_corpus(section(**keys), seed=0)


def line(text: str, label: Any) -> str:
    return json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"


def test_both_forms_of_spans(write: Write) -> None:
    by_type = line("张三在北京大学，张三", {"name": {"张三": [[0, 1], [8, 9]]}, "org": {"北京大学": [[3, 6]]}})
    entries = [
        {"start": 3, "end": 6, "type": "org", "text": "北京大学", "id": 5},
        {"start": 0, "end": 1, "type": "name"},
    ]
    train = write("a.json", by_type + line("张三在北京大学", entries) + line("无", {}) + "\n" + line("无", []))
    corpus = read(train=train, transfer=write("t.json", '{"text": "无"}\n{"text": "", "label": 7}\n'))
    assert corpus.parts["train"].spans == [
        [(0, 2, "name"), (3, 7, "org"), (8, 10, "name")],
        [(0, 2, "name"), (3, 7, "org")],
        [],
        [],
    ]
    assert list(corpus.parts["train"].line) == [1, 2, 3, 5]
    assert (corpus.types, corpus.scheme) == (["name", "org"], "bio")
    assert corpus.labels == ["O", *(f"{p}-name" for p in "BIES"), *(f"{p}-org" for p in "BIES")]
    assert corpus.parts["transfer"].spans == [None]
    assert [re.sub(".*/", "", remark) for remark in corpus.remarks] == ["t.json: 1 empty text(s) left out"]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (
            {"x": {"张三": [[0, 2]]}},
            "span [0, 2] (x) is '张三在' in the text, not '张三'; its end must be the place of",
        ),
        ({"x": {"李四": [[0, 1]]}}, "is '张三' in the text, not '李四'"),
        ({"x": {"张三": [[0, 9]]}}, "span [0, 9] (x) is not within the text (0 to 4, end included)"),
        ({"x": {"张三": [[-1, 1]]}}, "is not within the text"),
        ({"x": {"张三": [[1, 0]]}}, "is not within the text"),
        ({"x": {"张三": [[0, True]]}}, "must be whole numbers, found true/false"),
        ({"x": {"张三": [[0, 1.0]]}}, "must be whole numbers, found the number 1.0"),
        ({"x": {"张三": [0, 1]}}, "'张三' (x): a place must be [start, end], found 0"),
        ({"x": {"张三": 0}}, "'张三' (x) must have a list of [start, end]"),
        ({"x": [[0, 1]]}, "type 'x' must hold an object of surfaces, found a list"),
        ({" x": {"张三": [[0, 1]]}}, "an entity type must be a text without blanks or dashes around it, found ' x'"),
        ({"": {"张三": [[0, 1]]}}, "found ''"),
        ([{"start": 0, "end": 1}], 'a span must be an object with "start", "end"'),
        ([{"start": 0, "end": 1, "type": 3}], "found 3"),
        ([{"start": 0, "end": 1, "type": "x", "text": "张"}], "is '张三' in the text, not '张'"),
        ("x", "'label' must be an object or a list of spans, found a text"),
        (None, "'label' is null"),
        ({"x": {"张三": [[0, 1]], "三在": [[1, 2]]}}, "spans overlap: '张三' (x, [0, 1]) and '三在' (x, [1, 2])"),
        ({"x": {"张三": [[0, 1]]}, "y": {"张三": [[0, 1]]}}, "spans overlap"),
    ],
)
def test_wrong_spans(write: Write, label: Any, reason: str) -> None:
    train = write("a.json", line("无", {"x": {"无": [[0, 0]]}}) + line("张三在北京", label))  # ends are inclusive
    with pytest.raises(InputError) as caught:
        read(train=train)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{train}:2: ")
    assert reason in problem


def test_spans_inside_others_are_left_out(write: Write) -> None:
    nested = {"book": {"《中国人》": [[0, 4]]}, "place": {"中国": [[1, 2]], "国": [[2, 2]]}, "name": {"王": [[5, 5]]}}
    train = write("a.json", line("《中国人》王", nested))
    corpus = read(train=train)
    assert corpus.parts["train"].spans == [[(0, 5, "book"), (5, 6, "name")]]
    (remark,) = corpus.remarks
    assert remark == f"{train}: 2 span(s) inside another left out, the outer one is kept ({train}:1: '中国' (place))"


def test_tags_that_make_no_entity_are_counted(write: Write) -> None:
    first = write("a.conll", "a O\nb I-X\n\nc I-X\nd B-X\ne I-Y\n")
    second = write("b.conll", "a B-X\nb B-Y\n")
    with pytest.raises(InputError) as caught:
        read(train=[first, second])
    assert caught.value.problems == [
        f"data.scheme: {second} is in scheme bio, but {first} is in iob1, in which {second}:1: 'B-X' is part of no "
        "complete entity; convert one of the files"
    ]
    corpus = read(train=[first, second], scheme="bio")
    assert corpus.scheme == "bio"
    assert corpus.parts["train"].spans == [[], [(1, 2, "X")], [(0, 1, "X"), (1, 2, "Y")]]
    assert corpus.remarks == [
        f"{first}: 3 tag(s) are part of no complete entity in scheme bio and are read as O ({first}:2: 'I-X')",
    ]
    assert read(train=[first, second], scheme="iob1").parts["train"].spans[0] == [(1, 2, "X")]


@pytest.mark.parametrize(
    ("content", "keys", "problem"),
    [
        ("a O\nb B-X\n\nc x\n", {}, "{file}:4: 'x' is no tag"),
        (
            "a O\nb B-X\nc E-X\n",
            {"scheme": "bio"},
            "{file}:3: tag 'E-X' is not in scheme bio (allowed: O, B-..., I-...)",
        ),
        ("a B-X\nb M-X\nc I-X\n", {}, "'B-X' ({file}:1), 'I-X' ({file}:3), 'M-X' ({file}:2) (allowed: iob1 O B I;"),
        ("a O\nb O\n", {}, "data.train: holds no entity"),
        ("\n\n-DOCSTART- O\n", {}, "data.train: {file}: holds no rows"),
        ("a B-X\n", {"labels": ["Y"]}, "{file}:1: entity 'a': type 'X' is not in data.labels"),
        ("a B-X\n", {"columns": {"text": "token"}}, "data.columns.text: 'token' is a name; give the number"),
        ("a B-X\n", {"columns": {"id": "key"}}, "data.columns.id: no file has a column 'key'"),
        ("甲 B-X\n" + "乙 I-X\n" * 7, {"max_length": 9}, "8 characters, and data.max_length leaves 7 a piece"),
    ],
)
def test_wrong_tag_files(write: Write, content: str, keys: dict[str, Any], problem: str) -> None:
    train = write("a.conll", content)
    with pytest.raises(InputError) as caught:
        read(train=train, **keys)
    assert problem.replace("{file}", train) in str(caught.value)


def test_types_and_labels_over_parts(write: Write) -> None:
    train = write("a.conll", "a B-X\n\n" * 4)
    with pytest.raises(InputError, match=r"v.conll:3: entity 'b': type 'Y' does not occur in training .allowed: X"):
        read(train=train, valid=write("v.conll", "a B-X\n\nb B-Y\n"), labels=None)
    mixed = write("t.json", line("a", {}) + '{"text": "b"}\n')
    with pytest.raises(InputError, match=r"t.json:2: has no label, but other test rows have one"):
        read(train=train, test=mixed)
    with pytest.raises(InputError, match=r"v.json:1: has no 'label'"):
        read(train=train, valid=write("v.json", '{"text": "b"}\n'))
    corpus = read(train=train, test=write("t.conll", "a\n\nb\n"), labels=["Y", "X"])
    assert corpus.types == ["Y", "X"]
    assert corpus.numbers["test"].tolist() == [-1, -1]
    types = write("types.txt", "X\n")
    assert read(train=train, labels=types).types == ["X"]


def test_formats(write: Write, tmp_path: Path) -> None:
    train = write("a.txt", "a B-X\n")
    for name, content, texts in [
        ("plain.txt", "一 行 字\n\n二\n", ["一 行 字", "二"]),
        ("tagged.txt", "\n一 O\n二 B-Y\n", ["一二"]),
        ("untagged.bmes", "一\n二\n", ["一二"]),
        ("some.jsonl", '{"text": "一二"}\n', ["一二"]),
    ]:
        assert read(train=train, transfer=write(name, content)).parts["transfer"].text == texts
    assert read(train=write("j.dat", line("a", {"x": {"a": [[0, 0]]}})), format="jsonl").types == ["x"]
    for keys, reason in [
        ({"train": str(tmp_path)}, "is a folder; task 'tagging' reads files"),
        ({"train": "hub:a/b/c"}, "is a hub data set"),
        ({"train": train + "x"}, "no such file"),
        ({"train": write("e.conll", "")}, "the file is empty"),
        ({"train": train, "format": "lines"}, "plain lines hold no labels"),
    ]:
        with pytest.raises(InputError, match=reason):
            read(**keys)
    with pytest.raises(InputError, match=r"data.columns.text: 1 is a number, but the columns of .* have names"):
        read(train=write("c.json", line("a", {})), columns={"text": 1})


def test_default_split_is_of_documents(write: Write) -> None:
    train = write("a.conll", "".join(f"{n % 10} B-X\n\n" for n in range(100)))
    assert check_sources(Data(task="tagging", train=[train])).counts == {"train": 70, "valid": 10, "test": 20}
    assert check_sources(Data(task="tagging", train=[train], valid=[train])).counts == {"train": 100, "valid": 100}
    assert check_sources(Data(task="tagging", train=[train], test=[train])).counts == {
        "train": 90,
        "valid": 10,
        "test": 100,
    }
    cut = Data.model_validate({"task": "tagging", "train": train, "split": {"valid": 0.5}})
    assert check_sources(cut).counts == {"train": 50, "valid": 50}
    resolved = Data.model_validate(Data(task="tagging", train=[train]).model_dump())
    assert (resolved.split.valid, resolved.split.test) == (0.1, 0.2)


@pytest.mark.parametrize("labels", [[], ["a", "a"], ["-a"], [" "]])
def test_wrong_types_in_the_recipe(labels: list[str]) -> None:
    with pytest.raises(ValidationError):
        Data.model_validate({"task": "tagging", "train": "x", "labels": labels})


# --- anything at all ------------------------------------------------------------------------------

TAGS = ["O", "B-X", "I-X", "E-X", "S-X", "M-Y", "B-Y", "L-X", "U-Y", "I-Y", "", "x", "B-"]
LINES = st.one_of(
    st.builds(
        "{}{}{}".format, st.text(max_size=3), st.sampled_from([" ", "\t", "  ", "\u3000"]), st.sampled_from(TAGS)
    ),
    st.sampled_from(["", " ", "-DOCSTART- O", "a O", "张 B-X", "三 I-X", "😀 O", "ﷺ B-X"]),
)
CONTENT = st.one_of(
    st.binary(max_size=80),
    st.lists(LINES, max_size=12).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")),
    st.lists(st.sampled_from(["张 B-X", "三 I-X", "ab O", "", "c3 I-Y", "1 E-X", "\u3000 O"]), max_size=12).map(
        lambda lines: "\n".join(lines).encode()
    ),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(CONTENT, st.sampled_from(["auto", "bio", "iob1", "bioes", "bmes", "bilou"]))
def test_any_bytes_give_aligned_entities_or_file_and_line(content: bytes, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.conll"
        path.write_bytes(content)
        try:
            corpus = read(train=str(path), scheme=scheme)
        except InputError as error:
            for problem in error.problems:
                whole = r"(empty|holds no rows|holds no entity|stopped reading after 20 problems)$"
                assert re.search(rf"{re.escape(str(path))}:\d+|{whole}|holds no entity", problem), problem
            return
    rows = corpus.parts["train"]
    lines = content.decode("utf-8-sig").split("\n")
    for text, spans, first in zip(rows.text, rows.spans, rows.line, strict=True):
        assert text
        assert all(0 <= span.start < span.end <= len(text) for span in spans or ())
        # Every token is in the text, in order and in the user's own characters; only blanks are between them.
        position = 0
        for number in range(first - 1, len(lines)):
            raw = lines[number].removesuffix("\r")
            if not raw.strip(" \t") or raw.startswith("-DOCSTART-"):
                break
            token = raw.split("\t")[0] if "\t" in raw else raw.split(" ")[0]
            token = token.strip(" ") or token
            found = text.index(token, position)
            assert text[position:found] in ("", " ")
            position = found + len(token)
        assert position == len(text)
        written = write_tags(spans or [], len(text), "bio")
        assert read_spans(written, "bio") == spans


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=12), st.recursive(st.none() | st.integers(-1, 9) | st.text(max_size=3), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "start", "end", "type", "张"]), inner, max_size=3)
)))  # fmt: skip
def test_any_json_gives_spans_or_file_and_line(text: str, label: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        # Enough spans that say what ends are for any row to be the one that is wrong.
        path.write_text(
            line("张" * 9, {"x": {"张": [[n, n] for n in range(9)]}})
            + json.dumps({"text": text, "label": label})
            + "\n",
            encoding="utf-8",
        )
        try:
            corpus = read(train=str(path), labels=["x"])
        except InputError as error:
            assert all(problem.startswith(f"{path}:2: ") for problem in error.problems), error
            return
    spans = corpus.parts["train"].spans[1] if text else []
    assert spans is not None
    assert all(0 <= span.start < span.end <= len(text) for span in spans)


# --- the real files -------------------------------------------------------------------------------


def test_resume(data_folder: Path) -> None:
    folder = data_folder / "resume_ner"
    files = {"train": "train", "valid": "dev", "test": "test"}
    corpus = read(**{part: str(folder / f"{name}.char.bmes") for part, name in files.items()})
    assert {part: len(rows) for part, rows in corpus.parts.items()} == {"train": 3821, "valid": 463, "test": 477}
    assert corpus.scheme == "bmes"
    for part, name in files.items():
        blocks = (folder / f"{name}.char.bmes").read_text(encoding="utf-8").strip().split("\n\n")
        rows = corpus.parts[part]
        for block, text, spans in zip(blocks, rows.text, rows.spans, strict=True):
            pairs = [entry.split(" ") for entry in block.split("\n") if entry]
            assert text == "".join(character for character, _ in pairs)
            tags = [tag.replace("M-", "I-") for _, tag in pairs]
            assert spans == [(e.start, e.end, e.tag) for e in Tokens(tags, IOBES).entities]


def test_cluener(data_folder: Path) -> None:
    files = {part: data_folder / "cluener" / name for part, name in (("train", "train.jsonl"), ("valid", "dev.jsonl"))}
    corpus = read(**{part: str(path) for part, path in files.items()})
    assert {part: len(rows) for part, rows in corpus.parts.items()} == {"train": 10748, "valid": 1343}
    entities = {}
    for part, path in files.items():
        entities[part] = 0
        for raw, spans in zip(path.read_text(encoding="utf-8").splitlines(), corpus.parts[part].spans, strict=True):
            record = json.loads(raw)
            plain = [(a, b + 1, kind) for kind, names in record["label"].items() for x in names.values() for a, b in x]
            entities[part] += len(plain)
            assert spans is not None
            tags = write_tags(spans, len(record["text"]), "bio")
            assert [(e.start, e.end, e.tag) for e in Tokens(tags, IOB2).entities] == spans
            assert set(spans) <= set(plain)
    # Two names of companies are inside the title of a book: line 1507.
    counted = {part: sum(len(spans or ()) for spans in rows.spans) for part, rows in corpus.parts.items()}
    assert (entities, counted) == ({"train": 23971, "valid": 3072}, {"train": 23969, "valid": 3072})
