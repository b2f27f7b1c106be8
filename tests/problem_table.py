"""Make the manual's page of messages about wrong input (problem, message, exit code) by running each case.

    python -m tests.problem_table      # writes it

`tests/test_problem_table.py` compares the page with the output. A case is a few files beside a small recipe, and a
command.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from dtrain.__main__ import main
from dtrain.manual.pages import FOLDER
from dtrain.manual.reference import WIDTH, filled
from dtrain.predict import texts as predict_texts

PAGE = FOLDER / "problems.md"
SHOWN = 320  # of each message, in characters

TEXTS = {"sport": "球赛进攻队员", "money": "股票银行基金"}
ROWS = [{"text": TEXTS[label] + str(n), "label": label} for n in range(30) for label in TEXTS]
JSON = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
NUMBERS = "".join(json.dumps({"text": f"text {n}", "label": n / 2}) + "\n" for n in range(30))
SETS = "".join(json.dumps({"text": f"text {n}", "label": ["sport", "new"][: 1 + n % 2]}) + "\n" for n in range(30))
TSV = "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)
NUMBERED = "train: train.tsv, header: false, columns: {text: 0, label: 1}"
BIO = "张 B-PER\n三 I-PER\n在 O\n北 B-LOC\n京 I-LOC\n\n" * 40


def spans(ends: int, rows: int = 20) -> str:
    """Rows with an entity at the end of the text and one before it; `ends` is added to the position of the last
    character.
    """
    entries = [{"start": 0, "end": 1 + ends, "type": "PER"}, {"start": 3, "end": 4 + ends, "type": "LOC"}]
    return (json.dumps({"text": "张三在北京", "label": entries}, ensure_ascii=False) + "\n") * rows


def annotated(last: str) -> str:
    """Rows with an entity and an annotation; the last row has `last` as its annotations."""
    row = '{"text": "张三在北京", "label": [[0, 2, "PER"]], "more": MORE}\n'
    return row.replace("MORE", '[[3, 5, "GPE"]]') * 20 + row.replace("MORE", last)


@dataclass(frozen=True)
class Case:
    """A mistake in the input, and the command that finds it.

    Attributes:
        data: the recipe's section `data`, as YAML's flow style without braces.
        files: by name; the trained run of `PREDICT` has `train.tsv` already.
        command: words after `dtrain`; RECIPE stands for the recipe.
    """

    problem: str
    data: str = "train: train.jsonl"
    files: dict[str, str | bytes] = field(default_factory=lambda: {"train.jsonl": JSON})
    command: str = "check RECIPE"
    model: str = "{type: textcnn, filters: 4, widths: [2]}"
    stdin: str = ""


# Rows with two sides, and models that read them.
PARALLEL = "train: {path: train.jsonl, columns: {en: text}}, transfer: {path: {en: p.en, zh: p.zh}}"
SIDES: dict[str, str | bytes] = {"train.jsonl": JSON, "p.en": "a good book\na bad book\n"}
SIDED = "check RECIPE teachers.big.reads=en students.cnn.reads=zh"


def stray_quotes() -> str:
    lines = [f"{row['text']},{row['label']}" for row in ROWS]
    lines[10], lines[15] = '"' + lines[10], lines[15].replace(",", '",')
    return "text,label\n" + "\n".join(lines) + "\n"


WRITING = "task: seq2seq, train: pairs.tsv, header: false, columns: {source: 0, target: 1}"
TRANSLATED = "".join(f"a book of {n} pages\t一本{n}页的书\n" for n in range(30))
LINE_BY_LINE = "task: seq2seq, train: p.en, targets: {train: p.zh}"
MARIAN = "{type: marian, size: tiny}"
TAGGING = "task: tagging, train: train"
IDCNN = "{type: idcnn, filters: 4}"
TAGGER = "{type: tagger, lstm: 4}"
ANNOTATED = f"{TAGGING}.jsonl, columns: {{privileged: more, span_end: exclusive}}"
BETWEEN_LAYERS = 'students.cnn.teachers=[big] students.cnn.losses=[{"type":"hidden_mse"}]'
PREDICT = "predict RECIPE --model cnn --input"
CASES = [
    Case("a key is misspelt", command="check RECIPE launch.proceses=2"),
    Case("a file is not there", "train: trian.jsonl"),
    Case("every row lacks the column that the recipe names", "train: train.jsonl, columns: {text: sentence}"),
    Case("a file holds one JSON array instead of JSON lines", files={"train.jsonl": json.dumps(ROWS, indent=1)}),
    Case("a text holds a tab, in a file whose columns are separated by tabs", NUMBERED,
         {"train.tsv": TSV.replace("3\t", "3\tx\t", 1)}),
    Case("the columns of a CSV file are separated by `;`", "train: t.csv", {"t.csv": "text;label\n" + TSV.replace("\t", ";")}),
    Case("a file is in another encoding", "train: t.tsv", {"t.tsv": ("text\tlabel\n" + TSV).encode("gb18030")}),
    Case("a stray quotation mark joins several rows", "train: t.csv", {"t.csv": stray_quotes()}),
    Case("`header: false`, but the file has a header", NUMBERED, {"train.tsv": "text\tlabel\n" + TSV}),
    Case(
        "texts occur with two labels",
        NUMBERED,
        {"train.tsv": TSV + TSV.replace("sport", "x").replace("money", "sport").replace("x", "money")},
    ),
    Case("one file is used for validation and test", "train: train.jsonl, valid: v.jsonl, test: v.jsonl",
         {"train.jsonl": JSON, "v.jsonl": JSON.replace('"text": "', '"text": "再')}),
    Case("training rows are also in the test set", "train: train.jsonl, test: t.jsonl",
         {"train.jsonl": JSON, "t.jsonl": JSON.replace("球", "足")}),
    Case("a label does not occur in training", "train: train.jsonl, test: v.jsonl",
         {"train.jsonl": JSON, "v.jsonl": JSON.replace("sport", "film", 1)}),
    Case("a score is no number", "task: regression, train: n.jsonl", {"n.jsonl": NUMBERS.replace(" 2.5}", ' "high"}')}),
    Case(
        "a label stands twice in a list",
        "task: multi_label, train: s.jsonl",
        {"s.jsonl": SETS.replace(', "new"', ', "sport"', 1)},
    ),
    Case("two files of parallel text have different numbers of lines", PARALLEL, {**SIDES, "p.zh": "好书\n"}, SIDED),
    Case("one side of a pair is empty", PARALLEL, {**SIDES, "p.zh": "好书\n\n"}, SIDED),
    Case("a model reads a side that no row has", PARALLEL, {**SIDES, "p.zh": "好书\n坏书\n"}, SIDED.replace("=zh", "=zn")),
    Case("a row to train a model that writes has no target", WRITING,
         {"pairs.tsv": TRANSLATED.replace("一本7页的书", "")}, model=MARIAN),
    Case("two files of sources and targets have different numbers of lines", LINE_BY_LINE,
         {**SIDES, "p.zh": "好书\n"}, model=MARIAN),
    Case("a beam holds more hypotheses than a model has tokens", WRITING, {"pairs.tsv": TRANSLATED},
         "check RECIPE knowledge.beam=9000", model=MARIAN),
    Case("a class that does not exist has a weight", command="check RECIPE teachers.0.class_weights.sports=2"),
    Case("one tag belongs to another scheme", f"{TAGGING}.bio", {"train.bio": BIO + "李 B-PER\n四 E-PER\n\n"}, model=IDCNN),
    Case("one file is BIOES, another is BIO", f"{TAGGING}.bio, test: test.bio",
         {"train.bio": BIO, "test.bio": BIO.replace("三 I", "三 E").replace("京 I", "京 E")}, model=IDCNN),
    Case("the ends of spans are exclusive, and the recipe does not say so", f"{TAGGING}.jsonl", {"train.jsonl": spans(1)}, model=IDCNN),
    Case("a span ends beyond its text", f"{TAGGING}.jsonl, columns: {{span_end: inclusive}}",
         {"train.jsonl": spans(1)}, model=IDCNN),
    Case("an annotation for the teacher ends beyond its text", ANNOTATED, {"train.jsonl": annotated("[[3, 9, \"GPE\"]]")}, model=TAGGER),
    Case("a row has no annotation for the teacher, nor an empty list", ANNOTATED, {"train.jsonl": annotated("null")}, model=TAGGER),
    Case("a student is to read what only its teacher may", ANNOTATED, {"train.jsonl": annotated("[]")},
         'check RECIPE students.cnn.model.privileged={"size":4}', model=TAGGER),
    Case("a teacher reads annotations, and no column is named", f"{TAGGING}.jsonl", {"train.jsonl": annotated("[]")},
         'check RECIPE teachers.big.model.privileged={"size":4}', model=TAGGER),
    Case("a file of word vectors holds something that is no number",
         files={"train.jsonl": JSON, "vec.txt": "球 1 2\n赛 1 oops\n"},
         model="{type: textcnn, filters: 4, widths: [2], embedding: 2, vectors: vec.txt}"),
    Case("the folder of a pretrained model lacks its files", files={"train.jsonl": JSON, "bert/README": ""},
         model="{type: bert, pretrained: ./bert}"),
    Case("layers are compared with those of a teacher that reads other tokens", command=f"check RECIPE {BETWEEN_LAYERS}",
         model="{type: bert, size: tiny}"),
    Case("layers are compared of a student that has none", command=f"check RECIPE {BETWEEN_LAYERS}"),
    Case("a student is for several tasks, and the recipe has one", command="check RECIPE students.cnn.tasks=[news,names]"),
    Case("tasks are mixed for a student of one task", command="check RECIPE students.cnn.mixing=equal"),
    Case("`output_dir` is a file", command="check RECIPE output_dir=train.jsonl"),
    Case("a stage is run before its inputs exist", command="finetune RECIPE"),
    Case("new text has a header, but the model was trained on numbered columns", NUMBERED,
         {"new.tsv": "qid\ttext_a\n0\t球赛进攻\n1\t股票\n"}, f"{PREDICT} new.tsv"),
    Case("pairs of texts are given to a model for single texts", NUMBERED, {}, f"{PREDICT} new.tsv --columns text=a,text_b=b"),
    Case("the output of predict is a folder", NUMBERED, {"out/x": ""}, f"{PREDICT} train.tsv --output out"),
    Case("predict names a model that is not in the recipe", NUMBERED, {}, "predict RECIPE --model cnm --input train.tsv"),
    Case("a beam is asked of a model that writes no texts", NUMBERED, {}, f"{PREDICT} train.tsv --beam 5"),
    Case("there is nothing on stdin", NUMBERED, {}, f"{PREDICT} -"),
]  # fmt: skip


def run(case: Case, trained: Path) -> tuple[str, int]:
    """The output of a case on stderr, and its exit code. `trained` is the folder of a finished run."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(trained if case.command.startswith("predict") else folder),
    ):
        for name, content in case.files.items():
            path = Path(name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        write_recipe(case)
        Path("stdin").write_text(case.stdin)
        words = ["recipe.yaml" if word == "RECIPE" else word for word in case.command.split()]
        told = io.StringIO()
        stdin = mock.patch.object(predict_texts, "STDIN", Path("stdin"))
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()), stdin:
            code = main(words)
    here = os.path.realpath(folder) + os.sep
    return told.getvalue().strip().replace(here, ""), code


def write_recipe(case: Case) -> None:
    student = f"{{name: cnn, teachers: [], model: {case.model}, epochs: 1}}"
    teacher = f"{{name: big, model: {case.model}, epochs: 1}}"
    Path("recipe.yaml").write_text(
        f"name: r\ndata: {{{case.data}}}\nteachers: [{teacher}]\nstudents: [{student}]\n"
        "launch: {processes: 1}\nreport: {latency: false}\n",
        encoding="utf-8",
    )


@contextlib.contextmanager
def trained_run() -> Iterator[Path]:
    """The folder of a finished run that reads columns by their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            Path("train.tsv").write_text(TSV, encoding="utf-8")
            write_recipe(Case("", NUMBERED))
            assert main(["run", "recipe.yaml", "--here"]) == 0
        yield Path(folder)


def page() -> str:
    """The page in Markdown."""
    parts = [
        "# Messages about wrong input",
        "This page is made by running each case: `python -m tests.problem_table`.",
        filled(
            "dtrain reports each kind of problem in one line on stderr: the file and line, or the recipe's key, where it was "
            "found first, what to change, and how many more there are. Exit code 2 means that nothing was written. Where the "
            "input may be right as it is, the line is a warning and the exit code is 0; warnings about data are also in the "
            "report."
        ),
    ]
    with trained_run() as trained:
        for case in CASES:
            said, code = run(case, trained)
            said = said.replace("dtrain: ", "").replace("`", "'")
            lines = [line if len(line) <= SHOWN else f"{line[: SHOWN - 4]} ..." for line in said.splitlines()]
            filled_lines = (
                textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in lines
            )
            parts += [f"## {case.problem}", f"Exit code {code}.", "```text\n" + "\n".join(filled_lines) + "\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
