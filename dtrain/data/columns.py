"""Columns of the rows of a part that are read: a few bytes a row in memory, the texts themselves in a temporary file.

A Python object a value would take a gibibyte for a million titles. These columns read and compare as lists do:

    TextColumn       UTF-8 bytes, from 4 MiB on in a file that has no name; 12 bytes a row in memory
    JsonColumn       lists and mappings, as such a text
    LabelColumn      the number of each row's label, 4 bytes, and each label once
    NumberColumn     float64, 8 bytes
    LabelSetColumn   the numbers of a row's labels, 4 bytes each and 12 a row
    SpanColumn       start, end and number of the type of each entity, 12 bytes, and 12 a row
    KeyColumn        file and line, 8 bytes, and what the user calls a row as a text column

None in a row without a label is kept apart from an empty list.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import xxhash

from dtrain.data.schemes import Span

T = TypeVar("T")
KEPT = 4 << 20  # bytes of text in memory, before they are written to the file
BLOCK = 1024  # rows whose texts are read at once
CODEC = {"encoding": "utf-8", "errors": "surrogatepass"}


class Values(Sequence[T], Generic[T]):
    """Values that are made when they are asked for."""

    @abstractmethod
    def _get(self, row: int) -> T:
        """The value of a row from 0."""

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: int | slice) -> T | list[T]:
        if isinstance(row, slice):
            return [self._get(number) for number in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self._get(row % len(self))

    def __iter__(self) -> Iterator[T]:
        return map(self._get, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:5]}{'...' if len(self) > 5 else ''})"


class Column(Values[T]):
    """A value a row, appended one after another."""

    def __init__(self, values: Iterable[T] = ()) -> None:
        for value in values:
            self.append(value)

    @abstractmethod
    def append(self, value: T) -> None:
        """Add a row's value."""

    @abstractmethod
    def take(self, index: np.ndarray) -> Self:
        """The values of the rows at `index`, int [M], in that order."""


class _Bytes:
    """Bytes one after another, the last of them in memory, all before in a temporary file that no folder shows.

    The file is where Python's `tempfile` puts it (TMPDIR), is gone with the process that reads, and takes no memory but
    pages that the kernel may drop, unless that folder is itself in memory.
    """

    def __init__(self) -> None:
        self._file: Any = None
        self._written = 0
        self._rest = bytearray()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is all that it holds: a file without a name cannot be opened there."""
        return _bytes_of, (self.read(0, self._written + len(self._rest)),)

    def add(self, data: bytes) -> int:
        """Append, and return the place."""
        place = self._written + len(self._rest)
        self._rest += data
        if len(self._rest) >= KEPT:
            self._write()
        return place

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="dtrain-")  # noqa: SIM115 - open as long as there are rows
            self._file.write(self._rest)
            self._file.flush()
        except OSError as error:
            what = f"texts that are read, {self._written + len(self._rest):,} bytes so far"
            where = "TMPDIR names the folder of temporary files, by default /tmp"
            raise OSError(error.errno, f"{error.strerror or error} (a temporary file of {what}; {where})") from error
        self._written += len(self._rest)
        self._rest.clear()

    def read(self, start: int, end: int) -> bytes:
        if start >= self._written:
            return bytes(self._rest[start - self._written : end - self._written])
        found = os.pread(self._file.fileno(), min(end, self._written) - start, start)
        return found if end <= self._written else found + bytes(self._rest[: end - self._written])


def _bytes_of(data: bytes) -> _Bytes:
    found = _Bytes()
    found.add(data)
    return found


class TextColumn(Column[str]):
    """A text a row. Columns that `take` makes share the bytes."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._bytes = _Bytes()
        self._starts, self._sizes = array("q"), array("i")
        super().__init__(values)

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, value: str) -> None:
        data = value.encode(**CODEC)
        self._starts.append(self._bytes.add(data))
        self._sizes.append(len(data))

    def take(self, index: np.ndarray) -> Self:
        taken = type(self)()
        taken._bytes = self._bytes
        taken._starts, taken._sizes = _taken(self._starts, index), _taken(self._sizes, index)
        return taken

    def _get(self, row: int) -> str:
        start = self._starts[row]
        return self._bytes.read(start, start + self._sizes[row]).decode(**CODEC)

    def __iter__(self) -> Iterator[str]:
        return (data.decode(**CODEC) for data in self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """The texts in order, as UTF-8."""
        for first in range(0, len(self), BLOCK):
            starts, sizes = self._starts[first : first + BLOCK], self._sizes[first : first + BLOCK]
            low = min(starts)
            high = max(map(int.__add__, starts, sizes))
            if high - low > 4 * sum(sizes) + KEPT:  # far apart, as after `take`
                for start, size in zip(starts, sizes, strict=True):
                    yield self._bytes.read(start, start + size)
                continue
            block = self._bytes.read(low, high)
            for start, size in zip(starts, sizes, strict=True):
                yield block[start - low : start - low + size]


class JsonColumn(Column[Any]):
    """A value a row that is made of lists, mappings, texts and numbers; a text column of what JSON makes of it."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._texts = TextColumn()
        super().__init__(values)

    def __len__(self) -> int:
        return len(self._texts)

    def append(self, value: Any) -> None:
        self._texts.append(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def take(self, index: np.ndarray) -> Self:
        taken = type(self)()
        taken._texts = self._texts.take(index)
        return taken

    def _get(self, row: int) -> Any:
        return json.loads(self._texts[row])

    def __iter__(self) -> Iterator[Any]:
        return map(json.loads, self._texts)


def hashes(*columns: TextColumn) -> np.ndarray:
    """A number for each row of one or several columns of texts, uint64 [N], the same for the same texts.

    Two different rows out of 10 million have the same one with a probability of 3 in a million (n^2 / 2^65).
    """
    found = array("Q")
    for row in zip(*(column.encoded() for column in columns), strict=True):
        found.append(hash_of(row))
    return np.array(found, dtype=np.uint64)


def hash_of(row: Iterable[bytes]) -> int:
    """The number of the texts of one row, which are in UTF-8; see `hashes`."""
    number = 0
    for data in row:
        number = xxhash.xxh3_64_intdigest(data, seed=number)
    return number


class _Names:
    """Names by number, each once, in the order in which they came."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a name, a new one where it was not seen before."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


class LabelColumn(Column[str | None]):
    """A label a row, or None."""

    def __init__(self, values: Iterable[str | None] = ()) -> None:
        self._labels = _Names()
        self._codes = array("i")
        super().__init__(values)

    @property
    def names(self) -> list[str]:
        """The labels by number."""
        return self._labels.names

    @property
    def codes(self) -> np.ndarray:
        """Of each row the number of its label, int32 [N], -1 for None."""
        return np.array(self._codes, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._codes)

    def append(self, value: str | None) -> None:
        self._codes.append(-1 if value is None else self._labels.number(value))

    def take(self, index: np.ndarray) -> Self:
        taken = type(self)()
        taken._labels, taken._codes = self._labels, _taken(self._codes, index)
        return taken

    def counts(self) -> dict[str, int]:
        """How many rows have each label, of those that rows have."""
        codes, counts = np.unique(self.codes, return_counts=True)
        found = zip(codes.tolist(), counts.tolist(), strict=True)
        return {self.names[code]: count for code, count in found if code >= 0}

    def renamed(self, names: dict[str, str]) -> Self:
        """The same with another name in the place of each label."""
        found = type(self)()
        numbers = [found._labels.number(names.get(name, name)) for name in self.names]
        found._codes = array("i", map([*numbers, -1].__getitem__, self._codes))
        return found

    def _get(self, row: int) -> str | None:
        code = self._codes[row]
        return None if code < 0 else self.names[code]

    def __iter__(self) -> Iterator[str | None]:
        return map([*self.names, None].__getitem__, self._codes)


class TargetColumn(TextColumn):
    """A text a row, or None, which is read as an empty text: no text that is written is empty."""

    def append(self, value: str | None) -> None:
        super().append(value or "")

    @property
    def bare(self) -> np.ndarray:
        """bool [N], whether a row has none."""
        return np.array(self._sizes, dtype=np.int64) == 0


class NumberColumn(Column[float | None]):
    """A finite number a row, or None."""

    def __init__(self, values: Iterable[float | None] = ()) -> None:
        self._values = array("d")
        super().__init__(values)

    @property
    def values(self) -> np.ndarray:
        """float64 [N], NaN for None."""
        return np.array(self._values, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._values)

    def append(self, value: float | None) -> None:
        self._values.append(math.nan if value is None else value)

    def take(self, index: np.ndarray) -> Self:
        taken = type(self)()
        taken._values = _taken(self._values, index)
        return taken

    def _get(self, row: int) -> float | None:
        value = self._values[row]
        return None if math.isnan(value) else value


class KeyColumn(Values[str]):
    """What a row is known by: the user's id, or its file and line where the user gives none.

    Attributes:
        file: of each row, the number of its file.
        line: of each row, its line.
    """

    def __init__(self) -> None:
        self.file, self.line = array("i"), array("i")
        self._given = TextColumn()  # of all rows or of none

    def __len__(self) -> int:
        return len(self.line)

    def add(self, key: str | None, file: int, line: int) -> None:
        """Add a row's; no key is empty."""
        if key is not None and not self._given:
            self._given = TextColumn([""] * len(self))
        if key is not None or self._given:
            self._given.append(key or "")
        self.file.append(file)
        self.line.append(line)

    def take(self, index: np.ndarray) -> KeyColumn:
        """Those of the rows at `index`, int [M], in that order."""
        taken = KeyColumn()
        taken.file, taken.line = _taken(self.file, index), _taken(self.line, index)
        if self._given:
            taken._given = self._given.take(index)
        return taken

    def _get(self, row: int) -> str:
        return (self._given[row] if self._given else "") or f"{self.file[row]}:{self.line[row]}"

    def __iter__(self) -> Iterator[str]:
        given = iter(self._given) if self._given else repeat("")
        for key, file, line in zip(given, self.file, self.line, strict=False):
            yield key or f"{file}:{line}"


class _ListColumn(Column[list[T] | None]):
    """A list a row, or None: its items lie in arrays side by side, which columns that `take` makes share."""

    def __init__(self, values: Iterable[list[T] | None] = ()) -> None:
        self._starts, self._sizes = array("q"), array("i")  # -1 for None
        self._labels = _Names()
        super().__init__(values)

    @abstractmethod
    def _add(self, items: list[T]) -> int:
        """Append the items of a row, and return the place of the first."""

    @abstractmethod
    def _numbers(self) -> array[int]:
        """The number of each item's name."""

    @abstractmethod
    def _items(self, start: int, end: int) -> list[T]:
        """The items at these places."""

    @property
    def bare(self) -> np.ndarray:
        """Which rows have None, bool [N]."""
        return np.array(self._sizes, dtype=np.int32) < 0

    @property
    def sizes(self) -> np.ndarray:
        """Items of each row, int64 [N]; 0 for None."""
        return np.maximum(np.array(self._sizes, dtype=np.int64), 0)

    def counts(self) -> dict[str, int]:
        """How many items of the rows have each name, of those that some have."""
        starts, sizes = np.array(self._starts, dtype=np.int64), self.sizes
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        numbers = np.array(self._numbers(), dtype=np.int64)[np.repeat(starts, sizes) + within]
        found, counts = np.unique(numbers, return_counts=True)
        return {self._labels.names[n]: count for n, count in zip(found.tolist(), counts.tolist(), strict=True)}

    def __len__(self) -> int:
        return len(self._sizes)

    def append(self, value: list[T] | None) -> None:
        self._starts.append(self._add(value or []))
        self._sizes.append(-1 if value is None else len(value))

    def __setitem__(self, row: int, value: list[T]) -> None:
        self._starts[row] = self._add(value)
        self._sizes[row] = len(value)

    def take(self, index: np.ndarray) -> Self:
        taken = type(self)()
        shared = {name: value for name, value in vars(self).items() if name not in ("_starts", "_sizes")}
        vars(taken).update(shared)
        taken._starts, taken._sizes = _taken(self._starts, index), _taken(self._sizes, index)
        return taken

    def _get(self, row: int) -> list[T] | None:
        start, size = self._starts[row], self._sizes[row]
        return None if size < 0 else self._items(start, start + size)


class LabelSetColumn(_ListColumn[str]):
    """Any number of labels a row, or None."""

    def __init__(self, values: Iterable[list[str] | None] = ()) -> None:
        self._codes = array("i")
        super().__init__(values)

    def _add(self, items: list[str]) -> int:
        place = len(self._codes)
        self._codes.extend(map(self._labels.number, items))
        return place

    def _numbers(self) -> array[int]:
        return self._codes

    def _items(self, start: int, end: int) -> list[str]:
        return list(map(self._labels.names.__getitem__, self._codes[start:end]))


class SpanColumn(_ListColumn[Span]):
    """The entities of a row in order, or None."""

    def __init__(self, values: Iterable[list[Span] | None] = ()) -> None:
        self._begins, self._ends, self._types = array("i"), array("i"), array("i")
        super().__init__(values)

    def _add(self, items: list[Span]) -> int:
        place = len(self._types)
        for span in items:
            self._begins.append(span.start)
            self._ends.append(span.end)
            self._types.append(self._labels.number(span.type))
        return place

    def _numbers(self) -> array[int]:
        return self._types

    def _items(self, start: int, end: int) -> list[Span]:
        types = map(self._labels.names.__getitem__, self._types[start:end])
        return list(map(Span, self._begins[start:end], self._ends[start:end], types))


def _taken(values: array[Any], index: np.ndarray) -> array[Any]:
    found: array[Any] = array(values.typecode)
    if len(index):
        found.frombytes(np.frombuffer(values, dtype=values.typecode)[index].view(np.uint8))
    return found
