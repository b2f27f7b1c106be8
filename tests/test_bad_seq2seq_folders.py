"""Unsuitable folders of pretrained encoder-decoders: `check` finds the problems from the files alone, before weights
are loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

from dtrain.__main__ import main
from dtrain.data.tokenizers import TARGET_FILE
from dtrain.data.written import learnt_tokenizer, save_tokenizer
from dtrain.models import build, save_model
from dtrain.recipe.architectures.seq2seq import MarianSpec
from tests.test_bad_input import check_refused
from tests.test_bad_seq2seq_input import MODEL, ROWS, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Marian with its tokenizer."""
    tokenizer = learnt_tokenizer(100, [[row["source"] for row in ROWS]], [["文字"]], True, two=False)
    spec = MarianSpec(type="marian", hidden=8, layers=1, heads=2)
    model = build(spec, vocabulary=len(tokenizer), labels=["target"], pad_id=0, max_length=16)
    save_model(model, tmp_path / "m", None, "a card")
    save_tokenizer(tokenizer, tmp_path / "m")
    return tmp_path / "m"


def checked(folder: Path, *overrides: str) -> int:
    model = f"teachers.0.model={{type: marian, pretrained: {folder}}}"
    return main(["check", str(written(folder.parent)), model, "data.max_length=128", *overrides])


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_slow_tokenizers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(folder) == 0
    capsys.readouterr()
    place = f"big: model.pretrained: {folder}: "
    change(folder / "tokenizer_config.json", tokenizer_class="MarianTokenizer")
    told = f"{place}its tokenizer has no fast form"
    code = checked(folder)
    check_refused(capsys.readouterr().err, code, tmp_path, told, "names no other class than MarianTokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")  # beside source.spm and target.spm, the files of Marian's own tokenizer
    code = checked(folder)
    check_refused(capsys.readouterr().err, code, tmp_path, told, "holds no tokenizer.json")


def test_types(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = checked(folder, f"students.0.model={{type: bart, pretrained: {folder}}}", "students.0.rows=[sequences]")
    check_refused(
        capsys.readouterr().err, code, tmp_path, f"small: model.pretrained: {folder}: is of type 'marian', not"
    )


@pytest.mark.parametrize(
    ("start", "told"),
    [(None, "config.json names no decoder_start_token_id"), (900, "config.json says decoder_start_token_id 900")],
)
def test_starts(start: int | None, told: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "config.json", decoder_start_token_id=start)
    code = checked(folder)
    check_refused(capsys.readouterr().err, code, tmp_path, f"big: model.pretrained: {folder}: {told}")


def test_two_vocabularies_of_a_folder_are_for_models_that_have_two(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / TARGET_FILE).write_bytes((folder / "tokenizer.json").read_bytes())
    assert checked(folder) == 0
    capsys.readouterr()
    told = "students.small.model.type: a bart has one vocabulary, and big has two"
    code = checked(folder, "students.0.model={type: bart, tokenizer: big}")
    check_refused(capsys.readouterr().err, code, tmp_path, told)


def test_whoever_reads_two_vocabularies_has_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for teachers, and for students that have another student's tokenizer."""
    recipe, of_big = str(written(tmp_path)), "{type: %s, hidden: 8, layers: 1, heads: 2, tokenizer: %s}"
    two = MODEL.replace("}", ", vocabularies: two}")
    teachers = f"teachers=[{{name: big, model: {two}}}, {{name: other, model: {of_big % ('bart', 'big')}}}]"
    code = main(["check", recipe, teachers])
    check_refused(capsys.readouterr().err, code, tmp_path, "teachers.1.model.type: a bart has one vocabulary")
    students = f"students=[{{name: one, model: {two}}}, {{name: next, model: {of_big % ('bart', 'one')}}}]"
    code = main(["check", recipe, "teachers=[]", students])
    check_refused(capsys.readouterr().err, code, tmp_path, "students.1.model.type: a bart has one vocabulary")
