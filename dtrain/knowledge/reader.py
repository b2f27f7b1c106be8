"""Reading teachers' outputs by row id, in any order, from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dtrain.knowledge.format import Identity, Manifest, StoreError, read_manifest
from dtrain.knowledge.shard import Rows
from dtrain.knowledge.verify import checked_shards


class StoreReader:
    """One teacher's store. Built by `open`; rows are copied from the page cache when they are asked for."""

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[Rows]) -> None:
        self.path = path
        self.manifest = manifest
        self._bytes = [rows.logits.reshape(-1).view(np.uint8).data for rows in shards]
        # Ids are runs of consecutive numbers (training rows, transfer rows), so a few numbers locate any row.
        ids = np.concatenate([rows.ids for rows in shards])
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ids) != 1) + 1])
        self._run_row = starts
        self._run_id = ids[starts]
        self._run_end = np.append(starts[1:], len(ids))

    @classmethod
    def open(cls, path: Path, expect: Identity | None = None, *, checksums: bool = True) -> StoreReader:
        """Open the finished store in `path`.

        Args:
            expect: refuse a store of another teacher, tokenizer or data.
            checksums: compare every shard's sha256 (about 1 GB a second); without, only sizes, headers and ids.

        Raises:
            StoreError: not finished, damaged, or not the expected one.
        """
        manifest = read_manifest(path)
        if expect is not None:
            found = manifest.fingerprints.model_dump()
            problems = [
                f"{path}: made with another {name}: its fingerprint is {found[name]}, expected {wanted}"
                for name, wanted in expect.model_dump().items()
                if found[name] != wanted
            ]
            if problems:
                raise StoreError(problems)
        return cls(path, manifest, checked_shards(path, manifest, checksums=checksums))

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def classes(self) -> int:
        return self.manifest.classes

    def take(self, ids: np.ndarray) -> np.ndarray:
        """The stored logits [B, C], in the stored dtype, of rows `ids` [B] in that order; an id may come twice.

        Raises:
            StoreError: an id that is not in the store, named.
        """
        ids = np.asarray(ids, dtype=np.int64)
        run = np.searchsorted(self._run_id, ids, side="right") - 1
        row = self._run_row[run] + (ids - self._run_id[run])
        unknown = (run < 0) | (row >= self._run_end[run])
        if unknown.any():
            raise StoreError(f"{self.path}: no row with id {ids[unknown][0]}")
        # Random rows of a large store are spread thin over its shards: a slice a row (0.2 us) beats
        # numpy's fancy indexing once a shard (3 us).
        shard, offset = np.divmod(row, self.manifest.shard_rows)
        width = self.classes * self.manifest.dtype.itemsize
        places = zip(shard.tolist(), (offset * width).tolist(), strict=True)
        taken = bytearray().join([self._bytes[number][start : start + width] for number, start in places])
        return np.frombuffer(taken, self.manifest.dtype).reshape(len(ids), self.classes)

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """As `take`, as a float32 tensor [B, C]."""
        return torch.from_numpy(self.take(ids)).float()


class KnowledgeReader:
    """Several teachers' stores side by side.

    Raises:
        StoreError: the stores hold different data or numbers of classes, so that ids or columns would not match.
    """

    def __init__(self, stores: Sequence[StoreReader]) -> None:
        if not stores:
            raise ValueError("no store given")
        first = stores[0]
        for store in stores[1:]:
            for what, ours, theirs in (
                ("data", first.manifest.fingerprints.data, store.manifest.fingerprints.data),
                ("number of classes", first.classes, store.classes),
            ):
                if ours != theirs:
                    raise StoreError(f"{store.path}: its {what} is {theirs}, but that of {first.path} is {ours}")
        self.stores = list(stores)

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """float32 [K, B, C]: the rows `ids` [B] of each of the K stores."""
        return torch.stack([store.logits(ids) for store in self.stores])
