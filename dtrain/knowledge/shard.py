"""One shard: an Arrow IPC file of one record batch, which itself says to which store its rows belong.

Columns: `id`, int64, ascending; one vector for each row as fixed_size_list<float16 or float32>[C], so that logits in float16
take 8 + 2C bytes a row; and one vector for each character as list<fixed_size_list[T]>, whose int32 offsets separate the rows.
The schema's metadata is a small JSON header with the store's fingerprints, the shard's number and a sha256 of
the columns, itself under a checksum. So a shard can be verified, and a wrong one recognised, without a manifest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dtrain.knowledge.format import Column, Layout, checksum, shard_name
from dtrain.runfolder import atomic_write

_HEADER = b"dtrain"


class ShardProblem(Exception):
    """Why a shard file cannot be used; its message is to follow the file's name."""


class ForeignShard(ShardProblem):
    """An undamaged shard, but of another store or with another number."""


class Rows(NamedTuple):
    """A shard's arrays; those of a shard that was read are read-only views of the memory-mapped file.

    `values` has by column name [N, width], or, if ragged, [offsets[N], width] with the characters of row i at
    offsets[i] : offsets[i + 1].
    """

    ids: np.ndarray  # int64 [N], ascending
    values: dict[str, np.ndarray]
    offsets: np.ndarray | None = None  # int32 [N + 1]; only where a column is ragged


def rows_with(marked: np.ndarray, offsets: np.ndarray | None) -> np.ndarray:
    """The rows, int64, ascending, that are marked (bool [N]) or, with `offsets`, have a marked character."""
    places = np.flatnonzero(marked)
    return places if offsets is None else np.unique(np.searchsorted(offsets, places, side="right") - 1)


def write_shard(folder: Path, number: int, layout: Layout, rows: Rows) -> None:
    """Write the rows of shard `number` under a temporary name, flush, and rename.

    Args:
        rows: those of the shard's range, with the layout's columns.
    """
    assert rows.ids.dtype == np.int64 and rows.ids.shape == (len(layout.shard_range(number)),)
    assert layout.ragged == (rows.offsets is not None)
    fields, arrays = [pa.field("id", pa.int64(), nullable=False)], [pa.array(rows.ids)]
    for column in layout.columns:
        values = rows.values[column.name]
        length = len(rows.ids) if rows.offsets is None or not column.ragged else rows.offsets[-1]
        assert values.dtype == column.dtype and values.shape == (length, column.width), column
        vectors = _vectors(column)
        array = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=vectors)
        if column.ragged:
            array = pa.ListArray.from_arrays(pa.array(rows.offsets, pa.int32()), array, type=_type(column))
        fields.append(pa.field(column.name, _type(column), nullable=False))
        arrays.append(array)
    header = json.dumps(_header(layout, number, _content(rows, layout)), sort_keys=True)
    schema = pa.schema(fields, metadata={_HEADER: header.encode()})
    batch = pa.record_batch(arrays, schema=schema)
    with atomic_write(folder / shard_name(number), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)


def read_shard(folder: Path, number: int, layout: Layout, *, contents: bool) -> Rows:
    """Map shard `number` into memory and check that it is the one that `layout` asks for.

    Args:
        contents: also compare the checksum of the columns, which reads every byte.

    Raises:
        ForeignShard: undamaged, but of another store or with another number.
        ShardProblem: missing, unreadable, of another shape, or (with `contents`) damaged.
    """
    path = folder / shard_name(number)
    try:
        with pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            header = _checked_header(file.schema.metadata or {})
            _compare(header, layout, number)
            if file.num_record_batches != 1:
                raise ShardProblem(f"damaged: {file.num_record_batches} record batches, expected 1")
            batch = file.get_batch(0)
            batch.validate(full=True)
            rows = _rows(batch, layout)
    except FileNotFoundError:
        raise ShardProblem("missing") from None
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise ShardProblem(f"damaged: not a readable Arrow file ({str(error).splitlines()[0][:120]})") from None
    expected = layout.shard_range(number)
    if len(rows.ids) != len(expected):
        raise ShardProblem(f"damaged: {len(rows.ids)} rows, expected {len(expected)}")
    if contents and header["content"] != _content(rows, layout):
        raise ShardProblem("damaged: the checksum of its rows does not match")
    return rows


def _vectors(column: Column) -> pa.DataType:
    return pa.list_(pa.field("item", pa.from_numpy_dtype(column.dtype), nullable=False), column.width)


def _type(column: Column) -> pa.DataType:
    vectors = _vectors(column)
    return pa.list_(pa.field("item", vectors, nullable=False)) if column.ragged else vectors


def _rows(batch: pa.RecordBatch, layout: Layout) -> Rows:
    expected = {"id": pa.int64(), **{column.name: _type(column) for column in layout.columns}}
    if batch.schema.names != list(expected) or batch.schema.types != list(expected.values()):
        raise ShardProblem(f"damaged: columns {batch.schema.types}, expected {list(expected.values())}")
    values, offsets = {}, None
    for column in layout.columns:
        array = batch.column(column.name)
        if column.ragged:
            found = array.offsets.to_numpy(zero_copy_only=True)
            array = array.values
            whole = found[0] == 0 and found[-1] == len(array) and (offsets is None or np.array_equal(found, offsets))
            if not whole:
                raise ShardProblem(f"damaged: columns whose rows differ in length, or do not end with {column.name}")
            offsets = found
        values[column.name] = array.values.to_numpy(zero_copy_only=True).reshape(-1, column.width)
    return Rows(batch.column("id").to_numpy(zero_copy_only=True), values, offsets)


def _content(rows: Rows, layout: Layout) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(rows.ids).data)
    if rows.offsets is not None:
        digest.update(np.ascontiguousarray(rows.offsets, np.int32).data)
    for column in layout.columns:
        digest.update(np.ascontiguousarray(rows.values[column.name]).data)
    return digest.hexdigest()


def _header(layout: Layout, number: int, content: str) -> dict[str, Any]:
    values = {
        "format": layout.format,
        "fingerprints": layout.fingerprints.model_dump(mode="json"),
        "layout": layout.fingerprint,
        "shard": number,
        "content": content,
    }
    return {**values, "checksum": checksum(values)}


def _checked_header(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        header = json.loads(metadata[_HEADER])
        if header.pop("checksum") == checksum(header):
            return header
    except (KeyError, ValueError, AttributeError, TypeError):
        pass
    raise ShardProblem("damaged: its header is not whole")


def _compare(header: dict[str, Any], layout: Layout, number: int) -> None:
    for name, expected in layout.fingerprints.model_dump(mode="json").items():
        found = header["fingerprints"].get(name)
        if found != expected:
            raise ForeignShard(f"is a shard of another store: its {name} is {found}, this store's {expected}")
    if header["layout"] != layout.fingerprint:
        raise ForeignShard("is a shard of another store: same teacher and data, stored with other settings")
    if header["shard"] != number:
        raise ForeignShard(f"holds shard {header['shard']} of this store (copied or swapped), so that rows come twice")
