"""The manual's page of what goes wrong in the user's hands: problem, line, exit code, made by running each case.

    python -m tests.problem_table      # writes it

`tests/test_problem_table.py` compares. A case is a few files beside a small recipe, and a command.
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
SHOWN = 260  # characters of a line

TEXTS = {"sport": "球赛进攻队员", "money": "股票银行基金"}
ROWS = [{"text": TEXTS[label] + str(n), "label": label} for n in range(30) for label in TEXTS]
JSON = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TSV = "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)
NUMBERED = "train: train.tsv, header: false, columns: {text: 0, label: 1}"
BIO = "张 B-PER\n三 I-PER\n在 O\n北 B-LOC\n京 I-LOC\n\n" * 40


def spans(ends: int, rows: int = 20) -> str:
    """Rows with an entity at the end of the text and one before it; `ends` is added to the last character's place."""
    entries = [{"start": 0, "end": 1 + ends, "type": "PER"}, {"start": 3, "end": 4 + ends, "type": "LOC"}]
    return (json.dumps({"text": "张三在北京", "label": entries}, ensure_ascii=False) + "\n") * rows


@dataclass(frozen=True)
class Case:
    """What is wrong, and how it is met.

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


def stray_quotes() -> str:
    lines = [f"{row['text']},{row['label']}" for row in ROWS]
    lines[10], lines[15] = '"' + lines[10], lines[15].replace(",", '",')
    return "text,label\n" + "\n".join(lines) + "\n"


TAGGING = "task: tagging, train: train"
IDCNN = "{type: idcnn, filters: 4}"
PREDICT = "predict RECIPE --model cnn --input"
CASES = [
    Case("a key is misspelt", command="check RECIPE launch.proceses=2"),
    Case("a file is not there", "train: trian.jsonl"),
    Case("the column has another name, in every row", "train: train.jsonl, columns: {text: sentence}"),
    Case("a JSON array in place of JSON lines", files={"train.jsonl": json.dumps(ROWS, indent=1)}),
    Case("`;` between the columns of a CSV", "train: t.csv", {"t.csv": "text;label\n" + TSV.replace("\t", ";")}),
    Case("text in another encoding", "train: t.tsv", {"t.tsv": ("text\tlabel\n" + TSV).encode("gb18030")}),
    Case("a stray quote makes one row of several", "train: t.csv", {"t.csv": stray_quotes()}),
    Case("`header: false`, and there is one", NUMBERED, {"train.tsv": "text\tlabel\n" + TSV}),
    Case(
        "every text has two labels",
        NUMBERED,
        {"train.tsv": TSV + TSV.replace("sport", "x").replace("money", "sport").replace("x", "money")},
    ),
    Case("validation and test are one file", "train: train.jsonl, valid: v.jsonl, test: v.jsonl",
         {"train.jsonl": JSON, "v.jsonl": JSON.replace('"text": "', '"text": "再')}),
    Case("training rows are in the test", "train: train.jsonl, test: t.jsonl",
         {"train.jsonl": JSON, "t.jsonl": JSON.replace("球", "足")}),
    Case("a label that no training row has", "train: train.jsonl, test: v.jsonl",
         {"train.jsonl": JSON, "v.jsonl": JSON.replace("sport", "film", 1)}),
    Case("one stray tag of another scheme", f"{TAGGING}.bio", {"train.bio": BIO + "李 B-PER\n四 E-PER\n\n"}, model=IDCNN),
    Case("a BIOES file among BIO ones", f"{TAGGING}.bio, test: test.bio",
         {"train.bio": BIO, "test.bio": BIO.replace("三 I", "三 E").replace("京 I", "京 E")}, model=IDCNN),
    Case("span ends are exclusive, and nothing says so", f"{TAGGING}.jsonl", {"train.jsonl": spans(1)}, model=IDCNN),
    Case("span ends are inclusive, and one is beyond its text", f"{TAGGING}.jsonl, columns: {{span_end: inclusive}}",
         {"train.jsonl": spans(1)}, model=IDCNN),
    Case("word vectors with a line that holds no number",
         files={"train.jsonl": JSON, "vec.txt": "球 1 2\n赛 1 oops\n"},
         model="{type: textcnn, filters: 4, widths: [2], embedding: 2, vectors: vec.txt}"),
    Case("a pretrained folder that is empty", files={"train.jsonl": JSON, "bert/README": ""},
         model="{type: bert, pretrained: ./bert}"),
    Case("`output_dir` is a file", command="check RECIPE output_dir=train.jsonl"),
    Case("a stage before its inputs are there", command="finetune RECIPE"),
    Case("a table with a header, a model trained on numbered columns", NUMBERED,
         {"new.tsv": "qid\ttext_a\n0\t球赛进攻\n1\t股票\n"}, f"{PREDICT} new.tsv"),
    Case("pairs of texts are asked of a model for one", NUMBERED, {}, f"{PREDICT} new.tsv --columns text=a,text_b=b"),
    Case("answers into a folder", NUMBERED, {"out/x": ""}, f"{PREDICT} train.tsv --output out"),
    Case("a model that the recipe has not", NUMBERED, {}, "predict RECIPE --model cnm --input train.tsv"),
    Case("nothing on stdin", NUMBERED, {}, f"{PREDICT} -"),
]  # fmt: skip


def run(case: Case, trained: Path) -> tuple[str, int]:
    """What a case says on stderr, its lines joined, and its exit code. `trained` is the folder of a finished run."""
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
    return "; ".join(line.replace(here, "") for line in told.getvalue().strip().splitlines()), code


def write_recipe(case: Case) -> None:
    student = f"{{name: cnn, teachers: [], losses: [{{type: LOSS}}], model: {case.model}, epochs: 1}}"
    loss = "tag_likelihood" if "tagging" in case.data else "cross_entropy"
    teacher = f"{{name: big, model: {case.model}, epochs: 1}}"
    Path("recipe.yaml").write_text(
        f"name: r\ndata: {{{case.data}}}\nteachers: [{teacher}]\nstudents: [{student.replace('LOSS', loss)}]\n"
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
        "# What is said of wrong input",
        "This page is made by running each case: `python -m tests.problem_table`.",
        filled(
            "A line is said of each kind of problem, with the first place, how many more there are, and what to set. What "
            "may be meant is a warning (on stderr, and for the data in the report), and the exit code is 0."
        ),
    ]
    with trained_run() as trained:
        for case in CASES:
            said, code = run(case, trained)
            said = said.replace("dtrain: ", "").replace("`", "'")
            said = said if len(said) <= SHOWN else f"{said[: SHOWN - 4]} ..."
            said = textwrap.fill(said, WIDTH, break_long_words=False, break_on_hyphens=False)
            parts += [f"## {case.problem}", f"Exit code {code}.", f"```text\n{said}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
