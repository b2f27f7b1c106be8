"""Which tokens begin words and sentences; words are jieba's own, and the pieces of one word stay together."""

from __future__ import annotations

from pathlib import Path

import jieba
import pytest

from dtrain.data.problems import Problems
from dtrain.data.tokenizers import trained_tokenizer
from dtrain.errors import InputError
from dtrain.pretraining.words import SENTENCE, WORD, TokenFlagger, check_dictionary, segmenter
from dtrain.recipe.models import NezhaSpec

TEXT = "使用语言模型来预测下一个词的概率。iphone8很好用!真的"


def flagged(text: str, dictionary: str | None = None) -> list[tuple[str, int]]:
    """Tokens and flags of a text, by a tokenizer that knows its characters and cuts foreign words up."""
    spec = NezhaSpec(type="nezha", vocabulary_size=100)
    tokenizer = trained_tokenizer(spec, [[TEXT + " 机器学习 ip ho 涨了8.5%呢"] * 3], True)
    ids, flags = TokenFlagger(tokenizer, dictionary)([text])
    return list(zip(tokenizer.convert_ids_to_tokens(ids[0]), flags[0], strict=True))


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


def test_a_bad_dictionary_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("好\n两 个 词 多\n\n", encoding="utf-8")
    problems = Problems()
    check_dictionary(str(file), problems)
    assert [line.split(": ")[0] for line in problems.lines] == [f"{file}:2", f"{file}:3"]
    with pytest.raises(InputError, match="must be `word"):
        problems.raise_if_any()
