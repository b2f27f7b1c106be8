"""Columns of the rows of a part: a few bytes per row in memory, the texts themselves in a temporary file.

As Python objects, a million titles would take a gibibyte. These columns are read and compared like lists:

    TextColumn       UTF-8 bytes; above 4 MiB in an unnamed temporary file; 12 bytes per row in memory
    JsonColumn       lists and mappings, as texts of JSON in a TextColumn
    LabelColumn      the number of each row's label, 4 bytes, and each label once
    NumberColumn     float64, 8 bytes
    LabelSetColumn   the numbers of a row's labels, 4 bytes each, and 12 bytes per row
    SpanColumn       start, end and number of the type of each entity, 12 bytes, and 12 bytes per row
    KeyColumn        file and line, 8 bytes, and the user's ids as a TextColumn

None, for a row without a label, differs from an empty list.
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
KEPT = 4 << 20  # bytes of text that are kept in memory before they are written to the file
BLOCK = 1024  # rows whose texts are read together
CODEC = {"encoding": "utf-8", "errors": "surrogatepass"}


class Values(Sequence[T], Generic[T]):
    """A sequence whose values are computed on access."""

    @abstractmethod
    def _get(self, row: int) -> T:
        """The value of a row, counted from 0."""

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
    """One value per row; rows are appended one after another."""

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
    """A growing sequence of bytes: the last of them are in memory, all earlier ones in an unnamed temporary file.

    Python's `tempfile` chooses the file's folder (TMPDIR), and the file disappears when the process ends. It takes no
    memory except pages that the kernel may drop, unless the folder itself is in memory.
    """

    def __init__(self) -> None:
        self._file: Any = None
        self._written = 0
        self._rest = bytearray()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the whole content: another process cannot open an unnamed file."""
        return _bytes_of, (self.read(0, self._written + len(self._rest)),)

    def add(self, data: bytes) -> int:
        """Append `data`, and return the position of its first byte."""
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
    """One text per row. Columns made by `take` share the bytes."""

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
            if high - low > 4 * sum(sizes) + KEPT:  # the texts lie far apart, for example after `take`
                for start, size in zip(starts, sizes, strict=True):
                    yield self._bytes.read(start, start + size)
                continue
            block = self._bytes.read(low, high)
            for start, size in zip(starts, sizes, strict=True):
                yield block[start - low : start - low + size]


class JsonColumn(Column[Any]):
    """One value per row, made of lists, mappings, texts and numbers, and stored as JSON in a text column."""

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
    """A hash of each row of one or several columns of texts, uint64 [N]; rows with the same texts have the same hash.

    Among 10 million different rows, any two have the same hash with a probability of 3 in a million (n^2 / 2^65).
    """
    found = array("Q")
    for row in zip(*(column.encoded() for column in columns), strict=True):
        found.append(hash_of(row))
    return np.array(found, dtype=np.uint64)


def hash_of(row: Iterable[bytes]) -> int:
    """The hash of the texts of one row, given as UTF-8; see `hashes`."""
    number = 0
    for data in row:
        number = xxhash.xxh3_64_intdigest(data, seed=number)
    return number


class _Names:
    """Different names, numbered from 0 in the order in which they were first seen."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a name; a name that was not seen before gets a new one."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


class LabelColumn(Column[str | None]):
    """One label per row, or None."""

    def __init__(self, values: Iterable[str | None] = ()) -> None:
        self._labels = _Names()
        self._codes = array("i")
        super().__init__(values)

    @property
    def names(self) -> list[str]:
        """The labels in the order of their numbers."""
        return self._labels.names

    @property
    def codes(self) -> np.ndarray:
        """The number of each row's label, int32 [N]; -1 for None."""
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
        """The number of rows with each label; labels without rows are left out."""
        codes, counts = np.unique(self.codes, return_counts=True)
        found = zip(codes.tolist(), counts.tolist(), strict=True)
        return {self.names[code]: count for code, count in found if code >= 0}

    def renamed(self, names: dict[str, str]) -> Self:
        """A copy in which labels are replaced by `names` (old -> new); labels that are not in it stay."""
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
    """One text to be written per row. None is stored, and read back, as an empty text: no target is an empty text."""

    def append(self, value: str | None) -> None:
        super().append(value or "")

    @property
    def bare(self) -> np.ndarray:
        """Whether a row has no target, bool [N]."""
        return np.array(self._sizes, dtype=np.int64) == 0


class NumberColumn(Column[float | None]):
    """One finite number per row, or None."""

    def __init__(self, values: Iterable[float | None] = ()) -> None:
        self._values = array("d")
        super().__init__(values)

    @property
    def values(self) -> np.ndarray:
        """The numbers, float64 [N]; NaN for None."""
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
    """The key of each row: the user's id, or "FILE:LINE" where there is none, FILE being the number of the file.

    Attributes:
        file: the number of each row's file.
        line: the line of each row in its file.
    """

    def __init__(self) -> None:
        self.file, self.line = array("i"), array("i")
        self._given = TextColumn()  # the users' ids; empty as long as no row has one

    def __len__(self) -> int:
        return len(self.line)

    def add(self, key: str | None, file: int, line: int) -> None:
        """Append the key of a row. `key` is the user's id, which is never empty; None: the row has none."""
        if key is not None and not self._given:
            self._given = TextColumn([""] * len(self))
        if key is not None or self._given:
            self._given.append(key or "")
        self.file.append(file)
        self.line.append(line)

    def take(self, index: np.ndarray) -> KeyColumn:
        """The keys of the rows at `index`, int [M], in that order."""
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
    """One list per row, or None. The items of all rows are in flat arrays, which columns made by `take` share."""

    def __init__(self, values: Iterable[list[T] | None] = ()) -> None:
        self._starts, self._sizes = array("q"), array("i")  # of each row's items; the size is -1 for None
        self._labels = _Names()
        super().__init__(values)

    @abstractmethod
    def _add(self, items: list[T]) -> int:
        """Append the items of a row, and return the position of the first."""

    @abstractmethod
    def _numbers(self) -> array[int]:
        """The number of the name (label or type) of each item."""

    @abstractmethod
    def _items(self, start: int, end: int) -> list[T]:
        """The items at positions `start` to `end` (exclusive)."""

    @property
    def bare(self) -> np.ndarray:
        """Whether a row's value is None, bool [N]."""
        return np.array(self._sizes, dtype=np.int32) < 0

    @property
    def sizes(self) -> np.ndarray:
        """The number of items of each row, int64 [N]; 0 for None."""
        return np.maximum(np.array(self._sizes, dtype=np.int64), 0)

    def counts(self) -> dict[str, int]:
        """The number of items with each name (label or type); names without items are left out."""
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
    """Any number of labels per row, or None."""

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
    """The entities of each row in order, or None."""

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
