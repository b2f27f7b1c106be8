"""Numbered lines of a text file: its encoding, its line ends, and what is said where they are not as expected."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dtrain.data.problems import Problems

UTF8 = "utf-8"
SAMPLE = 1 << 18  # bytes that a guess of an encoding or of line ends looks at
# Encodings whose line feed is not the byte 0x0a alone, so that a file has to be decoded before it is cut into lines.
WIDE = ("utf-16", "utf-32")
KANA = range(0x3040, 0x3100)


def open_bytes(path: Path) -> io.BufferedReader:
    """A file's bytes, with its first `SAMPLE` to peek at; those of a .gz file are unpacked on the way."""
    raw: Any = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0)
    return io.BufferedReader(raw, SAMPLE)


def first_line(path: Path, encoding: str = UTF8) -> str:
    """The first line of a file that is not blank, or nothing; what cannot be read becomes a replacement character."""
    try:
        with open_bytes(path) as file:
            lines = file.read(SAMPLE).decode(codec_of(encoding), errors="replace").split("\n")
    except (OSError, EOFError, zlib.error):
        return ""  # told when the file is read
    return next((line.rstrip("\r") for line in lines if line.strip()), "")


def codec_of(encoding: str) -> str:
    """The codec that drops a byte-order mark, too."""
    return "utf-8-sig" if codecs.lookup(encoding).name == UTF8 else encoding


def numbered_lines(
    path: Path, name: str, problems: Problems, encoding: str = UTF8, key: str | None = None
) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without line ends; a byte-order mark, CRLF and .gz are accepted.

    Lines end at a line feed alone: U+2028 and its kin are text. Only where a file has no line feed at all but carriage
    returns, as old Macs wrote them, do these end its lines. From the first line that cannot be decoded on, nothing is
    yielded: such lines are counted, and told as one problem with the encoding that the file is probably in.

    Args:
        key: the recipe's key that names the encoding; None: the file has to be in this one.
    """
    try:
        with open_bytes(path) as file:
            sample = file.peek()[:SAMPLE]
            wide = codecs.lookup(encoding).name.startswith(WIDE)
            old_mac = not wide and b"\n" not in sample and b"\r" in sample.removesuffix(b"\r")
            if old_mac:
                problems.remark(f"{name}: has no line feed: its lines are taken to end at carriage returns")
            lines = _wide_lines(file, encoding) if wide else _mac_lines(file) if old_mac else file
            yield from _decoded(lines, name, problems, encoding, key, sample)
    except (OSError, EOFError, zlib.error) as error:  # gzip's own words: not a gzip file, CRC check failed, ...
        problems.add(f"{name}: cannot be read: {error}")
    except UnicodeError as error:
        problems.add(f"{name}: not valid {encoding} ({error}){_remedy(sample, encoding, key)}")


def _wide_lines(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    try:
        for line in text:
            yield line.encode()
    finally:
        text.detach()  # else it closes the file a second time


def _mac_lines(file: io.BufferedReader) -> Iterator[bytes]:
    rest = b""
    while block := file.read(SAMPLE):
        *lines, rest = (rest + block).split(b"\r")
        yield from lines
    if rest:
        yield rest


def _decoded(
    lines: Iterable[bytes], name: str, problems: Problems, encoding: str, key: str | None, sample: bytes
) -> Iterator[tuple[int, str]]:
    wide = codecs.lookup(encoding).name.startswith(WIDE)
    codec = UTF8 if wide else encoding
    good = True
    for number, raw in enumerate(lines, 1):
        try:
            text = raw.decode(codec_of(codec) if number == 1 else codec)
        except UnicodeDecodeError as error:
            good = False
            named = "UTF-8" if codecs.lookup(encoding).name == UTF8 else encoding
            what = f"not valid {named} (byte {raw[error.start]:#04x} at {error.start + 1})"
            problems.add(f"{name}:{number}: {what}{_remedy(sample, encoding, key)}", f"{name}: encoding")
            continue
        if good:
            yield number, text.removesuffix("\n").removesuffix("\r")


def _remedy(sample: bytes, encoding: str, key: str | None) -> str:
    likely = likely_encoding(sample)
    if likely is None or likely == encoding:
        return ""
    return f"; it reads as {likely}: " + (f"set {key}: {likely}" if key else f"convert it to {encoding.upper()}")


def likely_encoding(sample: bytes) -> str | None:
    """The encoding that the beginning of a text file is probably in, or None where none is likely.

    A byte-order mark decides; else the first of these in which the sample decodes and reads like its language does:
    simplified Chinese, Japanese, traditional Chinese, and Western text with few accents.
    """
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = sample[: sample.rfind(b"\n") + 1] or sample  # the sample may end within a character
    for encoding in (UTF8, "gb18030", "shift_jis", "big5", "cp1252"):
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        foreign = [character for character in text if not character.isascii()]
        if encoding == UTF8 or _reads_well(foreign, len(text), encoding):
            return encoding
    return None


def _reads_well(foreign: list[str], length: int, encoding: str) -> bool:
    """Whether the characters beyond ASCII are those that text in this encoding is made of."""
    if encoding == "cp1252":
        return 0 < len(foreign) < 0.3 * length and all(
            character.isalnum() or character in "€’“”–" for character in foreign
        )
    if encoding == "shift_jis":
        return any(ord(character) in KANA for character in foreign)
    # Every byte pair is some character of GB18030; those of the older, smaller set are the ones in use.
    usual = "gb2312" if encoding == "gb18030" else "big5"
    common = sum(_encodes(character, usual) for character in foreign)
    return common >= 0.9 * len(foreign) > 0


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
