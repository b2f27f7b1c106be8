"""Prepared parts read as arrays, and batches of their rows as padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk

from dtrain.data.characters import CharacterEncoder
from dtrain.data.encode import Encoder
from dtrain.data.files import PARTS
from dtrain.data.flat import FlatArray, flat_array, padded, pieces_of
from dtrain.data.pieces import cut
from dtrain.data.sides import FOLDER as SIDES
from dtrain.data.sides import label_counts, parts_of
from dtrain.errors import DtrainError
from dtrain.recipe.sides import side_of
from dtrain.runfolder import RunFolder, read_json


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Encoded rows, concatenated in flat arrays: row i has tokens[offsets[i] : offsets[i + 1]].

    Tokens, types and tags of many rows are memory-mapped from files; only arrays with one number per row are in memory
    (ids, labels and offsets: 24 bytes per row).

    For tagging a row is a piece of a document, with one token per character and `specials` tokens around them; the
    pieces of a document follow each other.
    """

    ids: np.ndarray  # int64 [N], unique over all parts
    labels: np.ndarray  # int64 [N], -1 for none
    tokens: np.ndarray | FlatArray  # int32 [all tokens]
    types: np.ndarray | FlatArray | None  # int8 [all tokens]; only pairs of models that take token types
    offsets: np.ndarray  # int64 [N + 1]
    pad_id: int
    load_rows: Callable[[], Dataset] = field(repr=False)
    tokenizer: Path | None = None  # the folder of the tokenizer that encoded the rows; None for new texts
    max_length: int = 0  # the most tokens of a text with this tokenizer
    frame: tuple[int, ...] = ()  # ids of the special tokens around texts: [CLS], [SEP]
    # Labels that are no single class: values[value_offsets[i] : value_offsets[i + 1]] is a row's number (float64, for
    # regression) or the numbers of its labels (int32, for multi_label); empty in a row without a label.
    values: np.ndarray | FlatArray | None = None
    value_offsets: np.ndarray | None = None
    # Target texts: targets[target_offsets[i] : target_offsets[i + 1]], with the end token; empty in a row without a
    # target. A decoder begins with `start_id`.
    targets: np.ndarray | FlatArray | None = None  # int32 [all target tokens]
    target_offsets: np.ndarray | None = None  # int64 [N + 1]
    start_id: int = 0
    known_prefix: np.ndarray | None = None  # bool [N]: whether stored teacher outputs are of this target; None: all
    parallel: np.ndarray | None = None  # bool [N]: whether a row has further sides; None where rows have no sides
    # The fields that follow are for tagging.
    # int16 [all characters]: BIOES tags, numbered as in `PreparedData.labels`; -1 in rows without tags
    tags: np.ndarray | FlatArray | None = None
    specials: int = 0  # special tokens of each row: 2 for [CLS] in front and [SEP] behind
    documents: np.ndarray | None = None  # int64 [N], the number of each row's document, counted over all parts
    starts: np.ndarray | None = None  # int32 [N], where a row begins in its document
    # int16 [all characters]: annotations that a teacher reads beside the text, BIOES by `PreparedData.privileged`
    privileged: np.ndarray | FlatArray | None = None
    for_teachers: bool = False  # whether only teachers that run beside the model read `privileged`, not the model

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [N]."""
        return np.diff(self.offsets).astype(np.int32)

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters of each row (for tagging), int32 [N]: tokens without the special ones."""
        return self.lengths - np.int32(self.specials)

    @cached_property
    def tag_offsets(self) -> np.ndarray:
        return self.offsets - self.specials * np.arange(len(self.offsets))

    @cached_property
    def target_lengths(self) -> np.ndarray:
        """Tokens of each row's target, int32 [N]; zeros where nothing is written."""
        found = np.zeros(len(self) + 1) if self.target_offsets is None else self.target_offsets
        return np.diff(found).astype(np.int32)

    @property
    def vectors(self) -> np.ndarray:
        """Length of each row in outputs with a vector per position, int32 [N]: characters, or tokens of its target."""
        return self.characters if self.targets is None else self.target_lengths

    def __len__(self) -> int:
        return len(self.ids)

    def collate(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """A model's arguments for the rows at positions `index` [B], padded on the right to the longest row (L).

        Returns:
            input_ids and attention_mask, int64 [B, L]; token_type_ids, int64 [B, L], where there are types; where there
            are targets, the longest with T tokens (T at least 1): decoder_input_ids, int64 [B, T], the targets shifted
            right behind the start token, and target_lengths, int64 [B]; where the model reads annotations:
            privileged, int64 [B, most characters], 0 for none.
        """
        starts, lengths = self.offsets[index], self.lengths[index]
        batch = {"input_ids": padded(self.tokens, starts, lengths, self.pad_id)}
        batch["attention_mask"] = (np.arange(lengths.max(initial=0)) < lengths[:, None]).astype(np.int64)
        if self.types is not None:
            batch["token_type_ids"] = padded(self.types, starts, lengths, 0)
        if self.targets is not None and self.target_offsets is not None:
            written = self.target_lengths[index]
            earlier = padded(self.targets, self.target_offsets[index], np.maximum(written - 1, 0), self.pad_id)
            start = np.full((len(index), 1), self.start_id)
            batch["decoder_input_ids"] = np.concatenate([start, earlier], axis=1)
            batch["target_lengths"] = written.astype(np.int64)
        if self.privileged is not None and not self.for_teachers:
            batch["privileged"] = padded(self.privileged, self.tag_offsets[index], self.characters[index], 0)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def collate_targets(self, index: np.ndarray) -> torch.Tensor:
        """Targets of the rows at `index` [B], int64 [B, T], -1 behind a row's end; T as in `collate`.

        Raises ValueError where the part has no targets.
        """
        if self.targets is None or self.target_offsets is None:
            raise ValueError("these rows have no targets")
        found = padded(self.targets, self.target_offsets[index], self.target_lengths[index], -1)
        return torch.from_numpy(found if found.shape[1] else np.full((len(index), 1), -1))

    def collate_labels(self, index: np.ndarray) -> torch.Tensor:
        """Labels of the rows at `index` [B], int64 [B], -1 for none."""
        return torch.from_numpy(self.labels[index])

    def collate_values(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of the rows at `index` [B], concatenated, and for each value its row's position in `index`, int64.

        Raises ValueError where the part has no values.
        """
        if self.values is None or self.value_offsets is None:
            raise ValueError("these rows have no values")
        starts = self.value_offsets[index]
        counts = self.value_offsets[index + 1] - starts
        owner = np.repeat(np.arange(len(index)), counts)
        first = np.cumsum(counts) - counts  # where the values of a row begin in the result
        return self.values[np.arange(len(owner)) + np.repeat(starts - first, counts)], owner

    def collate_tags(self, index: np.ndarray) -> torch.Tensor:
        """Tags of the rows at `index` [B], int64 [B, most characters], -1 behind a row's end.

        Raises ValueError where the part has no tags.
        """
        if self.tags is None:
            raise ValueError("these rows have no tags")
        return torch.from_numpy(padded(self.tags, self.tag_offsets[index], self.characters[index], -1))

    def take(self, index: np.ndarray) -> EncodedSplit:
        """A split of the rows at `index` [M], in that order; a position may occur several times.

        Raises:
            ValueError: the rows are pieces of documents.
        """
        if self.tags is not None:
            raise ValueError("pieces of documents follow each other")

        def lists(values: Any, offsets: np.ndarray | None) -> tuple[Any, Any]:
            if values is None or offsets is None:
                return None, None
            counts = np.diff(offsets)[index].astype(np.int64)
            ends = np.concatenate([[0], counts.cumsum()])
            return values[np.arange(ends[-1]) + np.repeat(offsets[index] - ends[:-1], counts)], ends

        tokens, offsets = lists(self.tokens, self.offsets)
        values, value_offsets = lists(self.values, self.value_offsets)
        targets, target_offsets = lists(self.targets, self.target_offsets)
        load_rows = self.load_rows  # a local name, so that the lambda below does not keep `self` and its arrays alive
        return replace(
            self,
            ids=self.ids[index],
            labels=self.labels[index],
            tokens=tokens,
            types=lists(self.types, self.offsets)[0],
            offsets=offsets,
            load_rows=lambda: load_rows().select(index),
            values=values,
            value_offsets=value_offsets,
            targets=targets,
            target_offsets=target_offsets,
            known_prefix=None if self.known_prefix is None else self.known_prefix[index],
            parallel=None if self.parallel is None else self.parallel[index],
        )

    def collate_for_teachers(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """Arguments that only teachers beside the model get: privileged, int64 [B, most characters], if anything."""
        if self.privileged is None or not self.for_teachers:
            return {}
        found = padded(self.privileged, self.tag_offsets[index], self.characters[index], 0)
        return {"privileged": torch.from_numpy(found)}

    def rows(self) -> Dataset:
        """The rows before encoding: id, key, text, (text_b, or tags,) label, ..., file, line; in the same order."""
        return self.load_rows()

    @classmethod
    def concat(cls, parts: Sequence[EncodedSplit]) -> EncodedSplit:
        """Several parts of one tokenizer (else ValueError), one after another; large flat arrays are not copied."""
        if len(parts) == 1:
            return parts[0]
        first, loads = parts[0], [part.load_rows for part in parts]  # a lambda over `parts` would keep their arrays
        kinds = {
            (p.pad_id, p.types is None, p.specials, p.tags is None, p.values is None, p.targets is None) for p in parts
        }
        if len(kinds) != 1 or len({p.documents is None for p in parts}) != 1:
            raise ValueError("parts of different tokenizers")

        def joined(name: str) -> np.ndarray | None:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else np.concatenate(found)

        def viewed(name: str) -> Any:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else flat_array([piece for values in found for piece in pieces_of(values)])

        def counted(name: str) -> Any:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else np.concatenate([[0], *map(np.diff, found)]).cumsum(dtype=np.int64)

        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            tokens=viewed("tokens"),
            types=viewed("types"),
            offsets=counted("offsets"),
            pad_id=first.pad_id,
            load_rows=lambda: concatenate_datasets([load() for load in loads]),
            tokenizer=first.tokenizer,
            max_length=first.max_length,
            frame=first.frame,
            values=viewed("values"),
            value_offsets=counted("value_offsets"),
            targets=viewed("targets"),
            target_offsets=counted("target_offsets"),
            start_id=first.start_id,
            known_prefix=None
            if all(part.known_prefix is None for part in parts)
            else np.concatenate(
                [np.ones(len(p), dtype=bool) if p.known_prefix is None else p.known_prefix for p in parts]
            ),
            parallel=joined("parallel"),
            tags=viewed("tags"),
            specials=first.specials,
            documents=joined("documents"),
            starts=joined("starts"),
            privileged=viewed("privileged"),
            for_teachers=first.for_teachers,
        )


@dataclass(frozen=True)
class PreparedData:
    """What the stage `prepare` wrote to `<run>/data/`; `info` is the content of `rows/data.json`."""

    folder: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, folder: RunFolder) -> PreparedData:
        """The prepared data of a run folder. Raises DtrainError where nothing was prepared."""
        try:
            return cls(folder.data, read_json(folder.data / "rows" / "data.json"))
        except (OSError, ValueError) as error:
            raise DtrainError(f"{folder.data}: no prepared data here; run the stage `prepare` first") from error

    @property
    def labels(self) -> list[str]:
        """Label names in the order of their numbers; for tagging, BIOES tags: O, then B, I, E, S of each type."""
        return self.info["labels"]

    @property
    def types(self) -> list[str]:
        """Entity types in order; for tagging only."""
        return self.info["types"]

    @property
    def privileged(self) -> list[str]:
        """Types of the annotations that teachers may read, in order; for tagging only, empty where there are none."""
        found: list[str] = self.info.get("privileged", [])
        return found

    @property
    def scheme(self) -> str:
        """The scheme of the user's tags, `bio` where spans were given; for tagging only."""
        return self.info["scheme"]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the normalised rows: ids, texts, labels."""
        return self.info["fingerprint"]

    @property
    def parts(self) -> list[str]:
        return [part for part in PARTS if part in self.info["rows"]]

    def parts_read(self, tokenizer: str) -> list[str]:
        """The parts that a tokenizer encodes; where rows have sides, those in which rows have the tokenizer's side."""
        own = parts_of(self.info, side_of(tokenizer))
        return [part for part in self.parts if part in own]

    def label_counts(self, tokenizer: str) -> dict[str, dict[str, int]]:
        """By part, rows with each label among those that a tokenizer encodes; parts without labels are left out."""
        return label_counts(self.info, side_of(tokenizer))

    def tokenizer_path(self, name: str) -> Path:
        return self.folder / "tokenizers" / name

    def vocabulary(self, tokenizer: str, written: bool = False) -> int:
        """Number of token ids of a tokenizer. With `written`, those of target texts; 0 where there are no targets."""
        return self._encoding(tokenizer).get("target_vocabulary" if written else "vocabulary", 0)

    def pad_id(self, tokenizer: str) -> int:
        return self._encoding(tokenizer)["pad_id"]

    def tokenizer_fingerprint(self, tokenizer: str) -> str:
        """Fingerprint of the tokenizer's files and of how texts are truncated."""
        return self._encoding(tokenizer)["tokenizer"]

    def rows(self, part: str, side: str = "") -> Dataset:
        """A part's rows: id, key, text, (text_b,) label, file, line; memory-mapped.

        For tagging also tags, document, start and, where there are annotations, privileged; text is a piece of a
        document, not normalised.

        Args:
            side: the side of the rows that is their text; "" where rows have no sides.

        Raises DtrainError where there is no such part.
        """
        found = [name for name in self.parts if name in parts_of(self.info, side)]
        if part not in found:
            with_side = f" with side {side!r}" if side else ""
            raise DtrainError(f"{self.folder}: there is no part {part!r}{with_side} (found: {', '.join(found)})")
        return load_from_disk(self.rows_path(side) / part)

    def rows_path(self, side: str) -> Path:
        """The folder of the parts whose rows have a side ("" where rows have none)."""
        return self.folder / "rows" / SIDES / side if side else self.folder / "rows"

    def part(self, part: str, tokenizer: str, privileged: Literal["own", "teachers"] | None = None) -> EncodedSplit:
        """The rows of a part, encoded by one tokenizer.

        Args:
            privileged: who reads the annotations: the model itself (own), or teachers that run beside it (teachers);
                None: nobody.

        Raises:
            DtrainError: the part does not exist, or was encoded from other rows.
        """
        rows = self.rows(part, side_of(tokenizer))
        encoding = self._encoding(tokenizer)
        encoded = load_from_disk(self.folder / "encoded" / tokenizer / part)
        ids = _column(encoded, "id")
        if not np.array_equal(ids, _column(rows, "id")):
            raise DtrainError(f"{self.folder / 'encoded' / tokenizer / part}: other ids than those of the rows")
        tokens, offsets = _lists(encoded, "input_ids")
        typed = "token_type_ids" in encoded.column_names
        tagged = "tags" in rows.column_names
        specials = encoding.get("specials", 0)
        tags = _lists(rows, "tags")[0] if tagged else None
        values, value_offsets = _lists(rows, "values") if "values" in rows.column_names else (None, None)
        written = "target_ids" in encoded.column_names
        targets, target_offsets = _lists(encoded, "target_ids") if written else (None, None)
        if tags is not None and len(tags) != len(tokens) - specials * len(ids):
            raise DtrainError(f"{self.folder / 'encoded' / tokenizer / part}: other characters than those of the rows")
        return EncodedSplit(
            ids=ids,
            labels=_column(rows, "label"),
            tokens=tokens,
            types=_lists(encoded, "token_type_ids")[0] if typed else None,
            offsets=offsets,
            pad_id=encoding["pad_id"],
            load_rows=lambda: self.rows(part, side_of(tokenizer)),
            tokenizer=self.tokenizer_path(tokenizer),
            max_length=encoding["max_length"],
            frame=self._frame(tokenizer),
            values=values,
            value_offsets=value_offsets,
            targets=targets,
            target_offsets=target_offsets,
            start_id=encoding.get("start", 0),
            parallel=_column(rows, "parallel") if "parallel" in rows.column_names else None,
            tags=tags,
            specials=specials,
            documents=_column(rows, "document") if tagged else None,
            starts=_column(rows, "start") if tagged else None,
            privileged=_lists(rows, "privileged")[0] if privileged else None,
            for_teachers=privileged == "teachers",
        )

    def _frame(self, tokenizer: str) -> tuple[int, ...]:
        return tuple(self._encoding(tokenizer)["frame"])

    def _encoding(self, tokenizer: str) -> dict[str, Any]:
        path = self.folder / "encoded" / tokenizer / "encoded.json"
        try:
            encoding = read_json(path)
        except (OSError, ValueError) as error:
            raise DtrainError(f"{path.parent}: not encoded yet; run the stage `prepare`") from error
        if encoding["rows"] != self.fingerprint:
            raise DtrainError(f"{path.parent}: encoded from other rows than those in {self.folder / 'rows'}")
        return encoding


def encode_texts(
    encoder: Encoder, pad_id: int, texts: list[str], texts_b: list[str] | None, **more: Any
) -> EncodedSplit:
    """An EncodedSplit of new, already normalised texts, with ids 0..N-1 and without labels, for prediction.

    Args:
        encoder: of the model's tokenizer, whose padding token has the id `pad_id`.
        more: further fields of the result.
    """
    encoded = encoder(texts, texts_b)
    columns: dict[str, list[Any]] = {"text": texts} if texts_b is None else {"text": texts, "text_b": texts_b}

    def load_rows() -> Dataset:
        return Dataset.from_dict(columns)

    return EncodedSplit(
        ids=np.arange(len(texts)),
        labels=np.full(len(texts), -1, dtype=np.int64),
        tokens=np.fromiter(chain.from_iterable(encoded.ids), dtype=np.int32),
        types=None if encoded.types is None else np.fromiter(chain.from_iterable(encoded.types), dtype=np.int8),
        offsets=np.cumsum([0, *map(len, encoded.ids)]),
        pad_id=pad_id,
        load_rows=load_rows,
        **more,
    )


def encode_documents(
    encoder: CharacterEncoder,
    pad_id: int,
    texts: Sequence[str],
    max_length: int,
    privileged: Sequence[np.ndarray] | None = None,
) -> EncodedSplit:
    """An EncodedSplit of new documents without tags, for prediction; `prepare` cuts untagged documents the same way.

    Args:
        encoder: of the tagger's tokenizer, whose padding token has the id `pad_id`; it also normalises.
        texts: the documents, not normalised.
        max_length: the most tokens of a piece, [CLS] and [SEP] included.
        privileged: the annotations of each text, integer [characters], for a model that reads them.

    Returns:
        Pieces with ids 0..N-1; `documents` are positions in `texts`. An empty text has one piece, which is one unknown
        token. The rows have text, document and start.
    """
    places = [(i, *piece) for i, text in enumerate(texts) for piece in cut(text, max_length - 2) or [(0, 0)]]
    pieces = [texts[i][start:end] for i, start, end in places]
    documents = np.array([i for i, _, _ in places], dtype=np.int64)
    starts = np.array([start for _, start, _ in places], dtype=np.int32)
    ids = encoder(pieces)
    beside = None
    if privileged is not None:
        none = np.zeros(1, dtype=np.int16)  # of the piece of an empty text
        parts = [privileged[i][start:end].astype(np.int16) if end else none for i, start, end in places]
        beside = np.concatenate([none[:0], *parts])

    def load_rows() -> Dataset:
        return Dataset.from_dict({"text": pieces, "document": documents, "start": starts})

    return EncodedSplit(
        ids=np.arange(len(pieces)),
        labels=np.full(len(pieces), -1, dtype=np.int64),
        tokens=np.fromiter(chain.from_iterable(ids), dtype=np.int32),
        types=None,
        offsets=np.cumsum([0, *map(len, ids)]),
        pad_id=pad_id,
        load_rows=load_rows,
        specials=encoder.specials,
        documents=documents,
        starts=starts,
        privileged=beside,
    )


def _column(dataset: Dataset, name: str) -> np.ndarray:
    return dataset.data.column(name).to_numpy()


def _lists(dataset: Dataset, name: str) -> tuple[np.ndarray | FlatArray, np.ndarray]:
    """A list column as flat values and offsets, int64 [N + 1]."""
    chunks = dataset.data.column(name).chunks
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    values = flat_array([chunk.flatten().to_numpy() for chunk in chunks])
    return values, np.concatenate([[0], *lengths]).cumsum(dtype=np.int64)
