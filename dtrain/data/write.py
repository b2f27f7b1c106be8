"""The write side: normalised rows and encoded rows as `datasets` folders, over worker processes where many."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, load_from_disk

from dtrain.data.characters import CharacterEncoder
from dtrain.data.corpus import Corpus
from dtrain.data.encode import Encoder
from dtrain.data.normalize import Normalizer
from dtrain.machines import usable_cores
from dtrain.recipe.data import Data
from dtrain.runfolder import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORKER_BYTES = 16 << 20  # of rows; starting workers takes a second or two, in which one encodes about as much
MOST_WORKERS = 8
Batch = dict[str, list[Any]]


def write_rows(corpus: Corpus, data: Data, folder: Path) -> None:
    """Write every part's normalised rows with their ids (counted over the parts), and data.json."""
    columns = ["text", "text_b"] if data.task == "pairs" else ["text"]
    summary = RowSummary(columns, [data.task, corpus.labels])
    first_id = 0
    for part, rows in corpus.parts.items():
        table = {
            "id": np.arange(first_id, first_id + len(rows)),
            "key": rows.key,
            **{column: getattr(rows, column) for column in columns},
            "label": corpus.numbers[part],
            "file": np.asarray(rows.file),
            "line": np.asarray(rows.line),
        }
        first_id += len(rows)
        # Dataset.from_dict would look at every value once more.
        raw = Dataset(pa.table(table, schema=_row_features(columns).arrow_schema))
        normalize = _NormalizeBatch(Normalizer(data.normalize), columns)
        dataset = map_rows(raw, normalize, raw.features, data, folder / "scratch")
        dataset.save_to_disk(folder / part)
        summary.add(part, dataset)
    shutil.rmtree(folder / "scratch")
    info = {
        "format": 1,
        "task": data.task,
        "labels": corpus.labels,
        "rows": corpus.counts,
        "made_up": corpus.made_up,
        "label_counts": corpus.label_counts,
        "empty_texts": summary.empty,
        "also_in_train": summary.also_in_train,
        "files": corpus.files,
        "remarks": corpus.remarks,
        "normalize": data.normalize.model_dump(mode="json"),
        "fingerprint": summary.digest.hexdigest()[:32],
    }
    write_json(folder / "data.json", info)


def write_encoded(
    tokenizer: PreTrainedTokenizerFast, rows: Path, parts: list[str], data: Data, folder: Path
) -> dict[str, int]:
    """Write every part of `rows` as token ids; returns how many rows of each part were cut at `max_length`."""
    features = Features({"id": Value("int64"), "input_ids": List(Value("int32")), "cut": Value("bool")})
    encode: Callable[[Batch], Batch]
    if data.task == "tagging":
        encode = _EncodeCharacters(CharacterEncoder(tokenizer, data.normalize))
    else:
        encoder = Encoder(tokenizer, data.max_length, data.task == "pairs")
        encode = _EncodeBatch(encoder)
        if encoder.types:
            features["token_type_ids"] = List(Value("int8"))
    cut = {}
    for part in parts:
        dataset = load_from_disk(rows / part)
        encoded = map_rows(dataset, encode, features, data, folder / "scratch")
        cut[part] = int(encoded.data.column("cut").to_numpy().sum())
        encoded.remove_columns("cut").save_to_disk(folder / part)
    shutil.rmtree(folder / "scratch")
    return cut


class RowSummary:
    """What is worth knowing about rows, collected in one pass over the training part and the others.

    `columns` hold text; they, the `others`, ids and labels are what the digest is of, after `identity`.
    """

    def __init__(self, columns: list[str], identity: list[Any], others: Sequence[str] = ()) -> None:
        self.columns, self.others = columns, others
        self.digest = hashlib.sha256(json.dumps(identity).encode())
        self.empty: dict[str, int] = {}
        self.also_in_train: dict[str, int] = {}  # a score has to be read with these
        self.train: set[tuple[str, ...]] = set()

    def add(self, part: str, dataset: Dataset) -> None:
        self.empty[part] = 0
        if part in ("valid", "test"):
            self.also_in_train[part] = 0
        for batch in dataset.select_columns(["id", *self.columns, "label", *self.others]).iter(1000):
            texts = list(zip(*(batch[column] for column in self.columns), strict=True))
            self.digest.update(json.dumps([part, batch]).encode())
            self.empty[part] += sum("" in row for row in texts)
            if part == "train":
                self.train.update(texts)
            elif part in self.also_in_train:
                self.also_in_train[part] += sum(row in self.train for row in texts)


class _NormalizeBatch:
    def __init__(self, normalizer: Normalizer, columns: list[str]) -> None:
        self.normalizer, self.columns = normalizer, columns

    def __call__(self, batch: Batch) -> Batch:
        return {column: [self.normalizer(text) for text in batch[column]] for column in self.columns}


class _EncodeBatch:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Batch) -> Batch:
        encoded = self.encoder(batch["text"], batch.get("text_b"))
        columns: Batch = {"id": batch["id"], "input_ids": encoded.ids, "cut": encoded.cut}
        return columns if encoded.types is None else {**columns, "token_type_ids": encoded.types}


class _EncodeCharacters:
    def __init__(self, encoder: CharacterEncoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Batch) -> Batch:
        ids = self.encoder(batch["text"])
        return {"id": batch["id"], "input_ids": ids, "cut": [False] * len(ids)}


def _row_features(columns: list[str]) -> Features:
    texts = {column: Value("string") for column in columns}
    numbers = {"label": Value("int64"), "file": Value("int32"), "line": Value("int32")}
    return Features({"id": Value("int64"), "key": Value("string"), **texts, **numbers})


def worker_count(data: Data) -> int:
    """Processes that text is worked on by, where there is much of it."""
    return min(MOST_WORKERS, usable_cores()) if data.workers == "auto" else data.workers


def map_rows(
    dataset: Dataset, function: Callable[[Batch], Batch], features: Features, data: Data, scratch: Path
) -> Dataset:
    """`dataset.map` in batches; whatever it writes lies in `scratch`, nothing in the user's cache."""
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
        new_fingerprint=name,  # else datasets pickles the function with all that it holds, to hash it
    )
