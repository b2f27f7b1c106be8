"""Read teachers' outputs by row id, in any order, from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dtrain.knowledge.format import Identity, Manifest, StoreError, numbers_of, read_manifest
from dtrain.knowledge.shard import Rows
from dtrain.knowledge.top_k import spread
from dtrain.knowledge.verify import check_identity, checked_shards


class StoreReader:
    """One teacher's store, made by `open`. Rows are copied from the page cache when they are asked for."""

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[Rows]) -> None:
        self.path = path
        self.manifest = manifest
        self._columns = {column.name: column for column in manifest.columns}
        self._bytes = {
            name: [rows.values[name].reshape(-1).view(np.uint8).data for rows in shards] for name in self._columns
        }
        # Ids are runs of consecutive numbers (training rows, transfer rows), so a few numbers locate any row.
        ids = np.concatenate([rows.ids for rows in shards])
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ids) != 1) + 1])
        self._run_row = starts
        self._run_id = ids[starts]
        self._run_end = np.append(starts[1:], len(ids))
        if manifest.ragged:  # each row's first character in its shard, and its number of characters
            offsets = [rows.offsets for rows in shards if rows.offsets is not None]
            self._first = np.concatenate([found[:-1] for found in offsets])
            self._lengths = np.concatenate([np.diff(found) for found in offsets])

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
        check_identity(path, manifest, expect)
        return cls(path, manifest, checked_shards(path, manifest, checksums=checksums))

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def first_id(self) -> np.ndarray:
        """The id of its first row, int64 [1]."""
        return self._run_id[:1]

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.manifest.output_names

    def width(self, output: str) -> int:
        """C of logits, H of features, T of emissions and marginals.

        Raises:
            StoreError: the output is not stored.
        """
        self._check(output)
        return self.manifest.outputs[output].width

    def take(self, ids: np.ndarray, column: str = "logits") -> np.ndarray:
        """The stored vectors [B, width], in the stored dtype, of rows `ids` [B] in that order; an id may come twice.

        Of a ragged column, the characters of all those rows one after another, [characters, T].

        Raises:
            StoreError: an id is not in the store (it is named), or the column is not stored.
        """
        self._check(column)
        return self._take(self._rows(ids), column)

    def read(self, kind: str, ids: np.ndarray) -> torch.Tensor:
        """One kind of output of the rows `ids` [B], float32 [B, width]; [B, N, T] for a kind with one vector a character.

        Where only the k largest of a row are stored, they are spread over the whole width, see `logits`. Logits of tokens
        of which only the k largest are stored are [B, N, 2 k + 1]: these, the log-sum-exp of the others, and the k tokens.

        Raises:
            StoreError: as `take`.
        """
        self._check(kind)
        if self._columns[kind].ragged:
            values = self.ragged(kind, ids)[0]
            if self.manifest.outputs[kind].top_k is None:
                return values
            return torch.cat([values, self.ragged(numbers_of(kind), ids)[0]], dim=2)
        rows = self._rows(ids)
        values = torch.from_numpy(self._take(rows, kind)).float()
        stored = self.manifest.outputs.get(kind)
        if stored is None or stored.top_k is None:
            return values
        return spread(values, torch.from_numpy(self._take(rows, numbers_of(kind)).astype(np.int64)), stored.width)

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """Logits of the rows `ids` [B], float32 [B, C]; where only the k largest are stored, by `spread`."""
        return self.read("logits", ids)

    def ragged(self, output: str, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """A ragged output of the rows `ids` [B], as emissions or marginals (probabilities).

        Returns:
            float32 [B, N, T], padded with zeros on the right, where N is the longest of these rows as the teacher read them
            (a teacher that takes [CLS] and [SEP] may have read two characters less of a long text than a student does);
            bool [B, N], True for characters.

        Raises:
            StoreError: as `take`.
        """
        self._check(output)
        rows = self._rows(ids)
        lengths = torch.from_numpy(self._lengths[rows])
        mask = torch.arange(int(lengths.max()) if len(ids) else 0) < lengths[:, None]
        padded = torch.zeros(*mask.shape, self._columns[output].width)
        padded[mask] = torch.from_numpy(self._take(rows, output)).float()
        return padded, mask

    def candidates(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of the rows `ids` [B], int32 [B, k, L], with -1 after their ends, and their scores, float32 [B, k].

        Raises:
            StoreError: as `take`.
        """
        tokens, scores = self.take(ids, "sequences"), self.take(ids, "scores")
        return tokens.reshape(*scores.shape, tokens.shape[1] // scores.shape[1]), scores

    def _check(self, name: str) -> None:
        if name not in self._columns:
            raise StoreError(f"{self.path}: holds {', '.join(self.outputs)}, not {name}: see knowledge.outputs")

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Which of the rows `ids` [B] are in the store, bool [B]."""
        return self._places(ids)[1]

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """The places of `ids` in the whole store; StoreError if one is not there."""
        rows, known = self._places(ids)
        if not known.all():
            raise StoreError(f"{self.path}: no row with id {np.asarray(ids)[~known][0]}")
        return rows

    def _places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(ids, dtype=np.int64)
        run = np.searchsorted(self._run_id, ids, side="right") - 1
        rows = self._run_row[run] + (ids - self._run_id[run])
        return rows, (run >= 0) & (rows < self._run_end[run])

    def _take(self, rows: np.ndarray, name: str) -> np.ndarray:
        # Random rows of a large store are spread thin over its shards: a slice a row (0.2 us) beats
        # numpy's fancy indexing once a shard (3 us).
        column = self._columns[name]
        shards, offsets = np.divmod(rows, self.manifest.shard_rows)
        first, items = (self._first[rows], self._lengths[rows]) if column.ragged else (offsets, np.ones_like(rows))
        starts = first.astype(np.int64) * column.item_bytes
        ends = starts + items * column.item_bytes
        data = self._bytes[name]
        places = zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True)
        taken = bytearray().join([data[shard][start:end] for shard, start, end in places])
        return np.frombuffer(taken, column.dtype).reshape(-1, column.width)
