"""Which tokens begin words and sentences; words are jieba's own, and the pieces of one word stay together."""

from __future__ import annotations

from pathlib import Path

import jieba
import pytest

from dtrain.data.problems import Problems
from dtrain.data.vocabularies import trained_tokenizer
from dtrain.errors import InputError
from dtrain.pretraining.words import TokenFlagger, check_dictionary, sections, segmenter
from dtrain.recipe.architectures.transformers import NezhaSpec
from dtrain.recipe.data import Normalization
from dtrain.tasks.masked_lm.masking import SENTENCE, UNKNOWN, WORD

TEXT = "使用语言模型来预测下一个词的概率。iphone8很好用!真的"


def flagged(text: str, dictionary: str | None = None) -> list[tuple[str, int]]:
    """Tokens and flags of a text, by a tokenizer that knows its characters and cuts foreign words up."""
    spec = NezhaSpec(type="nezha", vocabulary_size=100)
    tokenizer = trained_tokenizer(spec, [[TEXT + " 机器学习 ip ho 涨了8.5%呢"] * 3], True)
    ids, flags = TokenFlagger(tokenizer, dictionary)([text])
    return list(zip(tokenizer.convert_ids_to_tokens(ids[0].tolist()), flags[0].tolist(), strict=True))


def listed(flagger: TokenFlagger, texts: list[str]) -> list[list[list[int]]]:
    return [[row.tolist() for row in rows] for rows in flagger(texts)]


def grouped(tokens: list[tuple[str, int]], bit: int) -> list[str]:
    groups: list[str] = []
    for token, flags in tokens:
        if flags & bit:
            groups.append("")
        groups[-1] += token.removeprefix("##")
    return groups


def test_words_are_jiebas_and_foreign_words_stay_whole() -> None:
    tokens = flagged(TEXT)
    assert len(tokens) > len(grouped(tokens, WORD)) + 5  # several characters a word
    assert grouped(tokens, WORD) == jieba.lcut(TEXT)
    assert grouped(tokens, SENTENCE) == ["使用语言模型来预测下一个词的概率。", "iphone8很好用!", "真的"]
    assert "iphone8" in grouped(tokens, WORD)


def test_a_word_begins_only_where_jieba_and_the_tokenizer_agree() -> None:
    """To jieba `8.5%` is one word, to the tokenizer four; `ipho` is one to both, in two pieces."""
    tokens = flagged("ipho涨了8.5%呢")
    assert [token for token, _ in tokens] == ["ip", "##ho", "涨", "了", "8", ".", "5", "%", "呢"]
    assert grouped(tokens, WORD) == ["ipho", "涨", "了", "8.5%", "呢"]


def test_user_dictionary(tmp_path: Path) -> None:
    assert "机器学习" not in grouped(flagged("用机器学习"), WORD)
    file = tmp_path / "words.txt"
    file.write_text("机器学习 1000 n\n下一个词\n", encoding="utf-8")
    assert "机器学习" in grouped(flagged("用机器学习", str(file)), WORD)
    # jieba's own way of adding words is the reference; the shared default stays as it was.
    theirs = jieba.Tokenizer()
    theirs.load_userdict(str(file))
    assert grouped(flagged(TEXT, str(file)), WORD) == theirs.lcut(TEXT)
    assert "机器学习" not in segmenter(None).lcut("用机器学习")


def test_entries_are_normalised_as_the_text_is(tmp_path: Path) -> None:
    """Else none with capitals, full-width or traditional characters would ever be found."""
    file = tmp_path / "words.txt"
    file.write_text("機器學習 1000\nＮＢＡ总决赛\n\u200b\n", encoding="utf-8")
    words = segmenter(str(file), Normalization())
    assert {"机器学习", "nba总决赛"} <= set(words.lcut("用机器学习看nba总决赛"))
    assert "机器学习" not in segmenter(str(file)).lcut("用机器学习")


def test_a_tokenizer_that_cuts_and_pads_is_told_not_to() -> None:
    spec = NezhaSpec(type="nezha", vocabulary_size=100)
    tokenizer = trained_tokenizer(spec, [[TEXT] * 3], True)
    plain = listed(TokenFlagger(tokenizer, None), [TEXT, "词"])
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert listed(TokenFlagger(tokenizer, None), [TEXT, "词"]) == plain


def test_what_a_text_says_of_special_tokens_is_text_and_words_with_unknown_tokens_are_marked() -> None:
    spec = NezhaSpec(type="nezha", vocabulary_size=100)
    tokenizer = trained_tokenizer(spec, [["使用[MASK]和[SEP]模型,mask", "sep"] * 3], lower=False)
    ((ids,), (flags,)) = listed(TokenFlagger(tokenizer, None), ["使用[MASK]和[SEP]模型甲"])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert set(ids) & set(tokenizer.all_special_ids) == {tokenizer.unk_token_id} and "[" in tokens
    assert [token for token, flag in zip(tokens, flags, strict=True) if flag & UNKNOWN][-1] == "[UNK]"
    assert not any(flag & UNKNOWN for token, flag in zip(tokens, flags, strict=True) if token in "使用和")


def test_long_documents_are_encoded_in_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which end with sentences, so that ids and flags are those of the whole."""
    spec = NezhaSpec(type="nezha", vocabulary_size=100)
    flagger = TokenFlagger(trained_tokenizer(spec, [[TEXT] * 3], True), None)
    document = f"{TEXT}\n\n{TEXT}……“{TEXT}。” {TEXT}. {TEXT}甲\n" * 3
    texts = [TEXT, "", document, "词", document, "\n"]
    together = listed(flagger, texts)
    for limit in (20, 30, 50):
        assert len(list(sections(document, limit))) > 5
        monkeypatch.setattr("dtrain.pretraining.words.ENCODE_CHARACTERS", limit)
        assert listed(flagger, texts) == together


def test_sections_lose_nothing() -> None:
    text = "一二三。四五六七八九十。" + "长" * 25 + "!\n末"
    parts = list(sections(text, 10))
    assert "".join(parts) == text and all(0 < len(part) <= 10 for part in parts)
    assert parts[:2] == ["一二三。", "四五六七八九十。"], "as much as fits, whole sentences"
    assert parts[2:4] == ["长" * 10] * 2, "a sentence that is too long is cut"
    assert list(sections("", 10)) == [""]


def test_a_bad_dictionary_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("好\n两 个 词 多\n\n", encoding="utf-8")
    problems = Problems()
    check_dictionary(str(file), problems)
    (line,) = problems.lines
    assert line.startswith(f"{file}:2: must be `word [count [tag]]`, found '两 个 词 多'")
    assert line.endswith("(1 more like it)")
    with pytest.raises(InputError, match="must be `word"):
        problems.raise_if_any()
