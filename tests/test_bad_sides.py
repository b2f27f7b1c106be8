"""Bad input of rows with several sides: exit code 2, one line a problem with file and line or key."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.recipe import load_recipe
from tests.test_bad_input import check_refused, write_rows

PAIRS = {"en": [f"word {n}" for n in range(12)], "zh": [f"词{n}" for n in range(12)]}
RECIPE = """\
name: bad
output_dir: {folder}/runs
data:
  train: {folder}/train.jsonl
  transfer: [{{path: {folder}/pairs.tsv, columns: {{en: 0, zh: 1}}}}]
  test: {{path: {folder}/test.jsonl, columns: {{zh: text}}}}
  split: {{valid: 0.2}}
teachers: [{{name: english, reads: en, model: {{type: textcnn}}}}]
students: [{{name: chinese, reads: zh, model: {{type: bilstm}}}}]
launch: {{processes: 1}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A valid recipe; the files that overrides name are relative to its folder."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", [{"en": text, "label": "ab"[n % 2]} for n, text in enumerate(PAIRS["en"])])
    write_rows(tmp_path / "test.jsonl", [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(PAIRS["zh"])])
    write_rows(tmp_path / "plain.jsonl", [{"text": "x", "label": "ab"[n % 2]} for n in range(8)])
    write_rows(tmp_path / "null.jsonl", [{"en": "a", "zh": "词"}, {"en": None, "zh": None}])
    lines = [f"{en}\t{zh}\n" for en, zh in zip(*PAIRS.values(), strict=True)]
    (tmp_path / "pairs.tsv").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "half.tsv").write_text("".join(lines).replace("词4", ""), encoding="utf-8")
    for side, texts in PAIRS.items():
        (tmp_path / f"p.{side}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (tmp_path / "one.txt").write_text("\n".join(PAIRS["zh"]) + "\n", encoding="utf-8")
    (tmp_path / "short.zh").write_text("\n".join(PAIRS["zh"][:9]) + "\n", encoding="utf-8")
    (tmp_path / "hole.zh").write_text("\n".join(["" if n == 6 else "词" for n in range(12)]) + "\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return str(path)


def test_the_recipe_itself_is_good(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", recipe]) == 0
    told = capsys.readouterr()
    assert "side en: train 10, valid 2, transfer 12; read by english\nside zh: test 12, transfer 12" in told.out
    assert "teachers.english: not scored on test, where no row with a label has en" in told.err
    assert "students.chinese: no validation row with a label has zh: the weights of its last epoch are kept" in told.err
    assert main(["check", recipe, "--resolved"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe(recipe)
    assert main(["check", recipe, "data.transfer=[{path: {en: p.en, zh: p.zh}}]"]) == 0
    assert "pair with itself" not in capsys.readouterr().err
    assert main(["check", recipe, "data.transfer=[{path: {en: p.en, zh: ./p.en}}]"]) == 0
    told = "data.transfer: p.en is the file of the sides en and zh: each line is read as a pair with itself"
    assert told in capsys.readouterr().err
    assert main(["check", recipe, "data.columns={text: {en: en}}", "data.train=[train.jsonl]"]) == 0
    capsys.readouterr()
    more = "{path: one.txt, columns: {zh: 0}}"  # then there are two kinds of rows to distinguish
    pairs = "{path: pairs.tsv, columns: {en: 0, zh: 1}}"
    alone = "students.0.losses=[{type: domain_adversary}]"
    assert main(["check", recipe, f"data.transfer=[{pairs}, {more}]", alone]) == 0
    assert "students.chinese.losses: none reads its classifier, which stays as it was drawn" in capsys.readouterr().err


def test_students_of_a_side_with_validation_labels_can_be_searched(recipe: str) -> None:
    valid = "data.valid={path: test.jsonl, columns: {zh: text}}"
    assert main(["check", recipe, valid, "search={epochs: [1]}"]) == 0


CASES = [
    (["teachers.0.reads=enn"], "reads: no side 'enn'; did you mean 'en'? (allowed: en, zh)"),
    (["teachers.0.reads=null"], "reads: must say which side of a row it reads (allowed: en, zh)"),
    (["data.columns={text: {fr: french}}"], "data.columns: side 'fr' is read by no teacher and no student"),
    (["data={train: plain.jsonl}"], "teachers.0.reads: 'en': the rows of data have no sides"),
    (["data.transfer=[{path: {en: p.en, zh: short.zh}}]"], "p.en has 12, and short.zh has 9: line by line they are one row"),
    (["data.transfer=[{path: {en: p.en, zh: hole.zh}}]"], "hole.zh:7: is empty: both sides of a pair need words"),
    (["data.transfer=[{path: half.tsv, columns: {en: 0, zh: 1}}]"], "half.tsv:5: side 'zh' is empty: both sides"),
    (["data.transfer=[{path: {en: p.en, zh: gone.zh}}]"], "data.transfer: gone.zh: no such file"),
    (["data.transfer=[{path: pairs.tsv, columns: {en: 0, zh: 2}}]"], "pairs.tsv:1: has no column 2 (2 columns"),
    (["data.transfer=[{path: pairs.tsv, columns: {en: 0, zh: b}}]"], "give names (of a header) or numbers"),
    (["data.transfer=[{path: pairs.tsv, columns: {text: 0, zh: 1}}]"], "a side cannot be called 'text'"),
    (["data.transfer=[{path: pairs.tsv, columns: {label: 1}}]"], "columns: must name the column of a side at least"),
    (["data.transfer=[{path: pairs.tsv, colums: {en: 0}}]"], "transfer.0.colums: unknown key; did you mean 'columns'?"),
    (["data.transfer=[{path: one.txt, columns: {zh: 0}}]", "data.columns={text: {en: en}}"],
     "teachers: no row of train or transfer has both zh and en, which english reads"),
    (["data.transfer=[one.txt]", "data.columns={text: {en: en}}"], "plain lines hold one text, and here en and zh are"),
    (["data.transfer=[{path: pairs.tsv, columns: {en: 0}}, {path: pairs.tsv, columns: {zh: 1}}]"],
     "data.transfer: pairs.tsv is named twice"),
    (["data.train={path: {en: p.en, zh: p.zh}}"], "p.en: plain lines hold no labels"),
    (["data.train=plain.jsonl"], "plain.jsonl:1: has none of the columns 'en', 'zh' (found: text, label); say what it"),
    (["data.train={path: plain.jsonl, columns: {zh: text}}"], "0 training rows of data.train has en, and none a label"),
    (["data.task=tagging"], "data.columns.text: task 'tagging' reads one text or pair a row, not several sides"),
    (["data.augment={n_iter: 1}"], "data.augment: not together with several sides of a row"),
    (["students.0.rows=[train]"], "students.chinese.reads: no row of train has zh"),
    (["students.0.losses=[{type: soft_targets}, {type: domain_adversary}]"],
     "losses (domain_adversary): tells apart rows of pairs and rows of one side, and all 12 rows of train and transfer"),
    (["teachers.0.domain_adversary={between: pairs}", "data.transfer=[{path: one.txt, columns: {zh: 0}}]",
      "data.columns={text: {en: en}}"], "domain_adversary: tells labelled rows from transfer rows, and none of these has en"),
    (["search={epochs: [1]}"], "search: compares students on validation rows, and none has what chinese reads"),
    (["data.transfer=[{path: pairs.tsv, columns: {en: 0, zh: 1}}, null.jsonl]"],
     "null.jsonl:2: 'en' and 'zh' are null: a row needs the text of one side at least"),
    (["data={task: seq2seq, train: {path: train.jsonl, columns: {en: en, target: label}}, transfer: {path: pairs.tsv, columns: {en: 0, zh: 1}}}",
      "teachers=[{name: english, reads: en, model: {type: marian, size: mini}}]", "knowledge={outputs: [sequences]}",
      "students=[{name: chinese, reads: zh, rows: [interpolated], model: {type: marian, size: mini}}]"],
     "students.chinese.rows: interpolated are training rows, whose targets choose among the candidates of english, and none of "
     "train has en and zh"),
    (["knowledge_points={words: p.en}"], "knowledge_points: is not for rows with several sides"),
    (["data.transfer=[{path: pairs.tsv, columns: {en: 0, zh: 1}}, {path: one.txt, columns: {zh: 0}}]",
      "students=[{name: a, reads: zh, peers: p, teachers: [english], model: {type: bilstm}}, {name: b, reads: zh, peers: p, "
      "teachers: [english], model: {type: bilstm}, losses: [{type: soft_targets}, {type: domain_adversary}]}]"],
     "students.1 (b).losses: learn from other rows than those of its peer a"),
    (["students.0={name: s, reads: zh, answers: online, model: {type: bilstm}}"],
     "it reads zh, and its teacher en: stored outputs alone join them, by row"),
]  # fmt: skip


PLAIN = ["data={train: plain.jsonl, transfer: one.txt}", "teachers.0.reads=null", "students.0.reads=null"]
WITHOUT_SIDES = [
    ("students.0.losses=[{type: soft_targets}, {type: domain_adversary}]",
     "losses.1 (domain_adversary).between: 'pairs' are rows of several sides, and those of data have none"),
    ("teachers.0.domain_adversary={between: pairs}", "domain_adversary.between: 'pairs' are rows of several sides"),
    ("students.0={name: s, model: {type: bilstm}, rows: [transfer], losses: [{type: soft_targets}, {type: domain_adversary, between: labels}]}",
     "losses.1 (domain_adversary): tells apart rows with a label and rows without one, and is given those of data.transfer alone"),
    ("students.0={name: s, model: {type: bilstm}, rows: [train], losses: [{type: soft_targets}, {type: domain_adversary, between: labels}]}",
     "is given those of data.train alone: it needs both train and transfer"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "told"), WITHOUT_SIDES)
def test_without_sides(
    override: str, told: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", recipe, *PLAIN, "teachers.0.domain_adversary={}"]) == 0
    capsys.readouterr()
    code = main(["check", recipe, *PLAIN, override])
    check_refused(capsys.readouterr().err, code, tmp_path, told)
    code = main(["check", recipe, *PLAIN, "data.transfer=[]", "teachers.0.domain_adversary={}"])
    check_refused(
        capsys.readouterr().err, code, tmp_path, "tells labelled rows from transfer rows, and there is no data.t"
    )


@pytest.mark.parametrize(("overrides", "told"), CASES, ids=[told for _, told in CASES])
def test_told(overrides: list[str], told: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["check", recipe, *overrides])
    check_refused(capsys.readouterr().err, code, tmp_path, told)
