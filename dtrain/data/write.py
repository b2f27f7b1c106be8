"""Rows and encoded rows written as `datasets` folders, with worker processes where there are many rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.table import MemoryMappedTable

from dtrain.data.columns import hash_of
from dtrain.recipe.data import Data
from dtrain.runtime.machines import usable_cores

WORKER_BYTES = 16 << 20  # bytes of rows above which workers are started: one process encodes these while they start
MOST_WORKERS = 8
BLOCK = 10_000  # rows that are converted to Arrow at once
Batch = dict[str, list[Any]]


class Encode(Protocol):
    """Encodes a batch of rows; returns columns id, input_ids, cut (whether a row was truncated), token_type_ids if any.

    Where there are target texts, its attribute `targets` is true, and the column target_ids is empty in rows without.
    """

    types: bool  # whether the result has token types

    def __call__(self, batch: Batch) -> Batch: ...


def write_encoded(encode: Encode, rows: Path, parts: list[str], data: Data, folder: Path) -> dict[str, int]:
    """Write every part in the folder `rows` as token ids; returns how many rows of each part were truncated."""
    features = Features({"id": Value("int64"), "input_ids": List(Value("int32")), "cut": Value("bool")})
    if encode.types:
        features["token_type_ids"] = List(Value("int8"))
    if getattr(encode, "targets", False):
        features["target_ids"] = List(Value("int32"))
    cut = {}
    for part in parts:
        dataset = load_from_disk(rows / part)
        encoded = map_rows(dataset, encode, features, data, folder / "scratch")
        cut[part] = int(encoded.data.column("cut").to_numpy().sum())
        encoded.remove_columns("cut").save_to_disk(folder / part)
    shutil.rmtree(folder / "scratch")
    return cut


def token_share(folder: Path, parts: Sequence[str], token: int | None) -> float:
    """The share of the id `token` among all tokens of encoded parts; 0 where it is None."""
    found = total = 0
    for part in parts:
        for chunk in load_from_disk(folder / part).data.column("input_ids").chunks:
            ids = chunk.flatten().to_numpy(zero_copy_only=False)
            found, total = found + int((ids == token).sum()), total + len(ids)
    return found / max(total, 1)


@contextmanager
def streamed(blocks: Iterable[Mapping[str, Any]], features: Features, path: Path) -> Iterator[Dataset]:
    """A memory-mapped data set of rows that are given block by block; its file is deleted when the context is left.

    Args:
        blocks: mappings from column names to the values of some rows.
        path: the file to write.
    """
    schema = features.arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for block in blocks:
            arrays = [pa.array(block[each.name], each.type) for each in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    try:
        # The default fingerprint would also depend on the file's modification time.
        yield Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=path.stem)
    finally:
        path.unlink()


def in_blocks(columns: Mapping[str, Iterable[Any]], rows: int) -> Iterator[dict[str, Any]]:
    """Columns of `rows` values in blocks of `BLOCK` rows; columns that are no arrays are read once, in order."""
    values = {name: column if isinstance(column, np.ndarray) else iter(column) for name, column in columns.items()}
    for first in range(0, rows, BLOCK):
        yield {
            name: column[first : first + BLOCK] if isinstance(column, np.ndarray) else list(islice(column, BLOCK))
            for name, column in values.items()
        }


class RowSummary:
    """A digest of the rows and some counts, collected in one pass over the parts, of which `train` must come first.

    Args:
        columns: the columns that hold text.
        identity: values that the digest begins with; ids, labels, `columns` and `others` of the rows follow.
    """

    def __init__(self, columns: list[str], identity: list[Any], others: Sequence[str] = ()) -> None:
        self.columns, self.others = columns, others
        self.digest = hashlib.sha256(json.dumps(identity).encode())
        self.empty: dict[str, int] = {}  # rows with an empty text, by part
        self.also_in_train: dict[str, int] = {}  # rows whose texts are also training texts: scores may be too high
        self._train = array("Q")  # hashes of the training rows' texts, which would themselves take 200 bytes per row
        self._sorted = np.empty(0, np.uint64)

    def add(self, part: str, dataset: Dataset) -> None:
        self.empty[part] = 0
        if part in ("valid", "test"):
            self.also_in_train[part] = 0
            if len(self._sorted) < len(self._train):
                self._sorted = np.sort(np.array(self._train, dtype=np.uint64))
        for batch in dataset.select_columns(["id", *self.columns, "label", *self.others]).iter(1000):
            texts = list(zip(*(batch[column] for column in self.columns), strict=True))
            self.digest.update(json.dumps([part, batch]).encode())
            self.empty[part] += sum("" in row for row in texts)
            if part == "train":
                self._train.extend(hash_of(map(str.encode, row)) for row in texts)
            elif part in self.also_in_train and len(self._sorted):
                found = np.array([hash_of(map(str.encode, row)) for row in texts], dtype=np.uint64)
                places = np.searchsorted(self._sorted, found).clip(max=len(self._sorted) - 1)
                self.also_in_train[part] += int((self._sorted[places] == found).sum())


def worker_count(data: Data) -> int:
    """The number of processes for work on the rows, where there are many."""
    return min(MOST_WORKERS, usable_cores()) if data.workers == "auto" else data.workers


def map_rows(
    dataset: Dataset, function: Callable[[Batch], Batch], features: Features, data: Data, scratch: Path
) -> Dataset:
    """`dataset.map` in batches; its files are written to the folder `scratch`, and nothing to the user's cache."""
    scratch.mkdir(exist_ok=True)
    name = f"{len(list(scratch.iterdir())):04d}"
    workers = worker_count(data)
    return dataset.map(
        function,
        batched=True,
        features=features,
        remove_columns=[column for column in dataset.column_names if column not in features],
        num_proc=workers if workers > 1 and dataset.data.nbytes > WORKER_BYTES else None,
        cache_file_name=str(scratch / f"{name}.arrow"),
        load_from_cache_file=False,
        new_fingerprint=name,  # otherwise datasets would pickle the function, with all its data, to compute a hash
    )
