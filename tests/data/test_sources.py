"""Reading: every format gives the same rows; what is wrong is named by file and line, or by the recipe's key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.tasks.corpus import check_sources, find_sources, read_corpus, source_files

GOOD = '{"text": "一", "label": "a"}\n{"text": "二", "label": "b"}\n'
TRAIN = {"train.jsonl": GOOD}


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def section(folder: Path, data: dict[str, Any]) -> Data:
    """A data section whose file names are in `folder`."""
    placed = dict(data)
    for part in ("train", "valid", "test", "transfer"):
        if part in placed:
            names = placed[part] if isinstance(placed[part], list) else [placed[part]]
            placed[part] = [name if ":" in name else str(folder / name) for name in names]
    if isinstance(placed.get("labels"), str):
        placed["labels"] = str(folder / placed["labels"])
    return Data.model_validate(placed)


# --- good files ------------------------------------------------------------------------------------

NUMBERED = {"header": False, "columns": {"text": 1, "label": 0}}
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JSON lines": ("t.jsonl", '{"label": 7, "text": "一,\\"1\\""}\n\n{"text": "二\\n2", "label": "8"}\n', {}),
    "byte-order mark, CRLF": (
        "t.json",
        '\ufeff{"text":"一,\\"1\\"","label":"7"}\r\n{"text":"二\\n2","label":"8"}\r\n',
        {},
    ),
    "CSV": ("t.csv", 'label,text\r\n7,"一,""1"""\r\n8,"二\n2"\r\n', {}),
    "CSV without header": ("t.csv", '7,"一,""1"""\n8,"二\n2"', NUMBERED),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_rows_from_every_format(kind: str, tmp_path: Path) -> None:
    name, content, extra = FORMATS[kind]
    write(tmp_path, {name: content})
    corpus = read_corpus(section(tmp_path, {"train": name, **extra, "split": {"valid": 0}}), seed=0)
    assert corpus.parts["train"].text == ['一,"1"', "二\n2"]
    assert corpus.labels == ["7", "8"]
    assert corpus.numbers["train"].tolist() == [0, 1]


def test_tab_separated_rows_have_no_quoting(tmp_path: Path) -> None:
    write(tmp_path, {"t.txt": 'text\tlabel\n"quoted, once \t b \nline\u2028kept\ta\n'})
    rows = read_corpus(section(tmp_path, {"train": "t.txt", "format": "tsv"}), seed=0).parts["train"]
    assert rows.text == ['"quoted, once ', "line\u2028kept"]
    assert rows.label == ["b", "a"]
    assert list(rows.line) == [2, 3]


def test_folders_of_datasets(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["一", "二"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "train")
    Dataset.from_dict({"text": ["三"], "label": [-1]}, features=features).save_to_disk(tmp_path / "test")
    corpus = read_corpus(section(tmp_path, {"train": "train", "test": "test", "split": {"valid": 0}}), seed=0)
    assert corpus.labels == ["neg", "pos"]
    assert corpus.parts["train"].text == ["一", "二"]
    assert corpus.numbers["train"].tolist() == [1, 0]
    assert corpus.numbers["test"].tolist() == [-1]


def test_hidden_lists_of_labels_are_none(tmp_path: Path) -> None:
    """A list of -1 alone, in place of labels that are not published, is no label; beside labels it is a mistake."""
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["neg", "pos"]))})

    def part(name: str, labels: list[list[int | None]]) -> None:
        rows = {"text": ["一", "二", "三"][: len(labels)], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name)

    part("train.parquet", [[1, 0], [0], []])
    part("test.parquet", [[-1], [-1, -1]])
    data = {"task": "multi_label", "train": "train.parquet", "test": "test.parquet", "split": {"valid": 0}}
    corpus = read_corpus(section(tmp_path, data), seed=0)
    assert list(corpus.parts["train"].several) == [["pos", "neg"], ["neg"], []]
    assert list(corpus.parts["test"].several) == [None, None]
    for labels, told in (
        ([[1], [0, -1]], r"2: 'label' holds \[0, -1\]"),
        ([[1, None]], r"1: 'label' holds \[1, None\]"),
    ):
        part("test.parquet", labels)
        with pytest.raises(InputError, match=rf"test\.parquet:{told}, and the labels have the numbers from 0"):
            read_corpus(section(tmp_path, data), seed=0)


def test_transfer_files_go_by_their_own_suffix(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.txt": "text\tlabel\n一\ta\n二\tb\n",
            "plain.txt": "三\n\n四\n",
            "table.txt": "text\tlabel\n五\tzzz\n",
            "more.jsonl": '{"text": "六"}\n',
        },
    )
    data = {"train": "train.txt", "format": "tsv", "transfer": ["plain.txt", "table.txt", "more.jsonl"]}
    corpus = read_corpus(section(tmp_path, data), seed=0)
    assert corpus.parts["transfer"].text == ["三", "", "四", "五", "六"]
    assert corpus.numbers["transfer"].tolist() == [-1] * 5
    assert [Path(corpus.files[i]).name for i in corpus.parts["transfer"].file] == ["plain.txt"] * 3 + [
        "table.txt",
        "more.jsonl",
    ]


def test_ids_are_the_users_where_a_file_has_them(tmp_path: Path) -> None:
    write(tmp_path, {**TRAIN, "test.jsonl": '{"id": 7, "text": "三"}\n{"id": "x", "text": "四"}\n'})
    data = {"train": "train.jsonl", "test": "test.jsonl", "columns": {"id": "id"}, "split": {"valid": 0}}
    corpus = read_corpus(section(tmp_path, data), seed=0)
    assert corpus.parts["test"].key == ["7", "x"]
    assert corpus.parts["train"].key == ["0:1", "0:2"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["b", "a"], ["b", "a"]), ("l.txt", ["b", "a", "c"]), ("l.json", ["b", "a"]), (None, ["a", "b"])],
)
def test_label_maps(labels: Any, expected: list[str], tmp_path: Path) -> None:
    write(tmp_path, {**TRAIN, "l.txt": "b\na\nc\n", "l.json": '{"label": "b", "desc": "x"}\n{"label": "a"}\n'})
    data = section(tmp_path, {"train": "train.jsonl", "labels": labels})
    assert read_corpus(data, seed=0).labels == expected


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": label} for label in (10, 9, -1, 100)]
    write(tmp_path, {"t.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    assert read_corpus(section(tmp_path, {"train": "t.jsonl"}), seed=0).labels == ["-1", "9", "10", "100"]


def test_missing_parts_are_cut_from_training(tmp_path: Path) -> None:
    rows = [{"text": str(n), "label": n % 4} for n in range(100)]
    write(tmp_path, {"t.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    data = section(tmp_path, {"train": "t.jsonl", "split": {"valid": 0.2, "test": 0.1}})
    corpus = read_corpus(data, seed=3)
    assert {part: len(rows) for part, rows in corpus.parts.items()} == {"train": 70, "valid": 20, "test": 10}
    assert list(corpus.parts) == ["train", "valid", "test"]
    for part in corpus.parts:
        for text, line, number in zip(
            corpus.parts[part].text, corpus.parts[part].line, corpus.numbers[part], strict=True
        ):
            assert (int(text), int(text) % 4) == (line - 1, number)
    assert corpus.parts["valid"].text == read_corpus(data, seed=3).parts["valid"].text
    assert corpus.parts["valid"].text != read_corpus(data, seed=4).parts["valid"].text


def test_files_that_come_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data.model_validate({"train": "package:samples/none.tsv"})
    with pytest.raises(InputError, match=r"data\.train: package:samples/none\.tsv: no such file"):
        source_files(data)


def test_source_files(tmp_path: Path) -> None:
    write(tmp_path, {**TRAIN, "l.txt": "a\nb\n"})
    Dataset.from_dict({"text": ["一"]}).save_to_disk(tmp_path / "more")
    data = section(tmp_path, {"train": ["train.jsonl", "hub:x/train"], "transfer": "more", "labels": "l.txt"})
    files = source_files(data)
    assert files[0] == tmp_path / "train.jsonl"
    assert files[-1] == tmp_path / "l.txt"
    assert {path.parent.name for path in files[1:-1]} == {"more"}


def test_a_format_says_how_files_are_read_and_nothing_of_other_transfer_rows(tmp_path: Path) -> None:
    write(tmp_path, {"t.tsv": "text\tlabel\nx\ta\ny\tb\n"})
    Dataset.from_dict({"text": ["一"]}).save_to_disk(tmp_path / "more")
    data = section(tmp_path, {"train": "t.tsv", "format": "tsv", "transfer": ["hub:x/train", "more"]})
    assert [source.format for source in find_sources(data)] == ["tsv", "hub", "dataset"]


def test_numbers_of_labels_that_are_not_read_are_not_judged(tmp_path: Path) -> None:
    """A data set may have several columns of class labels; -1 beside a label is an error in the one that is read."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"]),
                         "topics": List(ClassLabel(names=["x", "y"]))})  # fmt: skip
    rows = {"text": ["一", "二"], "label": [0, 1], "topics": [[0, 1], [-1, 1]]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    corpus = check_sources(section(tmp_path, {"train": "set"}))
    assert list(corpus.parts["train"].label) == ["a", "b"]
    topics = {"task": "multi_label", "columns": {"label": "topics"}}
    with pytest.raises(InputError, match=r"set:2: 'topics' holds \[-1, 1\]"):
        check_sources(section(tmp_path, {"train": "set", **topics}))
    write(tmp_path, {"t.jsonl": lines({"text": "x", "topics": ["x"]}, {"text": "y", "topics": ["y"]})})
    corpus = check_sources(section(tmp_path, {"train": "t.jsonl", "transfer": "set", **topics}))
    assert corpus.counts["transfer"] == 2


def test_reading_needs_neither_torch_nor_datasets(tmp_path: Path) -> None:
    write(tmp_path, TRAIN)
    program = (
        "import sys\n"
        "from dtrain.data import check_tokenizers, tokenizer_name\n"
        "from dtrain.tasks.corpus import check_sources, source_files\n"
        "from dtrain.recipe.data import Data\n"
        f"check_sources(Data.model_validate({{'train': {str(tmp_path / 'train.jsonl')!r}}}))\n"
        "heavy = {'torch', 'datasets', 'transformers', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- bad files -------------------------------------------------------------------------------------


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_set_up_is_good(tmp_path: Path) -> None:
    write(tmp_path, TRAIN)
    check_sources(section(tmp_path, {"train": "train.jsonl"}))


DEEP = b"[" * 100_000 + b"\n"
BAD: dict[str, tuple[dict[str, str | bytes], dict[str, Any], list[str]]] = {
    "no such file": ({}, {"train": "none.jsonl"}, ["data.train: ", "none.jsonl: no such file"]),
    "empty file": ({"train.jsonl": ""}, {}, ["data.train: ", "train.jsonl: the file is empty"]),
    "blank file": ({"train.jsonl": "\n \n"}, {}, ["data.train: ", "holds no rows"]),
    "header alone": ({"t.tsv": "text\tlabel\n"}, {"train": "t.tsv"}, ["t.tsv: holds no rows"]),
    "no JSON": ({"train.jsonl": GOOD + '{"text": \n'}, {}, ["train.jsonl:3: not valid JSON", "column"]),
    "a JSON array": ({"train.jsonl": '[{"text": "x"}]\n'}, {}, ["train.jsonl:1: must be a JSON object, found a list", "each line must be one object"]),
    "a JSON array over lines": ({"train.jsonl": '[\n{"text": "x", "label": 1}\n]\n'}, {}, ["train.jsonl:1: not valid JSON", "each line must be one object"]),
    "a JSON text": ({"train.jsonl": GOOD + '"x"\n'}, {}, ["train.jsonl:3: must be a JSON object, found a text"]),
    "deep JSON": ({"train.jsonl": DEEP}, {}, ["train.jsonl:1: not usable JSON: nested too deeply"]),
    "broken UTF-8": ({"train.jsonl": GOOD.encode() + b'{"text": "\xff"}\n'}, {}, ["train.jsonl:3: not valid UTF-8 (byte 0xff at 11)"]),
    "another encoding": ({"train.jsonl": GOOD.encode("gb18030")}, {}, ["train.jsonl:2: not valid UTF-8 (byte 0xb6 at 11)"]),
    "missing key": ({"train.jsonl": GOOD + lines({"txt": "x", "label": "a"})}, {}, ["train.jsonl:3: has no 'text'; did you mean 'txt'? (found: txt, label)"]),
    "missing label": ({"train.jsonl": GOOD + lines({"text": "x", "lable": "a"})}, {}, ["train.jsonl:3: has no 'label'; did you mean 'lable'?"]),
    "empty label": ({"t.tsv": "text\tlabel\nx\ta\ny\t\n"}, {"train": "t.tsv"}, ["t.tsv:3: 'label' is empty"]),
    "label in pieces": ({"train.jsonl": GOOD + lines({"text": "x", "label": 1.5})}, {}, ["train.jsonl:3: 'label' must be a text or a whole number, found the number 1.5"]),
    "label true": ({"train.jsonl": GOOD + lines({"text": "x", "label": True})}, {}, ["train.jsonl:3: 'label' must be", "found true/false"]),
    "text a number": ({"train.jsonl": GOOD + lines({"text": 5, "label": "a"})}, {}, ["train.jsonl:3: 'text' must be a text, found the number 5"]),
    "text null": ({"train.jsonl": GOOD + lines({"text": None, "label": "a"})}, {}, ["train.jsonl:3: 'text' must be a text, found nothing (null)"]),
    "half a character": ({"train.jsonl": GOOD + '{"text": "a\\ud800", "label": "a"}\n'}, {}, ["train.jsonl:3: holds half of a surrogate pair"]),
    "a column too many": ({"t.tsv": "text\tlabel\nx\ta\ny\tb\tc\n"}, {"train": "t.tsv"}, ["t.tsv:3: 3 column(s), but the header has 2; a text may hold a tab: write a space in its place, or delete the row"]),
    "a comma too many": ({"t.csv": "x,a\ny, z,b\n"}, {"train": "t.csv", "header": False, "columns": {"text": 0, "label": 1}}, ["t.csv:2: 3 column(s), but line 1 has 2; a text may hold ',': put that text in quotes, or delete the row"]),
    "Excel's own line": ({"t.csv": "sep=;\ntext;label\nx;a\n"}, {"train": "t.csv"}, ["t.csv:1: is a line for Excel alone (sep=;): delete it, and set data.delimiter: ';'"]),
    "Excel's own line, in quotes": ({"t.csv": '"sep=;"\ntext;label\nx;a\n'}, {"train": "t.csv", "delimiter": ";"}, ["t.csv:1: is a line for Excel alone (sep=;): delete it"]),
    "a column too few": ({"t.csv": "x,a\ny\n"}, {"train": "t.csv", "header": False, "columns": {"text": 0, "label": 1}}, ["t.csv:2: 1 column(s), but line 1 has 2; a column is missing, or a text continues on the next line: correct the row, or delete it"]),
    "no such header": ({"t.tsv": "sentence\tlabel\nx\ta\n"}, {"train": "t.tsv"}, ["t.tsv:1: has no 'text'", "found: sentence, label"]),
    "header twice": ({"t.tsv": "text\ttext\nx\ta\n"}, {"train": "t.tsv"}, ["t.tsv:1: the header names column 'text' twice"]),
    "no such column": ({"t.tsv": "x\ta\n"}, {"train": "t.tsv", "header": False, "columns": {"text": 0, "label": 4}}, ["t.tsv:1: has no column 4 (2 columns, counted from 0)"]),
    "name without header": ({"t.tsv": "x\ta\n"}, {"train": "t.tsv", "header": False}, ["data.columns.text: 'text' is a name, but", "data.columns.label: 'label' is a name"]),
    "number with header": ({"t.tsv": "text\tlabel\nx\ta\n"}, {"train": "t.tsv", "columns": {"text": 0}}, ["data.columns.text: 0 is a number", "has a header"]),
    "number for JSON": (TRAIN, {"columns": {"label": 1}}, ["data.columns.label: 1 is a number", "have names"]),
    "open quote": ({"t.csv": 'text,label\nx,a\n"y,b\nz,a\n'}, {"train": "t.csv"}, ["t.csv:3: not valid CSV"]),
    "labelled .txt": ({"train.txt": "x\ta\n"}, {"train": "train.txt"}, ["data.train: ", "train.txt: how a .txt holds labels must be said: set data.format"]),
    "unknown suffix": ({"train.dat": "x"}, {"train": "train.dat"}, ["the suffix .dat tells no format; set data.format"]),
    "lines with labels": ({"train.txt": "x\n"}, {"train": "train.txt", "format": "lines"}, ["plain lines hold no labels"]),
    "file as folder": (TRAIN, {"format": "dataset"}, ["train.jsonl: is a file; data.format 'dataset' reads folders"]),
    "hub without a part": ({}, {"train": "hub:name"}, ["data.train: hub:name: must have the form hub:name[:config]/split"]),
    "hub as TSV": ({}, {"train": "hub:name/train", "format": "tsv"}, ["hub:name/train: is a hub data set, but data.format is 'tsv'"]),
    "lines for pairs": ({**TRAIN, "more.txt": "x\n"}, {"task": "pairs", "columns": {"text_b": "b"}, "transfer": "more.txt"}, ["data.transfer: ", "task 'pairs' needs two"]),
    "half a pair": (TRAIN, {"task": "pairs", "columns": {"text_b": "b"}}, ["train.jsonl:1: has no 'b'"]),
    "one label": ({"train.jsonl": lines({"text": "x", "label": "a"})}, {}, ["data.train: only one label ('a')"]),
    "not in the map": (TRAIN, {"labels": ["aa", "b"]}, ["train.jsonl:1: label 'a' is not in data.labels; did you mean 'aa'? (allowed: aa, b)"]),
    "never seen": ({**TRAIN, "v.jsonl": GOOD + lines({"text": "x", "label": "c"})}, {"valid": "v.jsonl"}, ["v.jsonl:3: label 'c' does not occur in training (allowed: a, b)"]),
    "test partly labelled": ({**TRAIN, "t.jsonl": lines({"text": "x", "label": "a"}, {"text": "y"})}, {"test": "t.jsonl"}, ["t.jsonl:2: has no label, but other test rows have one"]),
    "label file missing": (TRAIN, {"labels": "none.txt"}, ["data.labels: ", "none.txt: no such file"]),
    "label twice": ({**TRAIN, "l.txt": "a\nb\na\n"}, {"labels": "l.txt"}, ["l.txt:3: label 'a' is already in line 1"]),
    "label file of one": ({**TRAIN, "l.txt": "a\n"}, {"labels": "l.txt"}, ["data.labels: ", "holds 1 label(s)"]),
    "label file without label": ({**TRAIN, "l.json": '{"name": "a"}\n'}, {"labels": "l.json"}, ["l.json:1: must be a label, or a JSON object"]),
    "label file a list": ({**TRAIN, "l.json": '{"label": ["a"]}\n'}, {"labels": "l.json"}, ["l.json:1: \"label\" must be a text or a whole number"]),
    "id twice": ({"train.jsonl": lines({"text": "x", "label": "a", "id": 1}, {"text": "y", "label": "b", "id": "1"})}, {"columns": {"id": "id"}}, ["train.jsonl:2: id '1' is already that of ", "train.jsonl:1"]),
    "id missing": ({"train.jsonl": lines({"text": "x", "label": "a", "id": 1}, {"text": "y", "label": "b"})}, {"columns": {"id": "id"}}, ["train.jsonl:2: has no 'id'"]),
    "id nowhere": (TRAIN, {"columns": {"id": "uid"}}, ["data.columns.id: no file has a column 'uid'"]),
    "id no id": ({"train.jsonl": lines({"text": "x", "label": "a", "id": ""})}, {"columns": {"id": "id"}}, ["train.jsonl:1: 'id' must be a text or a whole number, found an empty text"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    files, data, expected = BAD[case]
    write(tmp_path, files)
    with pytest.raises(InputError) as caught:
        check_sources(section(tmp_path, {"train": "train.jsonl", **data}))
    message = str(caught.value)
    for text in expected:
        assert text in message


def test_bad_folders(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"text": ["一"], "label": ["a"]})
    DatasetDict({"train": dataset, "validation": dataset}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"both: holds several parts; name one of them \(train, validation\)"):
        check_sources(section(tmp_path, {"train": "both"}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: is no folder written by datasets' save_to_disk"):
        check_sources(section(tmp_path, {"train": "folder"}))
    dataset.save_to_disk(tmp_path / "torn")
    next((tmp_path / "torn").glob("*.arrow")).write_bytes(b"torn")
    with pytest.raises(InputError, match="torn: cannot be read: "):
        check_sources(section(tmp_path, {"train": "torn"}))


def test_a_kind_of_problem_is_one_line(tmp_path: Path) -> None:
    wrong = [{"text": n, "label": "a"} for n in range(50)] + [{"text": "x", "label": [n]} for n in range(3)]
    write(tmp_path, {"train.jsonl": lines(*wrong)})
    with pytest.raises(InputError) as caught:
        check_sources(section(tmp_path, {"train": "train.jsonl"}))
    assert [problem.rpartition("/")[2] for problem in caught.value.problems] == [
        "train.jsonl:1: 'text' must be a text, found the number 0 (49 more like it)",
        "train.jsonl:51: 'label' must be a text or a whole number, found a list (a row has one label here; give each its "
        "own row, or choose) (2 more like it)",
    ]


def test_kinds_are_told_together_up_to_a_limit(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_sources(section(tmp_path, {"train": [f"none{n}.jsonl" for n in range(50)]}))
    assert len(caught.value.problems) == 21
    assert "none19.jsonl: " in caught.value.problems[19]
    assert caught.value.problems[20] == "stopped reading after 20 problems"


def test_many_labels_are_cut_in_the_message(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": lines({"text": "x", "label": "nope"})})
    with pytest.raises(InputError, match=r"\(allowed: L0, .*, L19, \.\.\. 10 more\)"):
        check_sources(section(tmp_path, {"train": "train.jsonl", "labels": [f"L{n}" for n in range(30)]}))
