"""Tokenizers and encoding, against plain dictionaries and transformers' own calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from dtrain.data.encode import Encoder
from dtrain.data.tokenizers import SPECIALS, check_tokenizers, tokenizer_name
from dtrain.data.vocabularies import WordCounter, given_tokenizer, load_tokenizer, student_tokenizer, trained_tokenizer
from dtrain.errors import InputError
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.recipe.data import Vocabulary
from dtrain.recipe.schema import Recipe

TEXTS = ["中文 ab", "文文中 b", "b[SEP]中", ""]


def test_characters_by_count() -> None:
    tokenizer = student_tokenizer(Vocabulary(min_count=2), [TEXTS[:2], TEXTS[2:]])
    # Three of 文, 中 and b, two spaces; one of the rest, which min_count leaves out.
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == [*SPECIALS, "b", "中", "文", " "]


@pytest.mark.parametrize("unit", ["character", "word"])
def test_students_read_plain_tokens(unit: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary.model_validate({"unit": unit, "min_count": 1})
    student_tokenizer(vocabulary, [TEXTS]).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    numbers = loaded.get_vocab()
    encoded = Encoder(loaded, max_length=6, pairs=False)(TEXTS)
    for text, ids, cut in zip(TEXTS, encoded.ids, encoded.cut, strict=True):
        tokens = list(text) if unit == "character" else text.split()
        assert ids == ([numbers[token] for token in tokens[:6]] or [numbers["[UNK]"]])
        assert cut == (len(tokens) > 6)
    assert encoded.types is None
    assert AutoTokenizer.from_pretrained(tmp_path)("中ab")["input_ids"] == loaded("中ab")["input_ids"]


def test_students_read_pairs_with_one_separator() -> None:
    tokenizer = student_tokenizer(Vocabulary(min_count=1), [["abc"]])
    encoded = Encoder(tokenizer, max_length=6, pairs=True)(["a", "aaaaaa", "", "a"], ["b", "bb", "b", "[SEP]"])
    a, b, unknown, separator = tokenizer.convert_tokens_to_ids(["a", "b", "[UNK]", "[SEP]"])
    assert encoded.ids == [
        [a, separator, b],
        [a, a, a, separator, b, b],
        [separator, b],
        [a, separator, *[unknown] * 4],
    ]
    assert encoded.cut == [False, True, False, True]


def test_a_most_frequent_vocabulary() -> None:
    tokenizer = student_tokenizer(Vocabulary(min_count=1, max_size=8), [["aaabbbccd"]])
    assert list(tokenizer.get_vocab()) and set(tokenizer.get_vocab()) == {*SPECIALS, "a", "b", "c"}


def test_a_vocabulary_file_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("中\n[UNK]\n文\n", encoding="utf-8")
    tokenizer = student_tokenizer(Vocabulary(file=str(tmp_path / "v.txt")), [])
    expected = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "中", "[UNK]", "文"]
    assert tokenizer.convert_ids_to_tokens(list(range(7))) == expected


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    tokens = [*SPECIALS, "中", "文", "标", "题", "ab", "##c", "##d", "a", "b", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=12).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("given", ["pretrained", "vocabulary"])
@pytest.mark.parametrize("pairs", [False, True])
def test_transformers_are_encoded_as_transformers_does(given: str, pairs: bool, bert_folder: Path) -> None:
    name = str(bert_folder if given == "pretrained" else bert_folder.parent / "vocab.txt")
    spec = BertSpec.model_validate({"type": "bert", given: name})
    tokenizer = given_tokenizer("t", spec, max_length=8, lower=True)
    assert tokenizer is not None
    texts = ["中文标题abcd", "AB. a b", "", "未知 abc"]
    texts_b = ["a", "文文文文文文文", "b", "标题标题标题"] if pairs else None
    encoded = Encoder(tokenizer, 8, pairs)(texts, texts_b)
    reference = BertTokenizerFast(str(bert_folder.parent / "vocab.txt"))
    expected = reference(texts, texts_b, truncation="longest_first", max_length=8)
    assert encoded.ids == expected["input_ids"]
    assert encoded.types == (expected["token_type_ids"] if pairs else None)
    full = [len(ids) for ids in reference(texts, texts_b)["input_ids"]]
    assert encoded.cut == [length > 8 for length in full]


@pytest.mark.parametrize("whose", ["bert", "students"])
def test_where_tokens_stand(whose: str, bert_folder: Path) -> None:
    """As many spans as ids; special tokens without a place, the others with the text that they were made of."""
    bert = whose == "bert"
    tokenizer = load_tokenizer(bert_folder) if bert else student_tokenizer(Vocabulary(min_count=1), [["中文标题abcd"]])
    texts, seconds = ["中文标题abcd", "a[SEP]b", "", "未知 abc"], ["a", "文文文文文文文", "b", "标题 题"]
    for pair in (None, seconds):
        encoder = Encoder(tokenizer, 8, pair is not None)
        spans, encoded = encoder.spans(texts, pair), encoder(texts, pair)
        assert [len(own) for own in spans] == [len(ids) for ids in encoded.ids]
        for row, own in enumerate(spans):
            both = (texts[row], "" if pair is None else pair[row])
            for (which, start, end), token in zip(own, tokenizer.convert_ids_to_tokens(encoded.ids[row]), strict=True):
                if which < 0:
                    assert token in ("[CLS]", "[SEP]", "[UNK]")  # the last one of an empty text
                elif token != "[UNK]":
                    assert both[which][start:end] == token.removeprefix("##")
        assert {which for own in spans for which, _, _ in own} >= ({0} if pair is None else {0, 1})


def test_special_tokens_are_not_read_from_text(bert_folder: Path) -> None:
    tokenizer = load_tokenizer(bert_folder)
    encoded = Encoder(tokenizer, 12, pairs=False)(["a[SEP]b"])
    assert encoded.ids == tokenizer(["a[SEP]b"], split_special_tokens=True)["input_ids"]
    assert encoded.ids[0].count(tokenizer.sep_token_id) == 1


def test_a_trained_wordpiece_keeps_chinese_single(tmp_path: Path) -> None:
    spec = BertSpec.model_validate({"type": "bert", "vocabulary_size": 100})
    texts = [["中文中文 hello hello", "hello中文, shell"]]
    tokenizer = trained_tokenizer(spec, texts, lower=True)
    assert tokenizer.tokenize("中文hello 中") == ["中", "文", "hello", "中"]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("中", "文")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert loaded.convert_ids_to_tokens(loaded("中")["input_ids"]) == ["[CLS]", "中", "[SEP]"]
    assert loaded.mask_token_id == 4


def test_words_of_a_long_text_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Hello 中文 wörld, well-known " * 20, "", "ends without a blank"] * 2
    whole = WordCounter(lower=True)(texts)
    assert whole["hello"] == 40 and whole["中"] == 40 and whole["world"] == 40
    monkeypatch.setattr("dtrain.data.vocabularies.BLOCK_CHARACTERS", 30)
    assert WordCounter(lower=True)(texts) == whole
    assert WordCounter(lower=True)(["中" * 100]) == {"中": 100}  # no blank to cut at


# --- names and bad input ---------------------------------------------------------------------------


def recipe(teachers: list[dict[str, object]], students: list[dict[str, object]], **data: object) -> Recipe:
    section = {"train": "t.jsonl", **data}
    return Recipe.model_validate({"name": "r", "data": section, "teachers": teachers, "students": students})


def test_names() -> None:
    made = recipe(
        [{"name": "big", "model": {"type": "bert"}}, {"name": "cnn", "model": {"type": "textcnn"}}],
        [{"name": "s", "model": {"type": "bilstm"}}, {"name": "big", "model": {"type": "bert"}}],
    )
    assert [tokenizer_name(m) for m in [*made.teachers, *made.students]] == [
        "big",
        "students",
        "students",
        "big",
    ]
    check_tokenizers(made)


def test_names_that_clash() -> None:
    bert = {"type": "bert"}
    with pytest.raises(InputError, match=r"students\.0\.name: 'big' is also a teacher, with another tokenizer"):
        check_tokenizers(
            recipe([{"name": "big", "model": bert}], [{"name": "big", "model": {**bert, "vocabulary_size": 200}}])
        )
    with pytest.raises(InputError, match=r"teachers\.0\.name: 'students' is what the students' tokenizer"):
        check_tokenizers(recipe([{"name": "students", "model": bert}], []))


def test_bad_vocabulary_files(tmp_path: Path) -> None:
    students: list[dict[str, object]] = [{"name": "s", "model": {"type": "bilstm"}}]
    file = tmp_path / "v.txt"
    for content, expected in [
        ("a\n\nb\na\n", r"v\.txt:2: a token is missing.*\n.*v\.txt:4: token 'a' is already in line 1"),
        ("", "the file is empty"),
        (None, "no such file"),
    ]:
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=expected):
            check_tokenizers(recipe([], students, vocabulary={"file": str(file)}))
    file.write_text("[PAD]\n[UNK]\na\n", encoding="utf-8")
    teacher = {"name": "t", "model": {"type": "bert", "vocabulary": str(file)}}
    with pytest.raises(InputError, match=r"t: model\.vocabulary: .*has no \[CLS\], \[SEP\], \[MASK\]"):
        check_tokenizers(recipe([teacher], []))


def test_bad_pretrained_folders(tmp_path: Path, bert_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    spec = BertSpec.model_validate({"type": "bert", "pretrained": str(tmp_path / "empty")})
    with pytest.raises(InputError, match=r"t: model\.pretrained: .*empty: no tokenizer can be loaded"):
        given_tokenizer("t", spec, 8, lower=True)
    spec = BertSpec.model_validate({"type": "bert", "pretrained": str(bert_folder)})
    with pytest.raises(InputError, match=r"data\.max_length: 13 is more than t takes \(12\)"):
        given_tokenizer("t", spec, 13, lower=True)


def test_a_tokenizer_without_a_word_is_refused(tmp_path: Path, bert_folder: Path) -> None:
    """transformers makes one where the vocabulary's file is missing, or is that of another type of model."""
    shutil.copytree(bert_folder, tmp_path / "m")
    spec = BertSpec.model_validate({"type": "bert", "pretrained": str(tmp_path / "m")})
    (tmp_path / "m" / "config.json").write_text('{"model_type": "roberta"}', encoding="utf-8")
    for file in tmp_path.glob("m/tokenizer*"):
        file.unlink()
    for file in tmp_path.glob("m/vocab.txt"):
        file.rename(tmp_path / "vocab.txt")
    with pytest.raises(InputError, match=r"t: model\.pretrained: .*m: its tokenizer knows special tokens alone"):
        given_tokenizer("t", spec, 8, lower=True)
    with pytest.raises(InputError, match=r"m: holds no tokenizer\.json"):
        load_tokenizer(tmp_path / "m")
