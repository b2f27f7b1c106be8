"""Files as people and spreadsheets write them: read as they show, or refused in one line that says what to set.

Each test stands for a kind of small input that was misread without a word; where the inputs themselves are here
(../shared/cases), they are read, too.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.__main__ import main
from dtrain.data.corpus import Corpus
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.tasks.corpus import check_sources, find_sources
from tests.conftest import ROOT

CASES = ROOT.parent / "shared" / "cases"
Write = Callable[[str, "str | bytes"], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return to_file


@pytest.fixture
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("the small inputs are not here (../shared/cases from the repository's root)")
    return CASES


def read(train: Any, **keys: Any) -> Corpus:
    return check_sources(Data.model_validate({"train": train, "split": {"valid": 0}, **keys}))


def refused(train: Any, **keys: Any) -> str:
    """The one line that refuses it."""
    with pytest.raises(InputError) as caught:
        read(train, **keys)
    (problem,) = caught.value.problems
    return problem


NUMBERED = {"header": False, "columns": {"text": 0, "label": 1}}


# --- quotes ----------------------------------------------------------------------------------------


def stray(rows: int = 30, opens: int = 3, closes: int = 8) -> str:
    """A CSV file with a quote at the start of one row's text and at the end of a later one's."""
    quoted = {opens: '"第{}条{},{}', closes: '第{}条{}",{}'}
    words = [("股票", "财经"), ("球赛", "体育")]
    lines = [quoted.get(n, "第{}条{},{}").format(n, *words[n % 2]) for n in range(rows)]
    return "\n".join(["text,label", *lines]) + "\n"


def test_rows_that_a_stray_quote_swallowed_are_refused(write: Write) -> None:
    train = write("t.csv", stray())
    problem = refused(train)
    assert problem.startswith(
        f"{train}:5: a quotation mark opens here and joins several lines into one row, but line 5 looks like a row"
    )
    assert "'体育'" in problem
    assert "set data.quoting: none" in problem
    corpus = read(train, quoting="none")
    assert len(corpus.parts["train"]) == 30
    assert corpus.parts["train"].text[3] == '"第3条球赛'
    assert list(corpus.parts["train"].line) == list(range(2, 32))
    meant = read(train, quoting="quotes")
    assert list(meant.parts["train"].line) == [2, 3, 4, 5, *range(11, 32)]  # each row knows the line it began at
    assert meant.remarks == [f"{train}:5: 1 row(s) span several lines, the first begins here"]


def test_the_line_of_a_swallowed_row_that_equals_the_line_before(write: Write) -> None:
    assert ":2: a quotation mark opens here" in (problem := refused(write("t.csv", 'label,text\na,"\na,"\n')))
    assert "but line 3 looks like a row of its own with the label 'a'" in problem


def test_swallowed_rows_of_unlabelled_files_are_refused(write: Write) -> None:
    train = write("t.csv", "text,label\n一,体育\n二,财经\n")
    assert ":5: a quotation mark opens here" in refused(train, transfer=write("more.csv", stray()))


@pytest.mark.parametrize("label_first", [False, True])
def test_texts_of_several_lines_are_told_and_kept(write: Write, label_first: bool) -> None:
    texts = ["一行", "两\n行", '说"好", 也\n\n是,体育', "三"]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["label", "text"] if label_first else ["text", "label"])
    for n, text in enumerate(texts):
        writer.writerow(["ab"[n % 2], text] if label_first else [text, "ab"[n % 2]])
    train = write("t.csv", file.getvalue())
    corpus = read(train)
    assert corpus.parts["train"].text == texts
    assert corpus.parts["train"].label == ["a", "b", "a", "b"]
    assert list(corpus.parts["train"].line) == [2, 3, 5, 8]
    assert corpus.remarks == [f"{train}:3: 2 row(s) span several lines, the first begins here"]


def test_blanks_before_quotes_are_no_part_of_a_column(write: Write) -> None:
    """As tables that people type have them; what only begins like a quoted column stays as it is."""
    rows = 'text, label\n"很好, 好", "a"\n不好, "b"\n "x, y", b\n "你好" 他说, a\n'
    corpus = read(write("t.csv", rows))
    assert corpus.parts["train"].label == ["a", "b", "b", "a"]
    assert corpus.parts["train"].text == ["很好, 好", "不好", "x, y", ' "你好" 他说']


def test_check_and_prepare_tell_remarks(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f'{"ab"[n % 2]},"第{n}\n条"\n' for n in range(20))
    train = write("t.csv", "label,text\n" + rows)
    model = "{type: textcnn, filters: 4, widths: [2]}"
    recipe = f"name: r\noutput_dir: {tmp_path}/runs\ndata: {{train: {train}, vocabulary: {{min_count: 1}}}}\n"
    recipe += f"students: [{{name: s, teachers: [], losses: [{{type: cross_entropy}}], model: {model}}}]\n"
    path = write("r.yaml", recipe)
    told = f"warning: {train}:2: 20 row(s) span several lines, the first begins here"
    assert main(["check", path]) == 0
    assert told in capsys.readouterr().err
    assert main(["prepare", path]) == 0
    assert told in capsys.readouterr().err
    info = json.loads((tmp_path / "runs/r/data/rows/data.json").read_text(encoding="utf-8"))
    assert info["remarks"] == [told.removeprefix("warning: ")]
    assert main(["check", path]) == 0  # the rows are prepared, and not read again
    assert told in capsys.readouterr().err


def test_the_stray_quotes_of_the_cases(cases: Path) -> None:
    train = str(cases / "csv-stray-quote" / "train.csv")
    assert ":12: a quotation mark opens here" in refused(train)
    assert len(read(train, quoting="none").parts["train"]) == 60
    whole = str(cases / "header-forgotten" / "train.tsv")
    assert ":5: a quotation mark opens here" in refused(whole, transfer=train.replace("train.csv", "predict.csv"))


def test_quotes_of_a_spreadsheet_in_a_tab_separated_file_are_told(write: Write) -> None:
    train = write("t.tsv", 'text\tlabel\n"他说""好"""\ta\n二\tb\n')
    (remark,) = read(train).remarks
    assert "t.tsv:2: 1 row(s) hold a column in quotes" in remark
    assert "data.quoting: quotes" in remark
    assert read(train, quoting="quotes").parts["train"].text == ['他说"好"', "二"]


# --- any dialect ----------------------------------------------------------------------------------

LABELS = ["体育", "财经", "a b"]
CELLS = st.text(st.sampled_from("ab体育,;\t|\"\n '。"), max_size=8)
ROWS = st.lists(st.tuples(CELLS, st.sampled_from(LABELS)), min_size=6, max_size=12).filter(
    lambda rows: len({label for _, label in rows}) > 1
)


def check_rows(content: bytes, name: str, shows: list[str], mistakes: int, **keys: Any) -> None:
    """The file gives the texts that it shows, or is refused in a line for each of the `mistakes` in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            corpus = read(str(path), **keys)
        except InputError as error:
            assert 1 <= len(error.problems) <= mistakes, error.problems
            assert all(re.match(rf"{re.escape(str(path))}:\d+: ", problem) for problem in error.problems), (
                error.problems
            )
            return
    assert corpus.parts["train"].text == shows


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    ROWS,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"]),
    st.booleans(),
)
def test_what_a_spreadsheet_writes_is_read_or_refused(
    rows: list[tuple[str, str]], separator: str, end: str, quoting: Any, encoding: str, told: bool
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerow(["text", "label"])
    writer.writerows(rows)
    dialect: dict[str, Any] = {}
    if told:
        named = {"\t": "tab"}.get(separator, separator)
        dialect = {"delimiter": named, "encoding": encoding.removesuffix("-sig"), "quoting": "quotes"}
    shows = [text for text, _ in rows]
    mistakes = 0 if told else (separator != ",") + (not encoding.startswith("utf-8"))
    if not told and separator == ",":
        # A text that looks like several rows of this very file is refused unless quotes are said to be meant.
        dialect = {"encoding": encoding.removesuffix("-sig")}
    check_rows(file.getvalue().encode(encoding), "t.csv", shows, max(1, mistakes), **dialect)
    if told:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t.csv"
            path.write_bytes(file.getvalue().encode(encoding))
            assert read(str(path), **dialect).parts["train"].text == shows  # never refused


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.text(st.sampled_from('ab体"'), min_size=1, max_size=6), st.booleans()), min_size=8, max_size=16
    ),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_a_person_writes_is_read_or_refused(rows: list[tuple[str, bool]], label_first: bool, end: str) -> None:
    """By hand, quotes are characters like others: a row a line is what the file shows."""
    rows = [("一", True), ("二", False), *rows]
    pairs = [(text, "x" if first else "y") for text, first in rows]
    lines = [",".join(reversed(pair) if label_first else pair) for pair in pairs]
    header = "label,text" if label_first else "text,label"
    content = end.join([header, *lines, ""]).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(content)
        assert read(str(path), quoting="none").parts["train"].text == [text for text, _ in rows]
        try:
            corpus = read(str(path))
        except InputError as error:
            assert len(error.problems) == 1, error.problems
            assert "data.quoting: none" in error.problems[0]
            return
    assert len(corpus.parts["train"]) == len(rows)


# --- encodings and line ends -----------------------------------------------------------------------

TABLE = "".join(f"第{n}条新闻的标题\t{n % 3}\n" for n in range(60))


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_another_encoding_is_one_line_that_names_it(write: Write, encoding: str) -> None:
    train = write("t.tsv", TABLE.encode(encoding))
    problem = refused(train, **NUMBERED)
    assert problem.startswith(f"{train}:1: not valid UTF-8 (byte 0x")
    assert f"it reads as {encoding}: set data.encoding: {encoding} (" in problem
    assert read(train, **NUMBERED, encoding=encoding).parts["train"].text[59] == "第59条新闻的标题"
    utf8 = write("u.tsv", TABLE)
    if encoding == "gb18030":
        assert "it reads as utf-8: set data.encoding: utf-8" in refused(utf8, **NUMBERED, encoding="ascii")


def test_no_such_encoding() -> None:
    with pytest.raises(ValueError, match="no encoding has the name 'gb-18030x'"):
        Data.model_validate({"train": "t.tsv", "encoding": "gb-18030x"})
    with pytest.raises(ValueError, match="no encoding has the name 'zip'"):
        Data.model_validate({"train": "t.tsv", "encoding": "zip"})


def test_line_ends_of_old_macs(write: Write) -> None:
    train = write("t.tsv", TABLE.replace("\n", "\r"))
    corpus = read(train, **NUMBERED)
    assert len(corpus.parts["train"]) == 60
    assert list(corpus.parts["train"].line) == list(range(1, 61))
    assert corpus.remarks == [f"{train}: has no line feed: its lines are taken to end at carriage returns"]


def test_the_encodings_of_the_cases(cases: Path) -> None:
    problem = refused(str(cases / "encodings" / "gbk.tsv"), **NUMBERED)
    assert (
        "gbk.tsv:1: not valid UTF-8 (byte 0xc2 at 1); it reads as gb18030: set data.encoding: gb18030 (99 more"
        in problem
    )
    gbk = read(str(cases / "encodings" / "gbk.tsv"), **NUMBERED, encoding="gb18030")
    mac = read(str(cases / "encodings" / "old_mac.tsv"), **NUMBERED)
    assert gbk.parts["train"].text[:60] == mac.parts["train"].text[:60]
    assert len(mac.parts["train"]) == 100


# --- packed, gathered, several files ----------------------------------------------------------------


def test_packed_files(write: Write) -> None:
    packed = gzip.compress(TABLE.encode())
    assert len(read(write("t.tsv.gz", packed), **NUMBERED).parts["train"]) == 60
    assert "t.tsv.gz: cannot be read: " in refused(write("t.tsv.gz", packed[:-9]), **NUMBERED)
    assert "t.tsv.gz: cannot be read: Not a gzipped file" in refused(write("t.tsv.gz", TABLE), **NUMBERED)


def test_parquet(tmp_path: Path, write: Write) -> None:
    Dataset.from_dict({"text": ["一", "二"], "label": ["a", "b"]}).to_parquet(tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet")).parts["train"].text == ["一", "二"]
    assert "b.parquet: cannot be read: " in refused(write("b.parquet", "text"))


def test_patterns_and_folders(write: Write, tmp_path: Path) -> None:
    for name in ("b.tsv", "a.tsv", "c.txt"):
        write(f"in/{name}", f"text\tlabel\n{name}\tx\n二\ty\n")
    for given_as in (f"{tmp_path}/in/*.tsv", f"{tmp_path}/in"):
        corpus = read(given_as)
        assert corpus.parts["train"].text == ["a.tsv", "二", "b.tsv", "二"]
        assert corpus.files == [f"{tmp_path}/in/a.tsv", f"{tmp_path}/in/b.tsv"]
    assert len(read(f"{tmp_path}/in", format="tsv").parts["train"]) == 6
    assert "in/*.csv: no such file" in refused(f"{tmp_path}/in/*.csv")
    data = Data.model_validate({"task": "tagging", "train": f"{tmp_path}/in/?.tsv", "valid": f"{tmp_path}/in/c.txt"})
    assert [Path(source.name).name for source in find_sources(data)] == ["a.tsv", "b.tsv", "c.txt"]


# --- one mistake, one line --------------------------------------------------------------------------

ROW = '{"text": "第%d条", "label": "%s"}\n'
MISTAKES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "wrong column": ("t.jsonl", "".join(ROW % (n, "ab"[n % 2]) for n in range(99)), {"columns": {"text": "txt"}}, ["t.jsonl:1: has no 'txt'; did you mean 'text'? (found: text, label); set data.columns to its names (98 more like it)"]),
    "wrong column of a table": ("t.tsv", "title\tlabel\n" + TABLE, {}, ["t.tsv:1: has no 'text' (found: title, label)"]),
    "semicolons": ("t.csv", "text;label\n" + "一, 二;a\n三;b\n" * 30, {}, ["t.csv:1: has no 'text' and no 'label' (found: text;label)", "separated by ';': set data.delimiter: ';'"]),
    "semicolons by number": ("t.csv", "一, 二;a\n三;b\n" * 30, NUMBERED, ["t.csv:2: 1 column(s), but line 1 has 2; it seems to be separated by ';': set data.delimiter: ';' (29 more like it)"]),
    "commas in a .tsv": ("t.tsv", "text,label\n" + "一,a\n二,b\n" * 30, {}, ["set data.delimiter: ','"]),
    "an array": ("t.json", json.dumps([{"text": "x", "label": n} for n in range(50)], indent=2), {}, ["t.json:1: not valid JSON", "one array", "jq -c '.[]' FILE"]),
    "objects over lines": ("t.json", "\n".join(json.dumps({"text": "x", "label": n}, indent=2) for n in range(50)), {}, ["t.json:1: not valid JSON", "objects over several lines"]),
    "no header": ("t.tsv", TABLE, {}, ["t.tsv:1: has no 'text' and no 'label' (found: 第0条新闻的标题, 0); if the file has no header, set data.header: false"]),
    "long cells": ("t.tsv", f"{'长' * 500}\t0\n" * 30, {}, [f"(found: {'长' * 57}..., 0)"]),
    "a key twice": ("t.jsonl", '{"text": "x", "label": "a", "label": "b", "n": 1, "n": 2}\n' * 9, {}, ["t.jsonl:1: 'label' must be a text or a whole number, found different values: the key is given twice in one object (8 more like it)"]),
    "several labels": ("t.jsonl", '{"text": "x", "label": ["a", "b"]}\n' * 9, {}, ["found a list (a row has one label here"]),
    "not in the list": ("t.tsv", "text\tlabel\n" + TABLE, {"labels": ["0", "1"]}, ["t.tsv:4: label '2' is not in data.labels (allowed: 0, 1); 19 more row(s) have this label"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_one_mistake_is_one_line(case: str, write: Write) -> None:
    name, content, keys, expected = MISTAKES[case]
    problem = refused(write(name, content), **keys)
    for text in expected:
        assert text in problem
    assert len(problem) < 500


def test_labels_that_only_another_part_has(write: Write) -> None:
    train = write("t.tsv", "text\tlabel\n一\ta\n二\tb\n")
    problem = refused(train, test=write("v.tsv", "text\tlabel\n一\ta\n二\tc\n三\td\n四\tc\n"))
    assert (
        "v.tsv:3: label 'c' does not occur in training (allowed: a, b); 2 more row(s) have this label or 'd'" in problem
    )
    assert "list all of them in data.labels" in problem
    first = write("h.tsv", "text\tlabel\n一\ta\n")
    assert "if the file has a header, set data.header: true" in refused(
        write("n.tsv", "一\ta\n二\tb\n"), test=first, **NUMBERED
    )


def test_a_key_twice_with_one_value_is_no_mistake(write: Write) -> None:
    train = write("t.jsonl", '{"text": "x", "text": "x", "label": "a", "n": 1, "n": 2}\n{"text": "y", "label": "b"}\n')
    assert read(train).parts["train"].text == ["x", "y"]


# --- names for numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["file", "list"])
def test_labels_name_the_numbers_of_the_rows(write: Write, named: str) -> None:
    names = ["体育", "财经", "科技"]
    labels = write("class.txt", "\n".join(names) + "\n") if named == "file" else names
    corpus = read(write("t.tsv", TABLE), labels=labels, **NUMBERED)
    assert corpus.labels == names
    assert corpus.numbers["train"].tolist() == [n % 3 for n in range(60)]
    assert corpus.parts["train"].label[:3] == names
    assert corpus.remarks == ["data.labels: names the numbers of the rows: 0 is '体育', 2 is '科技'"]


def test_numbers_without_a_name_are_refused(write: Write) -> None:
    assert "label '0' is not in data.labels" in refused(write("t.tsv", TABLE), labels=["体育", "财经"], **NUMBERED)


def test_the_class_names_of_the_cases(cases: Path) -> None:
    folder = cases / "class-names"
    names = (folder / "class.txt").read_text(encoding="utf-8").split()
    keys = {"valid": str(folder / "dev.txt"), "labels": str(folder / "class.txt"), "format": "tsv", **NUMBERED}
    corpus = read(str(folder / "train.txt"), **keys)
    assert corpus.labels == names
    lines = (folder / "dev.txt").read_text(encoding="utf-8").splitlines()
    assert corpus.parts["valid"].label == [names[int(line.split("\t")[1])] for line in lines]


# --- remarks ----------------------------------------------------------------------------------------


def test_a_header_that_is_read_as_a_row_is_told(write: Write) -> None:
    train = write("t.tsv", "text\tlabel\n" + TABLE)
    (remark,) = read(train, **NUMBERED).remarks
    assert remark.startswith(f"{train}:1: no other row has the label 'label', and data.header is false")
    assert read(write("u.tsv", TABLE), **NUMBERED).remarks == []


def test_texts_with_opposite_labels_are_told(write: Write) -> None:
    train = write("t.tsv", "text\tlabel\n" + "".join(f"{n}\ta\n{n}\tb\n" for n in range(10)) + "一\ta\n" * 5)
    (remark,) = read(train).remarks
    assert remark.startswith(f"{train}:3: 20 of 25 training rows have a text that also occurs with another label")
    assert "here '0' has the label 'b', earlier 'a'" in remark


def test_one_file_in_two_parts_is_told(write: Write, tmp_path: Path) -> None:
    train, valid = write("t.tsv", "text\tlabel\n一\ta\n二\tb\n"), write("v.tsv", "text\tlabel\n三\ta\n四\tb\n")
    remarks = read(train, valid=valid, test=f"{tmp_path}/./v.tsv").remarks
    assert remarks[0] == f"{valid}: is used for both data.valid and data.test"
    copied = write("w.tsv", Path(valid).read_text(encoding="utf-8"))
    assert read(train, valid=valid, test=copied).remarks == ["data.valid and data.test hold the same texts"]
    assert read(train, transfer=train).remarks == []


def test_empty_columns_at_the_margin_of_a_spreadsheet(write: Write) -> None:
    rows = "".join(f"第{n}条,{'ab'[n % 2]},,\n" for n in range(20))
    corpus = read(write("t.csv", "text,label,,\n" + rows))
    assert (corpus.labels, sum(corpus.counts.values())) == (["a", "b"], 20)


def test_texts_of_training_in_another_part_are_told_in_any_order(write: Write) -> None:
    """A shuffled copy, or training rows that slipped into the test: `check` was silent."""
    rows = [f"第{n}条\t{'ab'[n % 2]}\n" for n in range(20)]
    train, copied = (
        write("t.tsv", "text\tlabel\n" + "".join(rows)),
        write("v.tsv", "text\tlabel\n" + "".join(rows[::-1])),
    )
    assert read(train, valid=copied).remarks == ["data.train and data.valid hold the same texts"]
    other = "".join(f"另外{n}\ta\n" for n in range(7))
    slipped = write("w.tsv", "text\tlabel\n" + other + "".join(rows[:3]))
    assert read(train, test=slipped).remarks == ["data.test: 3 of 10 rows have a text that is also in data.train"]
    few = write("x.tsv", "text\tlabel\n" + other + "再\ta\n啊\ta\n" + rows[0])
    assert read(train, test=few).remarks == []
    assert read(train, transfer=copied).remarks == []


def test_the_forgotten_header_of_the_cases(cases: Path) -> None:
    (remark,) = read(str(cases / "header-forgotten" / "train.tsv"), **NUMBERED).remarks
    assert "train.tsv:1: no other row has the label 'label'" in remark
