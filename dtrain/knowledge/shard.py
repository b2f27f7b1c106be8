"""One shard: an Arrow IPC file of one record batch that says itself whose rows it holds.

Columns: `id` int64, ascending, and `logits` fixed_size_list<float16 or float32>[C]: 8 + 2C bytes a row in float16.
The schema's metadata is a small JSON header with the store's fingerprints, the shard's number and a sha256 of
the columns, itself under a checksum. So a shard can be trusted, or a wrong one named, without a manifest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dtrain.knowledge.format import Layout, checksum, shard_name
from dtrain.runfolder import atomic_write

_HEADER = b"dtrain"


class ShardProblem(Exception):
    """Why a shard file is not the wanted one, as words that follow the file's name."""


class ForeignShard(ShardProblem):
    """A whole shard, but of another store or another number."""


class Rows(NamedTuple):
    """Views into a memory-mapped shard: `ids` int64 [N], `logits` [N, C] in the stored dtype; read-only."""

    ids: np.ndarray
    logits: np.ndarray


def write_shard(folder: Path, number: int, layout: Layout, ids: np.ndarray, logits: np.ndarray) -> None:
    """Write the rows of shard `number` aside, flush, and rename.

    Args:
        ids: int64 [N], ascending; N is the length of the shard's range.
        logits: [N, C] in the layout's dtype.
    """
    assert ids.dtype == np.int64 and logits.dtype == layout.dtype
    assert ids.shape == (len(layout.shard_range(number)),) and logits.shape == (len(ids), layout.classes)
    values = pa.field("item", pa.from_numpy_dtype(layout.dtype), nullable=False)
    rows = pa.list_(values, layout.classes)
    header = json.dumps(_header(layout, number, _content(ids, logits)), sort_keys=True)
    schema = pa.schema(
        [pa.field("id", pa.int64(), nullable=False), pa.field("logits", rows, nullable=False)],
        metadata={_HEADER: header.encode()},
    )
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(logits).reshape(-1)), type=rows)
    batch = pa.record_batch([pa.array(ids), flat], schema=schema)
    with atomic_write(folder / shard_name(number), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)


def read_shard(folder: Path, number: int, layout: Layout, *, contents: bool) -> Rows:
    """Map shard `number` into memory and check that it is what `layout` wants there.

    Args:
        contents: also compare the checksum of the columns, which reads every byte.

    Raises:
        ForeignShard: whole, but of another store or another number.
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
            rows = _columns(batch, layout)
    except FileNotFoundError:
        raise ShardProblem("missing") from None
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise ShardProblem(f"damaged: not a readable Arrow file ({str(error).splitlines()[0][:120]})") from None
    expected = layout.shard_range(number)
    if len(rows.ids) != len(expected):
        raise ShardProblem(f"damaged: {len(rows.ids)} rows, expected {len(expected)}")
    if contents and header["content"] != _content(*rows):
        raise ShardProblem("damaged: the checksum of its rows does not match")
    return rows


def _columns(batch: pa.RecordBatch, layout: Layout) -> Rows:
    rows = pa.list_(pa.field("item", pa.from_numpy_dtype(layout.dtype), nullable=False), layout.classes)
    if batch.schema.names != ["id", "logits"] or batch.schema.types != [pa.int64(), rows]:
        raise ShardProblem(f"damaged: columns {batch.schema.types}, expected [int64, {rows}]")
    ids = batch.column(0).to_numpy(zero_copy_only=True)
    return Rows(ids, batch.column(1).values.to_numpy(zero_copy_only=True).reshape(-1, layout.classes))


def _content(ids: np.ndarray, logits: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(ids).data)
    digest.update(np.ascontiguousarray(logits).data)
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
