"""Synthetic rows of a corpus: which rows, whose, in what order, and what becomes of them in `prepare`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtrain.augment import rows as augment_rows
from dtrain.augment.rows import with_synthetic_rows
from dtrain.data import PreparedData
from dtrain.data.corpus import Corpus
from dtrain.data.encode import MASK, Encoder
from dtrain.data.vocabularies import frame_ids, load_tokenizer
from dtrain.errors import InputError
from dtrain.recipe import load_recipe
from dtrain.recipe.data import Data
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.stages.prepare import prepare
from dtrain.tasks.corpus import read_corpus

WORDS = ["red", "blue", "cats", "dogs", "sit", "run", "on", "under", "the", "big", "small", "table", "chair"]
AUGMENT: dict[str, Any] = {"n_iter": 6, "p_mask": 0.2, "p_ng": 0.3}


def section(folder: Path, count: int = 40, pairs: bool = False, **changes: Any) -> Data:
    lines = []
    for n in range(count):
        text = " ".join(WORDS[(n * 3 + k * (n % 5 + 1)) % len(WORDS)] for k in range(3 + n % 4))
        lines.append({"text": f"{text} {n}", "label": "ab"[n % 2]} | ({"b": f"Other {n}"} if pairs else {}))
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "more.txt").write_text("red cats\nThe Table\n")
    values: dict[str, Any] = {"train": str(folder / "train.jsonl"), "vocabulary": {"unit": "word", "min_count": 1}}
    values |= {"augment": AUGMENT, "workers": 1}
    values |= {"task": "pairs", "columns": {"text_b": "b"}} if pairs else {"transfer": str(folder / "more.txt")}
    return Data.model_validate(values | changes)


def augmented(data: Data, seed: int = 3) -> Corpus:
    return with_synthetic_rows(read_corpus(data, 0), data, seed)


def test_when_nothing_can_be_made_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="p_mask: with p_pos and p_ng it is 0, and no row would be made up"):
        section(tmp_path, augment={"p_mask": 0, "p_ng": 0})
    never = {"n_iter": 2, "p_mask": 1e-9, "p_ng": 0}
    with pytest.raises(InputError, match=r"data\.augment: no new row came of 2 attempts at each of 36 training rows$"):
        augmented(section(tmp_path, augment=never, transfer=[]))
    assert len(augmented(section(tmp_path, augment=never)).parts["transfer"]) == 2  # the given ones


def test_rows_are_new_unlabelled_and_tell_where_they_come_from(tmp_path: Path) -> None:
    data = section(tmp_path)
    corpus = augmented(data)
    rows, train = corpus.parts["transfer"], corpus.parts["train"]
    assert list(corpus.parts)[-1] == "transfer"
    assert rows.text[:2] == ["red cats", "The Table"]  # the given ones first, untouched
    made = rows.text[2:]
    assert 40 < len(made) < 36 * 6  # of 36 training rows, some copies fall together
    assert len(set(made)) == len(made)
    assert not set(made) & {text.lower() for text in train.text} and "the table" not in made
    assert rows.label == [None] * len(rows)
    assert corpus.numbers["transfer"].tolist() == [-1] * len(rows)
    for text, key, line in list(zip(rows.text, rows.key, rows.line, strict=True))[2:]:
        source = train.key.index(key.partition("~")[0])
        assert line == train.line[source]
        assert {word for word in text.split() if word != MASK} <= set(train.text[source].lower().split())
    assert any(MASK in text for text in made)


def test_a_row_follows_from_seed_and_id_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = section(tmp_path)
    once = augmented(data).parts["transfer"].text
    assert augmented(data).parts["transfer"].text == once
    assert augmented(data, seed=4).parts["transfer"].text != once
    monkeypatch.setattr(augment_rows, "CHUNK", 3)
    assert augmented(data).parts["transfer"].text == once
    parallel = data.model_copy(update={"workers": 3})
    assert augmented(parallel).parts["transfer"].text == once


def test_a_row_that_moves_keeps_what_is_made_of_it(tmp_path: Path) -> None:
    lines = [{"text": f"{' '.join(WORDS[n : n + 6])} {n}", "label": "ab"[n % 2], "id": f"r{n}"} for n in range(7)]
    first = [{"text": "one more", "label": "a", "id": "new"}]
    made = []
    for rows in (lines, first + lines):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = Data.model_validate(
            {"train": str(tmp_path / "train.jsonl"), "columns": {"id": "id"}, "workers": 1, "augment": AUGMENT}
            | {"vocabulary": {"unit": "word"}, "split": {"valid": 0.0}}
        )
        transfer = augmented(data).parts["transfer"]
        made.append(dict(zip(transfer.key, transfer.text, strict=True)))
    # without a tagger no word is drawn from the others; what falls together with another row's is left out
    shared = made[0].keys() & made[1].keys()
    assert len(shared) > 20
    assert {key: made[0][key] for key in shared} == {key: made[1][key] for key in shared}


def test_vocabularies_count_training_words_once(tmp_path: Path) -> None:
    data = section(tmp_path, vocabulary={"unit": "word", "min_count": 2}, augment={"n_iter": 8, "p_mask": 0.3})
    values = {"name": "r", "students": [{"name": "s", "model": {"type": "bilstm"}}]}
    values["teachers"] = [{"name": "t", "model": {"type": "bert", "size": "tiny", "vocabulary_size": 400}}]
    found = []
    for augment in (data.augment, None):
        recipe = Recipe.model_validate(values | {"data": data.model_copy(update={"augment": augment}).model_dump()})
        folder = RunFolder(tmp_path / f"runs{len(found)}")
        prepare(recipe, folder, "rows", lambda name: name)
        prepared = PreparedData.open(folder)
        found.append([load_tokenizer(prepared.tokenizer_path(name)).get_vocab() for name in ("students", "t")])
        assert prepared.info["made_up"] == (prepared.info["rows"]["transfer"] - 2 if augment else 0)
    assert found[0] == found[1]
    assert MASK not in found[0][0] and "17" not in found[0][0]  # seen once; its synthetic rows say it again


@pytest.mark.parametrize("tokenizer", ["students", "t"])
def test_a_mask_between_chinese_characters_is_a_token(tokenizer: str, tmp_path: Path) -> None:
    texts = [
        "北京很好",
        "苹果iphone发布",
        "上涨3%",
        "▒▒",
        f"北京{MASK}{MASK}很好",
        f"苹果{MASK}iphone{MASK}发布",
        f"{MASK}3%",
    ]
    lines = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts[:3] * 4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": str(tmp_path / "train.jsonl"), "vocabulary": {"min_count": 1}, "split": {"valid": 0.5}}
    teacher = {"name": "t", "model": {"type": "bert", "size": "tiny", "vocabulary_size": 400}}
    recipe = Recipe.model_validate(
        {"name": "r", "data": data, "teachers": [teacher], "students": [{"name": "s", "model": {"type": "bilstm"}}]}
    )
    folder = RunFolder(tmp_path / "runs")
    prepare(recipe, folder, "rows", lambda name: name)
    loaded = load_tokenizer(PreparedData.open(folder).tokenizer_path(tokenizer))
    encoder = pickle.loads(pickle.dumps(Encoder(loaded, 32, pairs=False)))

    def tokens(text: str) -> list[str]:
        inside = [number for number in encoder([text]).ids[0] if number not in frame_ids(loaded)]
        return loaded.convert_ids_to_tokens(inside)

    plain = [tokens(text) for text in texts[:3]]
    between = [tokens(piece) for piece in ("北京", "很好", "苹果", "iphone", "发布", "3%")]
    assert plain == [between[0] + between[1], between[2] + between[3] + between[4], tokens("上涨") + between[5]]
    assert "[UNK]" not in sum(plain, [])
    assert tokens(texts[3]) == ["[MASK]", "[MASK]"]
    assert tokens(texts[4]) == [*between[0], "[MASK]", "[MASK]", *between[1]]
    assert tokens(texts[5]) == [*between[2], "[MASK]", *between[3], "[MASK]", *between[4]]
    assert tokens(texts[6]) == ["[MASK]", *between[5]]


def test_pairs_vary_one_side_then_the_other_then_both(tmp_path: Path) -> None:
    data = section(tmp_path, pairs=True, augment={"n_iter": 3, "p_mask": 1.0, "p_ng": 0})
    corpus = augmented(data)
    rows, train = corpus.parts["transfer"], corpus.parts["train"]
    for n in range(5):
        first, second = train.text[n].lower(), train.text_b[n].lower()
        masked, masked_b = (" ".join([MASK] * len(text.split())) for text in (first, second))
        of_row = {key: (a, b) for key, a, b in zip(rows.key, rows.text, rows.text_b, strict=True)}
        assert of_row[f"{train.key[n]}~0"] == (masked, second)
        assert of_row[f"{train.key[n]}~1"] == (first, masked_b)
        # both sides masked are the same for texts of one length: made before, they are left out
        assert of_row.get(f"{train.key[n]}~2", (masked, masked_b)) == (masked, masked_b)
    data = section(tmp_path, pairs=True, augment={"n_iter": 12, "p_mask": 0.5, "p_ng": 0})
    rows = augmented(data).parts["transfer"]
    changed = set()
    for key, text, text_b in zip(rows.key, rows.text, rows.text_b, strict=True):
        source = train.key.index(key.partition("~")[0])
        sides = text != train.text[source].lower(), text_b != train.text_b[source].lower()
        assert sides in {0: {(True, False)}, 1: {(False, True)}}.get(int(key.partition("~")[2]) % 3, {sides})
        changed.add(sides)
    assert (True, True) in changed


def test_prepare_writes_them_and_reads_the_mask(tmp_path: Path) -> None:
    data = section(tmp_path, augment={"n_iter": 4, "p_mask": 0.5, "p_ng": 0})
    recipe = Recipe.model_validate(
        {"name": "r", "data": data.model_dump(), "students": [{"name": "s", "model": {"type": "bilstm"}}]}
    )
    folder = RunFolder(tmp_path / "runs")
    prepare(recipe, folder, "rows", lambda name: name)
    prepared = PreparedData.open(folder)
    part = prepared.part("transfer", "students")
    texts = part.rows()["text"]
    assert (part.labels == -1).all() and len(part) == prepared.info["rows"]["transfer"]
    mask = load_tokenizer(prepared.tokenizer_path("students")).mask_token_id
    for row, text in enumerate(texts):
        tokens = part.tokens[part.offsets[row] : part.offsets[row + 1]]
        np.testing.assert_array_equal(tokens == mask, [word == MASK for word in text.split()])


def test_students_learn_on_them_by_default(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\ndata: {train: a.jsonl, augment: {n_iter: 2}}\nteachers: [{name: t, model: {type: textcnn}}]\n"
        "students: [{name: s, model: {type: bilstm}}, {name: alone, model: {type: bilstm}, teachers: []}]\n"
    )
    students = load_recipe(str(path)).students
    assert [student.rows for student in students] == [["train", "transfer"], ["train"]]
    path.write_text("name: r\ndata: {task: tagging, train: a.bmes, augment: {}}\n")
    with pytest.raises(InputError, match=r"data\.augment: is not for task 'tagging'"):
        load_recipe(str(path))
