"""Verify a store: the checks behind opening one and behind `dtrain check --store`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtrain.knowledge.format import Identity, Manifest, StoreError, read_manifest, shard_name
from dtrain.knowledge.shard import ForeignShard, Rows, ShardProblem, read_shard, rows_with
from dtrain.runfolder import file_fingerprint


def verify(path: Path, expect: Identity | None = None, ids: np.ndarray | None = None) -> Manifest:
    """Check every byte of the store in `path`: checksums, every id once, finite values.

    Args:
        expect: the fingerprints of what it must have been made from.
        ids: int64 [rows], ascending: the ids that it must have.

    Raises:
        StoreError: one line for each problem.
    """
    manifest = read_manifest(path)
    check_identity(path, manifest, expect)
    shards = checked_shards(path, manifest, checksums=True)
    found = np.concatenate([rows.ids for rows in shards])
    problems = []
    if ids is not None and not np.array_equal(found, ids):
        missing, more = np.setdiff1d(ids, found), np.setdiff1d(found, ids)
        first = (
            f"lacks the row with id {missing[0]}" if len(missing) else f"has a row with id {more[0]}, not in the data"
        )
        problems.append(f"{path}: {len(found)} rows for {len(ids)} of the data: {first}")
    for number, rows in enumerate(shards):
        for column in manifest.columns:
            wrong = rows_with(
                ~np.isfinite(rows.values[column.name]).all(axis=1), rows.offsets if column.ragged else None
            )
            if len(wrong):
                problems.append(
                    f"{path / shard_name(number)}: NaN or infinity in the {column.name}, first in the row with id "
                    f"{rows.ids[wrong[0]]}"
                )
    if problems:
        raise StoreError(problems)
    return manifest


def check_identity(path: Path, manifest: Manifest, expect: Identity | None) -> None:
    """Raise StoreError, naming both fingerprints, for a store of another teacher, tokenizer or data than `expect`."""
    if expect is None:
        return
    found = manifest.fingerprints.model_dump()
    problems = [
        f"{path}: made with another {name}: its fingerprint is {found[name]}, expected {wanted}"
        for name, wanted in expect.model_dump().items()
        if found[name] != wanted
    ]
    if problems:
        raise StoreError(problems)


def checked_shards(path: Path, manifest: Manifest, *, checksums: bool) -> list[Rows]:
    """The shards that the manifest lists, memory-mapped and checked against it.

    Args:
        checksums: compare the sha256 of every file; without, sizes, headers, row counts and ids only.

    Raises:
        StoreError: one line for each problem, with the file and the reason.
    """
    problems = [
        f"{path / name}: is not in the manifest"
        for name in sorted({file.name for file in path.glob("shard-*")} - {shard.file for shard in manifest.shards})
    ]
    shards = []
    for number in range(manifest.shard_count):
        try:
            shards.append(_checked_shard(path, number, manifest, checksums))
        except ShardProblem as problem:
            problems.append(f"{path / shard_name(number)}: {problem}")
    if problems:
        raise StoreError(problems)
    return shards


def _checked_shard(path: Path, number: int, manifest: Manifest, checksums: bool) -> Rows:
    expected = manifest.shards[number]
    file = path / expected.file
    if not file.is_file():
        raise ShardProblem("missing")
    try:
        rows: Rows | ShardProblem = read_shard(path, number, manifest, contents=False)
    except ForeignShard:
        raise  # the store that it belongs to tells the user more than its size
    except ShardProblem as problem:
        rows = problem
    size = file.stat().st_size
    if size < expected.bytes:
        raise ShardProblem(f"damaged: truncated to {size} of {expected.bytes} bytes")
    if size > expected.bytes:
        raise ShardProblem(f"damaged: {size} bytes, expected {expected.bytes}")
    if isinstance(rows, ShardProblem):
        raise rows
    if checksums and (found := file_fingerprint(file)) != expected.sha256:
        raise ShardProblem(f"damaged: its sha256 is {found}, expected {expected.sha256}")
    if (rows.ids[0], rows.ids[-1]) != (expected.first_id, expected.last_id):
        ids = f"{rows.ids[0]} to {rows.ids[-1]}"
        raise ShardProblem(f"damaged: ids {ids}, expected {expected.first_id} to {expected.last_id}")
    twice = np.flatnonzero(np.diff(rows.ids) <= 0)
    if len(twice):
        raise ShardProblem(f"ids do not ascend after id {rows.ids[twice[0]]}: a row twice or out of order")
    return rows
