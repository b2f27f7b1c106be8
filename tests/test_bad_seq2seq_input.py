"""Bad input of task `seq2seq`: exit code 2, one line a problem with file and line or key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

from dtrain.__main__ import main
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.tasks.corpus import read_corpus
from dtrain.tasks.seq2seq import reading
from tests.test_bad_input import check_refused, write_rows

ROWS = [{"source": f"text number {n}", "target": f"文字{n}"} for n in range(12)]
MODEL = "{type: marian, hidden: 8, layers: 1, heads: 2, vocabulary_size: 100}"
RECIPE = """\
name: bad
output_dir: {folder}/runs
data: {{task: seq2seq, train: {folder}/train.jsonl, valid: {folder}/valid.jsonl}}
teachers: [{{name: big, model: {model}}}]
students:
  - {{name: small, model: {{type: marian, hidden: 8, layers: 1, heads: 2, tokenizer: big}}}}
launch: {{processes: 1}}
"""


def written(folder: Path, **changed: Any) -> Path:
    write_rows(folder / "train.jsonl", [*ROWS, *([{**ROWS[0], **changed}] if changed else [])])
    write_rows(folder / "valid.jsonl", ROWS[:5])
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, model=MODEL), encoding="utf-8")
    return path


def test_the_recipe_itself_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path)
    assert main(["check", str(recipe), "--resolved"]) == 0
    resolved = capsys.readouterr().out
    assert "metric: bleu" in resolved and "top_k: 8" in resolved and "- token_logits" in resolved
    (tmp_path / "again.yaml").write_text(resolved, encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe(str(recipe))
    taught = load_recipe(str(recipe), ["students.0.rows=[interpolated]"])
    assert taught.knowledge.outputs == ["sequences"]
    assert [loss.type for loss in taught.students[0].losses or []] == ["token_cross_entropy"]


KEYS = [
    ("data.columns={text: other}", "columns.text: is called columns.source for task 'seq2seq'"),
    ("data.columns={source: a, target: a}", "columns.target: column 'a' is given two roles"),
    ("data.labels=[a, b]", "labels: is not for task 'seq2seq'"),
    ("data.bleu=mecab", "data.bleu: allowed: 'auto', '13a'"),
    ("data.augment={}", "augment: is not for task 'seq2seq'"),
    ("teachers.0.model={type: textcnn}", "'textcnn' is not for task 'seq2seq' (allowed: marian, bart)"),
    ("teachers.0.model={type: bert}", "'bert' is not for task 'seq2seq'"),
    ("teachers.0.model={type: bart, vocabulary: v.txt}", "vocabulary: what is written is put together from pieces"),
    ("teachers.0.model={type: bart, vocabularies: two}", "vocabularies: unknown key"),
    ("teachers.0.metric=accuracy", "metric: 'accuracy' is not for task 'seq2seq' (allowed: bleu, chrf, rouge_l, loss)"),
    ("students.0.losses=[{type: soft_targets}]", "soft_targets): is not for task 'seq2seq' (allowed: "),
    ("students.0.losses=[{type: hidden_mse}]", "compares layers of transformers, and small is a marian"),
    ("students.0.model=" + MODEL, "big writes other tokens; write model.tokenizer: big"),
    ("teachers.0.adversarial={type: fgm}", "adversarial: is not for task 'seq2seq'"),
    (
        "teachers.0.model.vocabularies=two",
        "a bart has one vocabulary, and big has two; write type: marian, or leave out tokenizer",
    ),
    ("students.0.rows=[transfer]", "'transfer' needs data.transfer"),
    ("students.0={name: s, model: {type: marian}, teachers: [], rows: [sequences]}", "one teacher wrote, found none"),
    (
        "students.0={name: s, model: {type: marian, tokenizer: big}, rows: [sequences], losses: [{type: word_level}]}",
        "word_level): compares with stored logits of the targets of training rows",
    ),
    ("knowledge.beam=101", "knowledge.beam: 101 is more than the 100 tokens of teacher big"),
    ("knowledge.length_penalty=.inf", "knowledge.length_penalty: input should be a finite number"),
    ("knowledge.beam=1", "knowledge.beam: input should be greater than or equal to 2"),
    ("knowledge.candidates=6", "candidates: 6 is more than the beam holds, 5"),
    ("knowledge_points={keywords: words}", "knowledge_points: is for tasks whose models have one vector a text, not for 's"),
    ("knowledge.sharded=true", "knowledge.sharded: is not for task 'seq2seq'"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "told"), KEYS, ids=[key[0] for key in KEYS])
def test_keys(override: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = ["students.0.model={type: bart, tokenizer: big}"] if "vocabularies=two" in override else []
    code = main(["check", str(written(tmp_path)), override, *student])
    check_refused(capsys.readouterr().err, code, tmp_path, told)


WRONG = [
    ({"target": ""}, "train.jsonl:13: 'target' is empty: a row for training or validation needs a text"),
    ({"source": " "}, "train.jsonl:13: 'source' is empty: both sides of a pair need words"),
    ({"target": "\u200b \ufeff"}, "train.jsonl:13: 'target' is empty: a row for training or validation needs a text"),
    ({"target": 3}, "train.jsonl:13: 'target' must be a text, found the number 3"),
]


@pytest.mark.parametrize(("changed", "told"), WRONG, ids=[told for _, told in WRONG])
def test_rows(changed: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["check", str(written(tmp_path, **changed))])
    check_refused(capsys.readouterr().err, code, tmp_path, told)


def test_long_targets_are_cut_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, told in (("文字很长", r"about 1 \(5\.6%\) for big"), ("文字长", None)):
        assert main(["check", str(written(tmp_path, target=target)), "data.max_length=4"]) == 0
        found = re.search(r"cut at data\.max_length 4: (.*)", capsys.readouterr().out)
        assert re.fullmatch(told, found[1]) if told and found else found is None and told is None


def test_other_tasks_have_no_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["check", str(written(tmp_path)), "data={task: classification, train: x.tsv, columns: {source: 0}}"])
    check_refused(
        capsys.readouterr().err, code, tmp_path, "columns.source and columns.target: are only for task 'seq2seq'"
    )


def test_scores_need_sacrebleu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    code = main(["check", str(written(tmp_path))])
    check_refused(capsys.readouterr().err, code, tmp_path, "pip install 'dtrain[translation]'")
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == "lxml" else True)
    code = main(["check", str(written(tmp_path))])
    check_refused(capsys.readouterr().err, code, tmp_path, "whose lxml is not installed: pip install lxml")


def parallel(folder: Path, sources: list[str], targets: list[str]) -> str:
    for name, lines in (("train.en", sources), ("train.zh", targets)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    files = f"train: {folder}/train.en, targets: {{train: {folder}/train.zh}}"
    return f"data={{task: seq2seq, {files}, split: {{valid: 0.25}}}}"


def test_sides_may_lie_in_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, sides = written(tmp_path), [[row[side] for row in ROWS] for side in ("source", "target")]
    data = parallel(tmp_path, *sides)
    assert main(["check", str(recipe), data]) == 0
    found = capsys.readouterr()
    assert re.search(r"train +9 rows", found.out)
    assert "columns.target" not in found.out + found.err
    assert main(["check", str(recipe), data, "data.columns.target=title"]) == 0
    assert "data.columns.target: 'title' is not read: the lines of data.targets are" in "".join(capsys.readouterr())
    alone = data.replace(f", targets: {{train: {tmp_path}/train.zh}}", "")
    assert alone != data and main(["check", str(recipe), alone]) == 2
    told = capsys.readouterr()
    assert "name the file of their targets in data.targets.train" in told.err
    rows = read_corpus(load_recipe(str(recipe), [data]).data, seed=0).parts["train"]
    assert {(text, target) for text, target in zip(rows.text, rows.target, strict=True)} <= set(
        zip(*sides, strict=True)
    )
    (tmp_path / "more.en").write_text("one\ntwo\n", encoding="utf-8")
    assert main(["check", str(recipe), data, f"data.transfer={tmp_path}/more.en"]) == 0
    assert re.search(r"transfer +2 rows", capsys.readouterr().out)
    before = Plan(load_recipe(str(recipe), [data])).data
    parallel(tmp_path, sides[0], [*sides[1][:-1], "another"])
    # The fingerprint of the data includes the bytes of the targets.
    assert Plan(load_recipe(str(recipe), [data])).data != before


@pytest.mark.parametrize(
    ("sources", "targets", "told"),
    [
        (["a", "b", "c"], ["x", "y"], "train.en has 3 lines, and"),
        (["a", "b"], ["x", "y", "z"], "train.zh 3: each line of one is the other side"),
        (["a", "", "c"], ["x", "y", "z"], "train.en:2: is empty: both sides of a pair need words"),
        (["a", "b", "c"], ["x", "y", " "], "train.zh:3: is empty: both sides of a pair need words"),
        (["a", "b", "c"], ["x", "\u200b", "z"], "train.zh:2: is empty: both sides of a pair need words"),
    ],
)
def test_lines_of_two_files(
    sources: list[str], targets: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["check", str(written(tmp_path)), parallel(tmp_path, sources, targets)])
    check_refused(capsys.readouterr().err, code, tmp_path, told)


def test_a_file_of_targets_that_cannot_be_read_has_no_lines_to_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = parallel(tmp_path, ["a", "b"], ["x", "y"])
    (tmp_path / "train.zh").write_bytes("一\n二\n".encode("gb18030"))
    code = main(["check", str(written(tmp_path)), data])
    check_refused(capsys.readouterr().err, code, tmp_path, "train.zh:2: not valid UTF-8")
    code = main(
        ["check", str(written(tmp_path)), parallel(tmp_path, ["a"], ["x"]).replace("split", "format: tsv, split")]
    )
    check_refused(capsys.readouterr().err, code, tmp_path, "data.format: 'tsv' has both sides in one file")


def test_files_of_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(written(tmp_path))
    code = main(["check", recipe, "data.targets={train: gone.zh, valid: gone.zh}"])
    check_refused(capsys.readouterr().err, code, tmp_path, "data.targets.train: gone.zh: no such file")
    code = main(["check", recipe, "data.targets={train: gone.zh}"])
    check_refused(capsys.readouterr().err, code, tmp_path, "targets.valid: 0 file(s) for the 1 of valid")


def test_a_hub_data_set_has_no_files_of_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = parallel(tmp_path, ["a"], ["b"]).replace(f"train: {tmp_path}/train.en", "train: 'hub:owner/set'")
    code = main(["check", str(written(tmp_path)), data])
    check_refused(capsys.readouterr().err, code, tmp_path, "data.train: hub:owner/set: is a hub data set; with data.")
