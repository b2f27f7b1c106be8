"""CoNLL files: columns, sentences, and tokens spread over characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.data.conll import join_tokens, read_conll, spread
from dtrain.data.files import Source
from dtrain.data.problems import Problems
from dtrain.data.schemes import Span, read_spans, write_tags
from dtrain.errors import InputError

Found = list[tuple[int, list[str], list[str] | None]]


def read(
    folder: Path, content: str, part: str = "train", text: str | int = "text", label: str | int = "label"
) -> Found:
    path = folder / "a.conll"
    path.write_bytes(content.encode())
    problems = Problems()
    found = read_conll(Source(part, str(path), "conll"), text, label, part != "transfer", problems)
    problems.raise_if_any()
    return [(sentence.line, sentence.tokens, sentence.tags) for sentence in found]


def test_sentences(tmp_path: Path) -> None:
    content = "\ufeff-DOCSTART- X O O\n\n张 _ B-X\r\n三  _   E-X\n \t\n\n\n, _ O\n-DOCSTART- -X- O O\n四 _ O"
    assert read(tmp_path, content) == [
        (3, ["张", "三"], ["B-X", "E-X"]),
        (8, [","], ["O"]),
        (10, ["四"], ["O"]),
    ]


def test_tabs_let_blanks_be_tokens(tmp_path: Path) -> None:
    assert read(tmp_path, "a\tO\n \tO\nb c\tO\n\u3000\tO\n") == [(1, ["a", " ", "b c", "\u3000"], ["O"] * 4)]
    assert read(tmp_path, "a O\n\u3000 O\n\x85 O\n\u2028 O\n") == [(1, ["a", "\u3000", "\x85", "\u2028"], ["O"] * 4)]


def test_columns_by_number(tmp_path: Path) -> None:
    content = "1 Bob B-X NNP\n2 ran O VBD\n"
    assert read(tmp_path, content, text=1, label=2) == [(1, ["Bob", "ran"], ["B-X", "O"])]
    assert read(tmp_path, content) == [(1, ["1", "2"], ["NNP", "VBD"])]


def test_without_tags(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nb\n\nc\n", "test") == [(1, ["a", "b"], None), (4, ["c"], None)]
    assert read(tmp_path, "a\nb\n", "transfer") == [(1, ["a", "b"], None)]
    assert read(tmp_path, "a what\nb ever\n", "transfer") == [(1, ["a", "b"], None)]


@pytest.mark.parametrize(
    ("content", "part", "line", "reason"),
    [
        ("a O\nb\n", "train", 2, "1 column(s), but line 1 has 2"),
        ("a O\nb\n", "test", 2, "1 column(s), but line 1 has 2"),
        ("a\nb\n", "train", 1, "has 1 column; needs a token and a tag"),
        ("a\nb\n", "valid", 1, "has 1 column; needs a token and a tag"),
        ("a O\n O\n", "train", 2, "has no token, or one of blanks"),
        ("a O\n\n\tO\n", "train", 3, "has no token, or one of blanks"),
        ("a O\nNew York O\n", "train", 2, "3 column(s), but line 1 has 2"),
        ("张\u3000O\n", "train", 1, "has 1 column"),
        ("张\u3000O\n", "test", 1, "holds white space"),
        ("张\u3000O\n", "transfer", 1, "holds white space"),
        ("a O\nb\u00a0c O\n", "train", 2, "holds white space"),
    ],
)
def test_bad_lines(tmp_path: Path, content: str, part: str, line: int, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content, part)
    (problem,) = caught.value.problems
    assert f"a.conll:{line}: " in problem
    assert reason in problem


def test_bad_bytes_and_missing_columns(tmp_path: Path) -> None:
    path = tmp_path / "b.conll"
    path.write_bytes("张 O\n".encode() + b"\xff O\n")
    problems = Problems()
    read_conll(Source("train", str(path), "conll"), "text", "label", True, problems)
    assert problems.lines == [f"{path}:2: not valid UTF-8 (byte 0xff at 1)"]
    for text, label, key in ((2, "label", "text"), (0, 7, "label")):
        with pytest.raises(InputError, match=rf"a.conll:1: has no column .* \(data.columns.{key}; 2 column"):
            read(tmp_path, "a O\n", text=text, label=label)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["New", "York", "City"], "New York City"),
        (["1", "9", "6", "6", "年"], "1966年"),
        (["I", "am", "A", "B"], "I am AB"),
        (["去", "New", "York", "。"], "去New York。"),
        (["it", "'s", "3", ".", "14"], "it's 3.14"),
        (["é", "ab"], "éab"),
        ([" ", "ab", "cd"], " ab cd"),
    ],
)
def test_joining(tokens: list[str], text: str) -> None:
    joined, starts = join_tokens(tokens)
    assert joined == text
    assert [joined[start : start + len(token)] for token, start in zip(tokens, starts, strict=True)] == tokens


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("bioes", "S-X O B-Y E-Y", "B-X I-X E-X O B-Y I-Y I-Y I-Y I-Y E-Y"),
        ("bio", "B-X O B-Y I-Y", "B-X I-X I-X O B-Y I-Y I-Y I-Y I-Y I-Y"),
        ("bmes", "S-X O B-Y E-Y", "B-X M-X E-X O B-Y M-Y M-Y M-Y M-Y E-Y"),
        ("iob1", "I-X O I-Y I-Y", "I-X I-X I-X O I-Y I-Y I-Y I-Y I-Y I-Y"),
        ("bilou", "O O U-X U-Y", "O O O O B-X I-X L-X O B-Y L-Y"),
    ],
)
def test_tokens_spread_over_characters(scheme: str, tags: str, expected: str) -> None:
    tokens = ["王小明", "在", "New", "AI"]
    text, starts = join_tokens(tokens)
    assert text == "王小明在New AI"
    spans = spread(read_spans(tags.split(), scheme), tokens, starts)
    assert write_tags(spans, len(text), scheme) == expected.split()


def test_a_blank_inside_an_entity_is_its_own() -> None:
    text, starts = join_tokens(["New", "York", "NY"])
    assert spread([Span(0, 2, "LOC"), Span(2, 3, "LOC")], ["New", "York", "NY"], starts) == [
        Span(0, 8, "LOC"),
        Span(9, 11, "LOC"),
    ]
