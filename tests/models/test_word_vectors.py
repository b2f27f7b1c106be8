"""word2vec files, text and binary, as they are and as they should not be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from dtrain.data.vectors import check_vectors
from dtrain.errors import InputError
from dtrain.models.word_vectors import fill_embedding

KNOWN = {"[PAD]": 0, "猫": 1, "the": 2, "a b": 3, "狗": 4}
VECTORS = {"[PAD]": [4.0, 4.0], "the": [1.0, -2.5], "猫": [0.5, 3e-5], "zebra": [9.0, 9.0]}


def text(header: bool = True, blank: str = " ", end: str = "\n") -> bytes:
    lines = [f"{word}{blank}{values[0]!r}{blank}{values[1]!r}" for word, values in VECTORS.items()]
    return (end.join(([f"{len(lines)} 2"] if header else []) + lines) + end).encode()


def binary(newline: bytes = b"\n") -> bytes:
    rows = [word.encode() + b" " + struct.pack("<2f", *values) + newline for word, values in VECTORS.items()]
    return b"4 2\n" + b"".join(rows)


def fill(path: Path, content: bytes) -> tuple[int, torch.Tensor]:
    path.write_bytes(content)
    torch.manual_seed(0)
    embedding = nn.Embedding(5, 2, padding_idx=0)
    before = embedding.weight.detach().clone()
    found = fill_embedding(embedding, path, KNOWN)
    untouched = [0, 3, 4]
    assert torch.equal(embedding.weight[untouched], before[untouched])
    return found, embedding.weight.detach()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.txt", text()),
        ("v.vec", text(header=False, end="\r\n")),
        ("v.txt", text(blank="\t")),
        ("v.txt", text() + b"the 7 7\n"),  # the first counts
        ("v.bin", binary()),
        ("v.bin", binary(b"")),  # as gensim writes it
    ],
)
def test_known_tokens_get_their_vectors(name: str, content: bytes, tmp_path: Path) -> None:
    found, weight = fill(tmp_path / name, content)
    assert found == 2
    torch.testing.assert_close(weight[[2, 1]], torch.tensor([VECTORS["the"], VECTORS["猫"]]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"3 4\nthe 1 2 3 4\n", r"v\.txt:1: 4 numbers, but model\.embedding is 2"),
        ("v.txt", b"the 1 2\nxx 1 2 3\n", r"v\.txt:2: 3 numbers, but model\.embedding is 2"),
        ("v.txt", b"xx 1 2\nthe 1 two\n", r"v\.txt:2: could not convert string to float: 'two'"),
        ("v.txt", b"xx 1 2\nthe 1 nan\n", r"v\.txt:2: holds NaN or infinity"),
        ("v.txt", b"the 1 2\n\xff 1 2\n", r"v\.txt:2: not valid UTF-8 \(byte 0xff\)"),
        ("v.txt", b"zebra 1 2\n", r"v\.txt: holds none of the 5 tokens of the vocabulary"),
        ("v.txt", b"", r"holds none of the 5 tokens"),
        ("v.bin", b"the 1 2\n", r'v\.bin:1: must be "tokens width"'),
        ("v.bin", b"3 4\n", r"v\.bin:1: 4 numbers, but model\.embedding is 2"),
        ("v.bin", binary()[:-6], r"v\.bin: byte \d+: token 4 of 4: the file ends within it"),
        ("v.bin", b"3 2\n" + bytes(9000), r"token 1 of 3: no blank in 4096 bytes"),
    ],
)
def test_bad_files_are_named_with_their_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fill(tmp_path / name, content)


@pytest.mark.parametrize(("name", "content"), [("v.txt", text()), ("v.txt", text(header=False)), ("v.bin", binary())])
def test_the_first_token_tells_the_width(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    check_vectors(path, 2)
    with pytest.raises(InputError, match=r"^model\.vectors: .*:1: 2 numbers, but model\.embedding is 300$"):
        check_vectors(path, 300)


def test_check_looks_at_every_token_of_a_file_of_usual_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at those that no vocabulary has; what lies behind the first `CHECKED` bytes is read when it is used."""
    path = tmp_path / "v.txt"
    path.write_text("a 0.1 0.2\n" * 9 + "行 0.761 oops\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"v\.txt:10: could not convert string to float: 'oops'"):
        check_vectors(path, 2)
    monkeypatch.setattr("dtrain.data.vectors.CHECKED", 50)
    check_vectors(path, 2)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.vectors: .*none\.txt: cannot be read: No such file"):
        fill_embedding(nn.Embedding(5, 2), tmp_path / "none.txt", KNOWN)
