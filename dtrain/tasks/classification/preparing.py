"""Normalising and encoding texts and pairs of texts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Features, List, Value

from dtrain.data.corpus import Corpus
from dtrain.data.encode import Encoder
from dtrain.data.normalize import Normalizer
from dtrain.data.sides import FOLDER as SIDES
from dtrain.data.sides import side_counts, view_of
from dtrain.data.sources import Rows
from dtrain.data.vocabularies import student_tokenizer, trained_tokenizer
from dtrain.data.write import Batch, Encode, RowSummary, in_blocks, map_rows, streamed
from dtrain.recipe.data import Data
from dtrain.recipe.models import EncoderSpec
from dtrain.runfolder import fingerprint, write_json
from dtrain.tasks.preparing import Preparing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextPreparing(Preparing):
    """Preparing for tasks `classification` and `pairs`, and the base class for other tasks whose rows are texts.

    Attributes:
        values: type of the elements of the column `values`, a list for each row; None if rows have no such column.
        answers: columns of texts that are labels rather than input.
    """

    values: Value | None = None
    answers: tuple[str, ...] = ()

    def texts_of(self, rows: Rows, data: Data) -> dict[str, Iterable[str]]:
        """The texts of rows by column."""
        return {
            name: getattr(rows, name)
            for name in ("text", "text_b")
            if name == "text" or data.columns.text_b is not None
        }

    def values_of(self, rows: Rows, corpus: Corpus) -> Iterator[list[Any]]:
        """The column `values`: a list for each row, empty for a row without a label."""
        raise NotImplementedError

    def info(self, corpus: Corpus, data: Data) -> dict[str, Any]:
        """Entries of `data.json` that only this kind of task has."""
        return {}

    def write(self, corpus: Corpus, data: Data, folder: Path) -> None:
        """As the base class; the texts are written normalised."""
        columns = list(self.texts_of(Rows(), data))
        beside = [name for name in columns if name in self.answers] + ["values"] * (self.values is not None)
        asked = [name for name in columns if name not in self.answers]
        features = _row_features(columns, self.values, sides=bool(data.sides))
        firsts = dict(zip(corpus.parts, np.cumsum([0, *corpus.counts.values()]).tolist(), strict=False))
        summaries = []
        for side in data.sides or [""]:
            view = view_of(corpus, side) if side else None
            of_side = corpus if view is None else view.corpus
            more = [] if view is None else ["parallel"]
            summary = RowSummary(asked, [data.task, corpus.labels, *filter(None, [side])], [*beside, *more])
            for part, rows in of_side.parts.items():
                numbers = np.arange(len(rows)) if view is None else view.index[part]
                table: dict[str, Iterable[Any]] = {
                    "id": firsts[part] + numbers,
                    "key": rows.key,
                    **self.texts_of(rows, data),
                    "label": of_side.numbers[part],
                    **({} if self.values is None else {"values": self.values_of(rows, corpus)}),
                    **({} if view is None else {"parallel": view.parallel[part]}),
                    "file": np.array(rows.file),
                    "line": np.array(rows.line),
                }
                normalize = _NormalizeBatch(Normalizer(data.normalize), columns)
                with streamed(in_blocks(table, len(rows)), features, folder / "raw.arrow") as raw:
                    dataset = map_rows(raw, normalize, features, data, folder / "scratch")
                dataset.save_to_disk((folder / SIDES / side if side else folder) / part)
                summary.add(part, dataset)
            summaries.append(summary)
        shutil.rmtree(folder / "scratch")
        digests = [summary.digest.hexdigest()[:32] for summary in summaries]
        empty, also_in_train = (
            _added(found) for found in zip(*((s.empty, s.also_in_train) for s in summaries), strict=True)
        )
        info = {
            "format": 1,
            "task": data.task,
            "labels": corpus.labels,
            "rows": corpus.counts,
            "made_up": corpus.made_up,
            "label_counts": corpus.label_counts,
            "empty_texts": empty,
            "also_in_train": also_in_train,
            "files": corpus.files,
            "remarks": corpus.remarks,
            "normalize": data.normalize.model_dump(mode="json"),
            "fingerprint": digests[0] if len(digests) == 1 else fingerprint(*digests),
            **(side_counts(corpus, data.sides) if data.sides else {}),
            **self.info(corpus, data),
        }
        write_json(folder / "data.json", info)

    def tokenizer(
        self, spec: EncoderSpec | None, texts: Iterable[list[str]], data: Data, targets: Iterable[list[str]] = ()
    ) -> PreTrainedTokenizerFast:
        if spec is None:
            return student_tokenizer(data.vocabulary, texts)
        return trained_tokenizer(spec, texts, data.normalize.lower)

    def encode(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> Encode:
        return _EncodeBatch(Encoder(tokenizer, data.max_length, data.columns.text_b is not None))

    def specials(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> int:
        return 0


class _NormalizeBatch:
    def __init__(self, normalizer: Normalizer, columns: list[str]) -> None:
        self.normalizer, self.columns = normalizer, columns

    def __call__(self, batch: Batch) -> Batch:
        return {column: [self.normalizer(text) for text in batch[column]] for column in self.columns}


class _EncodeBatch:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.types = encoder, encoder.types

    def __call__(self, batch: Batch) -> Batch:
        encoded = self.encoder(batch["text"], batch.get("text_b"))
        columns: Batch = {"id": batch["id"], "input_ids": encoded.ids, "cut": encoded.cut}
        return columns if encoded.types is None else {**columns, "token_type_ids": encoded.types}


def _added(found: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums by name."""
    total: dict[str, int] = {}
    for each in found:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total


def _row_features(columns: list[str], values: Value | None, sides: bool) -> Features:
    texts = {column: Value("string") for column in columns}
    lists = {} if values is None else {"values": List(values)}
    places = {**({"parallel": Value("bool")} if sides else {}), "file": Value("int32"), "line": Value("int32")}
    return Features({"id": Value("int64"), "key": Value("string"), **texts, "label": Value("int64"), **lists, **places})
