"""Write a store: shards in any order, by any number of processes, in any number of attempts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from dtrain.errors import DtrainError
from dtrain.knowledge.format import (
    IDENTITY_FILE,
    MANIFEST_FILE,
    Column,
    Layout,
    Manifest,
    Shard,
    StoreError,
    new_manifest,
    read_manifest,
    shard_name,
)
from dtrain.knowledge.shard import Rows, ShardProblem, read_shard, rows_with, write_shard
from dtrain.runfolder import file_fingerprint, read_json, remove_leftovers, write_json

_SHOWN = 10


class StoreWriter:
    """One store that is being filled.

    Args:
        path: the store's folder.
        layout: the layout that it is to have.
        ids: int64 [rows], ascending: the id of every row.
    """

    def __init__(self, path: Path, layout: Layout, ids: np.ndarray) -> None:
        if len(ids) != layout.rows or np.any(np.diff(ids) <= 0):
            raise DtrainError(f"{path}: row ids must ascend and be {layout.rows}; found {len(ids)}")
        self.path = path
        self.layout = layout
        self.ids = ids

    def prepare(self) -> int:
        """Make the folder ready and return how many undamaged shards of an earlier attempt it keeps.

        One process calls it before any process writes. Shards are kept only if the folder was begun for exactly this
        layout. The rows of each must match the shard's own checksum and, if the store was finished once, the file must
        match the manifest's.
        """
        if self._begun_for() != self.layout:
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(self.path / IDENTITY_FILE, self.layout.model_dump(mode="json"))
            return 0
        remove_leftovers(self.path)
        stated = self._stated()
        # From here to `publish` the store is unfinished, whatever it was.
        _remove(self.path / MANIFEST_FILE)
        kept = 0
        wanted = {shard_name(number): number for number in range(self.layout.shard_count)}
        for file in sorted(self.path.glob("shard-*")):
            try:
                if file.name not in wanted:
                    raise ShardProblem("is of no use here")
                self._check(wanted[file.name])
                if file.name in stated and file_fingerprint(file) != stated[file.name]:
                    raise ShardProblem("damaged where no row is stored")
                kept += 1
            except ShardProblem:
                _remove(file)
        return kept

    def _stated(self) -> dict[str, str]:
        """The sha256 of each file as the manifest states it; empty if there is no valid manifest."""
        try:
            return {shard.file: shard.sha256 for shard in read_manifest(self.path).shards}
        except StoreError:
            return {}

    def has(self, number: int) -> bool:
        return (self.path / shard_name(number)).exists()

    def write(self, number: int, columns: Mapping[str, torch.Tensor], lengths: np.ndarray | None = None) -> None:
        """Publish the rows of one shard.

        Args:
            columns: the layout's columns by name, on any device, in id order: [N, width], or, if ragged,
                [characters of all rows, width]. Floats may be of any float dtype.
            lengths: int [N], the characters of each row, if a column is ragged.

        Raises:
            DtrainError: NaN or infinity, or a value beyond the stored dtype, naming the first row ids;
                the shard is not written.
        """
        rows = self.layout.shard_range(number)
        ids = self.ids[rows.start : rows.stop]
        offsets = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        stored = {}
        for column in self.layout.columns:
            values = columns[column.name].cpu().numpy()
            with np.errstate(over="ignore"):  # a value that becomes infinite is refused below
                stored[column.name] = values.astype(column.dtype)
            bad = ~np.isfinite(stored[column.name]).all(axis=1)
            wrong = rows_with(bad, offsets if column.ragged else None)
            if len(wrong):
                self._refuse(column, ids[wrong], values[bad])
        write_shard(self.path, number, self.layout, Rows(ids, stored, offsets))

    def publish(self) -> Manifest:
        """Read every shard back and write the manifest. One process calls it, after all shards are written.

        Raises:
            DtrainError: a shard is missing or not what was written.
        """
        shards = []
        for number in range(self.layout.shard_count):
            path = self.path / shard_name(number)
            try:
                self._check(number)
            except ShardProblem as problem:
                raise DtrainError(f"{path}: {problem}") from None
            rows = self.layout.shard_range(number)
            shards.append(
                Shard(
                    file=path.name,
                    first_row=rows.start,
                    rows=len(rows),
                    first_id=int(self.ids[rows.start]),
                    last_id=int(self.ids[rows.stop - 1]),
                    bytes=path.stat().st_size,
                    sha256=file_fingerprint(path),
                )
            )
        manifest = new_manifest(self.layout, shards)
        write_json(self.path / MANIFEST_FILE, manifest.model_dump(mode="json"))
        return manifest

    def _begun_for(self) -> Layout | None:
        try:
            return Layout.model_validate(read_json(self.path / IDENTITY_FILE))
        except (OSError, ValueError, ValidationError):
            return None

    def _check(self, number: int) -> None:
        rows = self.layout.shard_range(number)
        found = read_shard(self.path, number, self.layout, contents=True).ids
        if not np.array_equal(found, self.ids[rows.start : rows.stop]):
            raise ShardProblem("holds other rows than it should")

    def _refuse(self, column: Column, ids: np.ndarray, values: np.ndarray) -> None:
        shown = ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
        if np.isfinite(values).all():
            largest = float(np.abs(values).max())
            raise DtrainError(
                f"{self.path}: {column.name} up to {largest:.4g} do not fit float16 (rows with id {shown}): "
                "set knowledge.dtype: float32"
            )
        hint = "; fp16 overflows in some models, bf16 and fp32 do not" if self.layout.precision == "fp16" else ""
        raise DtrainError(f"{self.path}: NaN or infinity in the teacher's {column.name}, rows with id {shown}{hint}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
