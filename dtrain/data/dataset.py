"""The read side: prepared parts as arrays, and their rows as padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtrain.data.encode import Encoder
from dtrain.data.files import PARTS
from dtrain.errors import DtrainError
from dtrain.runfolder import RunFolder, read_json

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


@dataclass(frozen=True, eq=False)
class Part:
    """Encoded rows, side by side in flat arrays: row i has tokens[offsets[i] : offsets[i + 1]]."""

    ids: np.ndarray  # int64 [N], a row's id over all parts
    labels: np.ndarray  # int64 [N], -1 for none
    tokens: np.ndarray  # int32 [all tokens]
    types: np.ndarray | None  # int8 [all tokens]; only pairs of models that take token types
    offsets: np.ndarray  # int64 [N + 1]
    pad_id: int
    load_rows: Callable[[], Dataset] = field(repr=False)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [N]."""
        return np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def collate(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows at positions `index` [B], padded right to the longest (L).

        Returns:
            input_ids and attention_mask, int64 [B, L]; token_type_ids, int64 [B, L], where there are types.
        """
        import torch

        starts, lengths = self.offsets[index], self.lengths[index]
        places = np.arange(lengths.max(initial=0))
        mask = places < lengths[:, None]
        # Padding reads any token that exists, and is overwritten.
        where = np.where(mask, starts[:, None] + places, 0)
        batch = {"input_ids": np.where(mask, self.tokens[where], self.pad_id), "attention_mask": mask}
        if self.types is not None:
            batch["token_type_ids"] = np.where(mask, self.types[where], 0)
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}

    def rows(self) -> Dataset:
        """The rows behind: id, key, text, (text_b,) label, file, line; in the same order."""
        return self.load_rows()

    @classmethod
    def concat(cls, parts: Sequence[Part]) -> Part:
        """Several parts (of the same tokenizer) one after another."""
        if len(parts) == 1:
            return parts[0]
        if len({(part.pad_id, part.types is None) for part in parts}) != 1:
            raise ValueError("parts of different tokenizers")

        def load_rows() -> Dataset:
            from datasets import concatenate_datasets

            return concatenate_datasets([part.rows() for part in parts])

        types = [part.types for part in parts if part.types is not None]
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            types=np.concatenate(types) if types else None,
            offsets=np.concatenate([[0], *(np.diff(part.offsets) for part in parts)]).cumsum(dtype=np.int64),
            pad_id=parts[0].pad_id,
            load_rows=load_rows,
        )


@dataclass(frozen=True)
class PreparedData:
    """What `prepare` left in `<run>/data/`."""

    folder: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, folder: RunFolder) -> PreparedData:
        """Raises DtrainError where nothing was prepared."""
        try:
            return cls(folder.data, read_json(folder.data / "rows" / "data.json"))
        except (OSError, ValueError) as error:
            raise DtrainError(f"{folder.data}: no prepared data here; run the stage `prepare` first") from error

    @property
    def labels(self) -> list[str]:
        """Label names in the order of their numbers."""
        return self.info["labels"]

    @property
    def fingerprint(self) -> str:
        """Of the normalised rows themselves: ids, texts, labels."""
        return self.info["fingerprint"]

    @property
    def parts(self) -> list[str]:
        return [part for part in PARTS if part in self.info["rows"]]

    def tokenizer_path(self, name: str) -> Path:
        return self.folder / "tokenizers" / name

    def vocabulary(self, tokenizer: str) -> int:
        """Number of token ids of a tokenizer."""
        return self._encoding(tokenizer)["vocabulary"]

    def pad_id(self, tokenizer: str) -> int:
        return self._encoding(tokenizer)["pad_id"]

    def tokenizer_fingerprint(self, tokenizer: str) -> str:
        """Of the tokenizer's own files, and of how texts are cut."""
        return self._encoding(tokenizer)["tokenizer"]

    def rows(self, part: str) -> Dataset:
        """A part's rows: id, key, text, (text_b,) label, file, line; memory-mapped."""
        if part not in self.parts:
            raise DtrainError(f"{self.folder}: there is no part {part!r} (found: {', '.join(self.parts)})")
        from datasets import load_from_disk

        return load_from_disk(self.folder / "rows" / part)

    def part(self, part: str, tokenizer: str) -> Part:
        """The rows of a part as one tokenizer encodes them.

        Raises:
            DtrainError: where the part does not exist, or was encoded from other rows.
        """
        from datasets import load_from_disk

        rows = self.rows(part)
        encoding = self._encoding(tokenizer)
        encoded = load_from_disk(self.folder / "encoded" / tokenizer / part)
        ids = _column(encoded, "id")
        if not np.array_equal(ids, _column(rows, "id")):
            raise DtrainError(f"{self.folder / 'encoded' / tokenizer / part}: other ids than those of the rows")
        tokens, offsets = _lists(encoded, "input_ids")
        typed = "token_type_ids" in encoded.column_names
        return Part(
            ids=ids,
            labels=_column(rows, "label"),
            tokens=tokens,
            types=_lists(encoded, "token_type_ids")[0] if typed else None,
            offsets=offsets,
            pad_id=encoding["pad_id"],
            load_rows=lambda: self.rows(part),
        )

    def _encoding(self, tokenizer: str) -> dict[str, Any]:
        path = self.folder / "encoded" / tokenizer / "encoded.json"
        try:
            encoding = read_json(path)
        except (OSError, ValueError) as error:
            raise DtrainError(f"{path.parent}: not encoded yet; run the stage `prepare`") from error
        if encoding["rows"] != self.fingerprint:
            raise DtrainError(f"{path.parent}: encoded from other rows than those in {self.folder / 'rows'}")
        return encoding


def encode_texts(tokenizer: Path, texts: list[str], texts_b: list[str] | None, max_length: int) -> Part:
    """A Part of new, already normalised texts, with ids 0..N-1 and no labels, for prediction.

    `tokenizer` is any saved tokenizer folder, a model's own included.
    """
    from dtrain.data.tokenizers import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    encoded = Encoder(loaded, max_length, pairs=texts_b is not None)(texts, texts_b)
    columns: dict[str, list[Any]] = {"text": texts} if texts_b is None else {"text": texts, "text_b": texts_b}

    def load_rows() -> Dataset:
        from datasets import Dataset

        return Dataset.from_dict(columns)

    return Part(
        ids=np.arange(len(texts)),
        labels=np.full(len(texts), -1, dtype=np.int64),
        tokens=np.fromiter(chain.from_iterable(encoded.ids), dtype=np.int32),
        types=None if encoded.types is None else np.fromiter(chain.from_iterable(encoded.types), dtype=np.int8),
        offsets=np.cumsum([0, *map(len, encoded.ids)]),
        pad_id=loaded.pad_token_id,
        load_rows=load_rows,
    )


def _column(dataset: Dataset, name: str) -> np.ndarray:
    return dataset.data.column(name).to_numpy()


def _lists(dataset: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column as flat values and offsets [N + 1]."""
    chunks = dataset.data.column(name).chunks
    values = [chunk.flatten().to_numpy() for chunk in chunks]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    return np.concatenate(values), np.concatenate([[0], *lengths]).cumsum(dtype=np.int64)
