"""What predict reads: formats, columns and lines of a file or of standard input."""

import pickle
import tracemalloc

import pytest

from dtrain.data import columns as columns_of_rows
from dtrain.errors import InputError
from dtrain.predict import texts as module
from dtrain.predict.blocks import blocks_of
from dtrain.predict.texts import read_texts
from dtrain.recipe.data import Data

NUMBERED = {"train": "train.tsv", "header": False, "columns": {"text": 0, "label": 1}}
NAMED = {"train": "train.tsv", "columns": {"text": "text", "label": "label"}}
JSON = {"train": "train.jsonl", "columns": {"text": "text", "label": "label"}}
PAIRS = {"task": "pairs", "train": "train.tsv", "columns": {"text": "a", "text_b": "b", "label": "label"}}
NUMBERED_PAIRS = {**PAIRS, "header": False, "columns": {"text": 0, "text_b": 1, "label": 2}}
TAGGING = {"task": "tagging", "train": "train.conll"}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read a content as a file of this name, or as standard input."""

    def work(section, name, content, written_in="utf-8", **options):
        path = tmp_path / ("stdin" if name == "-" else name)
        path.write_text(content, encoding=written_in)
        monkeypatch.setattr(module, "STDIN", path)
        train = tmp_path / section["train"]
        train.write_text("the training rows are not looked at")
        return read_texts(
            Data.model_validate({**section, "train": str(train)}), "-" if name == "-" else str(path), **options
        )

    return work


# --- columns -----------------------------------------------------------------------------------------

# As `predict-columns`: the first column holds no texts, and the recipe's training file has its texts there.
HEADER = "qid\ttext_a\n0\t冠在军在了\n1\t军在队冠\n2\t是在是队\n"


def test_a_header_is_not_a_row_of_numbered_columns(read):
    with pytest.raises(InputError) as refused:
        read(NUMBERED, "new.tsv", HEADER)
    (problem,) = refused.value.problems
    assert problem.startswith("--input: ") and "begins with the header 'qid', 'text_a'" in problem
    assert "--columns text=NAME" in problem


@pytest.mark.parametrize("content", ['[{"text": "好"}, {"text": "坏"}]\n', '[\n  {"text": "好"}\n]\n'])
def test_an_array_is_refused_from_standard_input_as_from_a_file(read, content):
    """It was answered line by line, brackets and all."""
    for section in (JSON, NAMED):
        for name in ("-", "new.json", "new.txt"):
            with pytest.raises(InputError, match="the file seems to hold one array, .* jq -c '...' FILE > FILE.jsonl"):
                read(section, name, content)
    assert read(JSON, "-", "[图片] 好\n").text == ["[图片] 好"]


def test_a_conll_file_needs_no_label_of_the_recipes_name(read):
    """A recipe of JSON lines names its label, which rows to be answered have not."""
    columns = {"label": "triggers", "privileged": "arguments"}
    section = {"task": "tagging", "train": "train.jsonl", "columns": columns}
    content = "去 O\n北 B-where\n京 I-where\n"
    assert read(section, "new.conll", content).text == ["去北京"]
    found = read(section, "new.conll", content, columns=["text=0,privileged=1"], privileged=True)
    assert found.privileged == [[(1, 3, "where")]]
    with pytest.raises(InputError, match="privileged: 'arguments' is a name, and the columns of .* have numbers"):
        read(section, "new.conll", content, privileged=True)
    with pytest.raises(InputError, match="--columns: privileged: is only for a model .* and is given them"):
        read(section, "new.conll", content, columns=["text=0,privileged=1"])
    with pytest.raises(InputError, match=r"hold no annotations, and --columns: privileged names some \('arguments'\)"):
        read(section, "new.txt", "去北京\n", privileged=True)


def test_columns_of_the_input_are_named(read, capsys):
    found = read(NUMBERED, "new.tsv", HEADER, columns=["text=text_a"])
    assert (found.text, list(found.lines)) == (["冠在军在了", "军在队冠", "是在是队"], [2, 3, 4])
    assert read(NUMBERED, "new.tsv", HEADER, columns=["text=text_a,id=qid"]).ids == [0, 1, 2]
    # Or it is said that the first row is one.
    assert capsys.readouterr().err == ""
    assert read(NUMBERED, "new.tsv", HEADER, columns=["text=1"]).text[0] == "text_a"
    assert "--columns: by numbers, so the first row of " in capsys.readouterr().err
    found = read(NAMED, "new.tsv", "x\t好\ny\t坏\n", columns=["text=1", "id=0"])
    assert (found.text, found.ids, list(found.lines)) == (["好", "坏"], ["x", "y"], [1, 2])


def test_what_is_read_is_called_source_where_a_text_is_written(read):
    sides = {"task": "seq2seq", "train": "train.tsv", "columns": {"source": "en", "target": "zh"}}
    content = '{"english": "a dog", "number": 7}\n'
    for role in ("source", "text"):
        found = read(sides, "new.jsonl", content, columns=[f"{role}=english,id=number"])
        assert (found.text, found.ids) == (["a dog"], [7])
    with pytest.raises(InputError, match="'source=english' is not of the form text=COLUMN"):
        read(JSON, "new.jsonl", content, columns=["source=english"])


def test_sources_are_read_where_the_recipe_has_its_targets_in_other_files(read):
    section = {"task": "seq2seq", "train": "train.en", "targets": {"train": "train.zh"}}
    for name in ("new.txt", "-", "new.en"):
        assert read(section, name, "one\n\ntwo\n").text == ["one", "", "two"]


def test_a_column_of_ids_is_not_read_as_text(read):
    """Without a header, only the numbers tell that the columns are others than the recipe's."""
    ids = "17\t冠在军在了\n18\t军在队冠\n"
    with pytest.raises(InputError) as refused:
        read(NUMBERED, "new.tsv", ids)
    (problem,) = refused.value.problems
    assert problem.startswith("--input: ") and "holds whole numbers alone: give --columns text=1 (or text=0" in problem
    assert read(NUMBERED, "new.tsv", ids, columns=["text=1"]).text == ["冠在军在了", "军在队冠"]
    assert read(NUMBERED, "new.tsv", ids, columns=["text=0"]).text == ["17", "18"]
    for texts in ("17\t1\n18\t0\n", "17\tx\n多\ty\n", "17\n18\n"):  # numbers everywhere; one text; one column
        assert len(read(NUMBERED, "new.tsv", texts).text) == 2


@pytest.mark.parametrize(
    "content",
    [
        "OK\tpositive\n很好\tpositive\n",  # a label, which comes again
        "good\tpos\nbad\tneg\nfine\tpos\n",  # rows like the first
        "好\t体育\n坏\t财经\n",
        "text\n好\n坏\n",  # one column: it may be a text
        "OK\tgood\n",
    ],
)
def test_rows_that_look_like_a_header_are_read(read, content):
    assert len(read(NUMBERED, "new.tsv", content).text) == len(content.splitlines())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["txt=a"],
            r"--columns: 'txt=a' is not of the form text=COLUMN; did you mean 'text'\? \(allowed: text, text_b, id",
        ),
        (["text"], "--columns: 'text' is not of the form text=COLUMN"),
        (["text=a,id=0"], "--columns: give names .* or numbers .*, not both"),
        (["text_b=b"], "--columns: text_b: is only for task 'pairs'"),
    ],
)
def test_columns_that_cannot_be(read, columns, message):
    with pytest.raises(InputError, match=message):
        read(NUMBERED, "new.tsv", HEADER, columns=columns)


def test_columns_of_plain_lines_are_refused(read):
    """The whole line was answered, as if no column had been named."""
    for name in ("new.txt", "-"):
        for columns in (["text=text"], ["text=1"], ["text=0,id=1"]):
            with pytest.raises(
                InputError, match=r"--columns: .* is read as plain lines, .* --format \(jsonl, tsv, csv\)"
            ):
                read(JSON, name, "id,text\n7,好\n", columns=columns)
    assert read(JSON, "new.txt", "id,text\n7,好\n", columns=["text=text,id=id"], format="csv").ids == [7]
    assert read(JSON, "new.txt", "好\n", columns=["text=0"]).text == ["好"]


def test_a_column_of_ids_that_is_asked_for_is_there(read):
    """Rows were numbered without a word."""
    for name, content in {"new.jsonl": '{"text": "好", "key": 7}\n', "new.csv": "text,key\n好,7\n"}.items():
        with pytest.raises(InputError, match="--columns: id: .* has no column 'kei'"):
            read(JSON, name, content, columns=["text=text,id=kei"])
        assert read(JSON, name, content, columns=["text=text,id=key"]).ids == [7]


def test_numbers_do_not_fit_named_columns(read):
    with pytest.raises(InputError, match="--columns: text: 0 is a number, but the columns of .* have names"):
        read(NUMBERED, "new.jsonl", '{"text": "x"}\n')


# --- formats -----------------------------------------------------------------------------------------

TABLE = "label\ttext\nx\t好\n"


@pytest.mark.parametrize(
    ("section", "content", "format", "text"),
    [
        (JSON, '{"text": "好"}\n{"text": "坏"}\n', None, ["好", "坏"]),
        (NAMED, '{"text": "好"}\n', None, ["好"]),  # whatever the recipe's
        (JSON, "好\n坏\n", None, ["好", "坏"]),
        (JSON, '{"text": "好"}\n', "lines", ['{"text": "好"}']),
        (NAMED, TABLE, None, ["好"]),
        (NAMED, "好\n坏\n", None, ["好", "坏"]),
        (NUMBERED, "好\tx\n坏\ty\n", None, ["好", "坏"]),
        ({**NAMED, "train": "train.csv"}, 'label,text\nx,"a, b"\n', None, ["a, b"]),
        ({**NAMED, "train": "train.csv"}, "Hello, how are you\n", None, ["Hello, how are you"]),
        (TAGGING, "好\n", None, ["好"]),
        (TAGGING, "好 O\n的 B-X\n", None, ["好的"]),
        (TAGGING, '{"text": "好的"}\n', None, ["好的"]),
    ],
)
def test_standard_input_is_read_as_the_recipes_files_are(read, section, content, format, text):
    assert read(section, "-", content, format=format).text == text


def test_pairs_come_from_standard_input(read):
    found = read(PAIRS, "-", "a\tb\n好\t坏\n")
    assert (found.text, found.text_b) == (["好"], ["坏"])
    found = read(NUMBERED_PAIRS, "-", "好\t坏\n")
    assert (found.text, found.text_b) == (["好"], ["坏"])
    found = read(PAIRS, "-", '{"x": "好", "y": "坏"}\n', columns=["text=x,text_b=y"])
    assert (found.text, found.text_b) == (["好"], ["坏"])
    with pytest.raises(InputError, match="--input: -: plain lines hold one text, and task 'pairs' needs two"):
        read(PAIRS, "-", "好\n")


def test_what_standard_input_was_read_as_is_said_where_it_is_not_the_recipes(read, capsys):
    read(JSON, "-", "好\n")
    assert capsys.readouterr().err == "warning: --input: - is read as plain lines; --format says otherwise\n"
    read(JSON, "-", '{"text": "好"}\n')
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("section", "content", "options", "message"),
    [
        (JSON, "", {}, "--input: -: nothing was read"),
        (JSON, '{"text": 3}\n', {}, "^-:1: 'text' must be a text"),
        (NAMED, "qid\ttext_a\n0\t好\n", {}, "^-:1: has no 'text'; did you mean 'text_a'"),
    ],
)
def test_standard_input_that_cannot_be_read(read, section, content, options, message):
    with pytest.raises(InputError, match=message):
        read(section, "-", content, **options)


def test_format_decides_over_the_suffix(read):
    assert read(JSON, "new.tsv", '{"text": "好"}\n', format="jsonl").text == ["好"]
    assert read(NAMED, "new.txt", TABLE).text == ["好"]


def test_a_suffix_that_tells_nothing_wants_an_option(read):
    """The recipe's data.format was advised, with which no model counts as trained."""
    told = r"^--input: .*new\.dat: the suffix \.dat tells no format; give --format \(lines, jsonl, tsv or csv\)"
    with pytest.raises(InputError, match=told):
        read(JSON, "new.dat", "好\n")
    assert read(JSON, "new.dat", "好\n", format="lines").text == ["好"]


# --- how the text is written ---------------------------------------------------------------------------

CSV = {**NAMED, "train": "train.csv"}


@pytest.mark.parametrize(
    ("section", "content", "encoding", "advice", "options", "texts"),
    [
        (CSV, "label;text\nx;好\ny;坏\n", "utf-8", "give --delimiter ';'", {"delimiter": ";"}, ["好", "坏"]),
        (CSV, 'label,text\nx,"好\ny,坏\n', "utf-8", "give --quoting none", {"quoting": "none"}, ['"好', "坏"]),
        (
            CSV,
            "label,text\nx,今天天气好\n",
            "gb18030",
            "give --encoding gb18030",
            {"encoding": "gb18030"},
            ["今天天气好"],
        ),
    ],
)
def test_what_is_advised_for_the_input_is_an_option(read, tmp_path, section, content, encoding, advice, options, texts):
    """The recipe's own key was advised, and with it changed no model counts as trained."""
    with pytest.raises(InputError) as refused:
        read(section, "new.csv", content, written_in=encoding)
    (problem,) = refused.value.problems
    assert advice in problem and "data." not in problem
    assert read(section, "new.csv", content, written_in=encoding, as_written=options).text == texts


def test_an_encoding_that_nobody_knows(read):
    with pytest.raises(InputError, match=r"^--encoding: no encoding has the name 'gbx'"):
        read(CSV, "new.csv", "label,text\nx,a\n", as_written={"encoding": "gbx"})


def test_advice_about_columns_names_the_option(read):
    with pytest.raises(InputError, match=r"has no 'text' .*; give --columns text=NAME$"):
        read(JSON, "new.jsonl", '{"sentence": "a"}\n')
    with pytest.raises(InputError, match=r"has no 'text' .*; if the file has no header, give --columns text=0$"):
        read(NAMED, "new.tsv", "好\tx\n")


# --- lines -------------------------------------------------------------------------------------------


def test_every_row_has_the_line_that_it_began_at(read):
    csv = {**NAMED, "train": "train.csv"}
    content = 'text,label\n"a\nb",x\n\nc,y\n"d\n\n\ne",z\nf,x\n'
    found = read(csv, "new.csv", content)
    assert list(zip(found.text, found.lines, strict=True)) == [("a\nb", 2), ("c", 5), ("d\n\n\ne", 6), ("f", 10)]
    assert list(read(JSON, "new.jsonl", '{"text": "a"}\n\n{"text": "b"}\n').lines) == [1, 3]
    assert list(read(TAGGING, "new.conll", "a\nb\n\n\nc\n").lines) == [1, 5]


# --- memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new.txt", "-"])
def test_the_texts_of_a_large_input_are_not_kept_in_memory(read, name, monkeypatch):
    """They are in a temporary file, but for the last bytes; ids and lines take a few bytes a row."""
    monkeypatch.setattr(columns_of_rows, "KEPT", 1 << 16)
    content = "".join(f"{number} {'好' * 1000}\n" for number in range(1000))  # 3 MB, 2 MB as Python's texts
    tracemalloc.start()
    try:
        texts = read(NAMED, name, content)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000
    rows = [row for block in blocks_of(texts) for row in zip(block.ids, block.text, block.lines, strict=True)]
    assert rows == [(number, line, number + 1) for number, line in enumerate(content.splitlines())]
    other = pickle.loads(pickle.dumps(texts))  # as other ranks get them
    assert other.text == texts.text and list(other.ids) == list(range(1000))
