"""Vectors of characters or words in word2vec's formats: files that end in .bin are binary, others are text.

Each line of a text file holds a token and its numbers; a first line "tokens width" is optional.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dtrain.errors import InputError

CHECKED = 128_000_000  # bytes that are checked, about 3 s for text; a larger file is read to the end when it is used
LONGEST_WORD = 4096  # bytes; a file without a space within this number of bytes is not in the binary format


def read_vectors(path: Path, width: int, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The tokens that are in `wanted` and their vectors, float32 [width], in the file's order, read as a stream.

    Raises:
        InputError: another width, an invalid number, or a file that ends too early. It names the line, or for binary
            files the byte.
    """
    try:
        yield from (_read_binary if path.suffix == ".bin" else _read_text)(path, width, wanted)
    except OSError as error:
        raise InputError(f"model.vectors: {path}: cannot be read: {error.strerror}") from None


def check_vectors(path: Path, width: int) -> None:
    """Check about the first `CHECKED` bytes of a file, for all tokens.

    Raises:
        InputError: as `read_vectors`.
    """
    size = 0
    for token, vector in read_vectors(path, width, _Everything()):
        size += len(token) + 1 + (4 if path.suffix == ".bin" else 9) * len(vector)  # approximate bytes of the vector
        if size > CHECKED:
            return


class _Everything(Container[str]):
    def __contains__(self, token: object) -> bool:
        return True


def _read_text(path: Path, width: int, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"model.vectors: {path}:{number}"
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: not valid UTF-8 (byte {raw[error.start]:#04x})") from None
            # Only spaces and tabs separate columns: tokens may contain other white space.
            token, *values = line.rstrip(" \t\r\n").replace("\t", " ").split(" ")
            if number == 1 and len(values) == 1 and token.isdigit():
                _check_width(int(values[0]) if values[0].isdigit() else -1, width, where)
                continue
            if not values and not token:
                continue
            _check_width(len(values), width, where)
            if token in wanted:
                try:
                    vector = np.array(values, dtype=np.float32)
                except ValueError as error:
                    raise InputError(f"{where}: {error}") from None
                _check_finite(vector, where)
                yield token, vector


def _read_binary(path: Path, width: int, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    with path.open("rb") as file:
        header = file.readline(LONGEST_WORD).split()
        where = f"model.vectors: {path}:1"
        if len(header) != 2 or not all(word.isdigit() for word in header):
            raise InputError(f'{where}: must be "tokens width", as word2vec writes it')
        count, found = map(int, header)
        _check_width(found, width, where)
        for index in range(count):
            where = f"model.vectors: {path}: byte {file.tell()}: token {index + 1} of {count}"
            token = _binary_token(file, where)
            raw = file.read(4 * width)
            if len(raw) != 4 * width:
                raise InputError(f"{where}: the file ends within it")
            if token in wanted:
                vector = np.frombuffer(raw, "<f4")
                _check_finite(vector, where)
                yield token, vector


def _binary_token(file: BinaryIO, where: str) -> str:
    """The bytes up to the next space, decoded; line feeds in front of them are dropped."""
    token = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte:
            raise InputError(f"{where}: the file ends within it")
        if len(token) > LONGEST_WORD:
            raise InputError(f"{where}: no blank in {LONGEST_WORD} bytes; is it word2vec's binary format?")
        token += byte
    return bytes(token).lstrip(b"\n").decode(errors="replace")


def _check_width(found: int, width: int, where: str) -> None:
    if found != width:
        raise InputError(f"{where}: {found} numbers, but model.embedding is {width}")


def _check_finite(vector: np.ndarray, where: str) -> None:
    if not np.isfinite(vector).all():
        raise InputError(f"{where}: holds NaN or infinity")
