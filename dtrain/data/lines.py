"""Numbered lines of a text file: its encoding, its line ends, and messages where they are not as expected."""

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
SAMPLE = 1 << 18  # bytes from which an encoding or line ends are guessed
# Encodings whose line feed is not the single byte 0x0a, so that a file has to be decoded before it is cut into lines.
WIDE = ("utf-16", "utf-32")
KANA = range(0x3040, 0x3100)


def open_bytes(path: Path) -> io.BufferedReader:
    """A file's bytes, with a buffer of `SAMPLE` bytes for `peek`; a .gz file is decompressed."""
    raw: Any = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0)
    return io.BufferedReader(raw, SAMPLE)


def first_line(path: Path, encoding: str = UTF8) -> str:
    """The first line of a file that is not blank, or ""; bytes that cannot be decoded become replacement characters."""
    try:
        with open_bytes(path) as file:
            lines = file.read(SAMPLE).decode(codec_of(encoding), errors="replace").split("\n")
    except (OSError, EOFError, zlib.error):
        return ""  # the problem is reported when the file is read
    return next((line.rstrip("\r") for line in lines if line.strip()), "")


def codec_of(encoding: str) -> str:
    """The codec for an encoding; that for UTF-8 also drops a byte-order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == UTF8 else encoding


def numbered_lines(
    path: Path, name: str, problems: Problems, encoding: str = UTF8, key: str | None = None
) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without line ends; a byte-order mark, CRLF and .gz are accepted.

    Only a line feed ends a line: U+2028 and similar characters are text. A file with carriage returns and no line
    feed, as old Macs wrote them, has lines that end at carriage returns. After the first line that cannot be decoded,
    nothing more is yielded: such lines are counted and reported as one problem, with the encoding that the file
    probably has.

    Args:
        path: the file; `name` is its name in messages.
        problems: collects what is wrong.
        key: the recipe's key for the encoding; None: the file must have this encoding.
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
    except (OSError, EOFError, zlib.error) as error:  # messages of gzip: not a gzip file, CRC check failed, ...
        problems.add(f"{name}: cannot be read: {error}")
    except UnicodeError as error:
        problems.add(f"{name}: not valid {encoding} ({error}){_remedy(sample, encoding, key)}")


def _wide_lines(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    try:
        for line in text:
            yield line.encode()
    finally:
        text.detach()  # otherwise the wrapper would close the file a second time


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
    """The probable encoding of a text file that begins with `sample`, or None where none is likely.

    A byte-order mark decides. Without one, it is UTF-8 if the sample is valid UTF-8, else the first encoding in which
    the sample decodes to characters that are usual for it: GB18030, Shift JIS, Big5, or cp1252 with few accents.
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
    """Whether the characters outside of ASCII are those that text in this encoding usually has."""
    if encoding == "cp1252":
        return 0 < len(foreign) < 0.3 * length and all(
            character.isalnum() or character in "€’“”–" for character in foreign
        )
    if encoding == "shift_jis":
        return any(ord(character) in KANA for character in foreign)
    # Almost every pair of bytes is a character of GB18030; text mostly uses those of the older, smaller GB2312.
    usual = "gb2312" if encoding == "gb18030" else "big5"
    common = sum(_encodes(character, usual) for character in foreign)
    return common >= 0.9 * len(foreign) > 0


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
