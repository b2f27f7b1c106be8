"""Cutting documents into pieces with their tags, and encoding them with one token for each character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Features, List, Value

from dtrain.data.characters import CharacterEncoder
from dtrain.data.corpus import Corpus
from dtrain.data.normalize import DROPPED, CharacterNormalizer
from dtrain.data.pieces import cut
from dtrain.data.schemes import Span, number_tags
from dtrain.data.sources import Rows
from dtrain.data.vocabularies import character_tokenizer, student_tokenizer
from dtrain.data.write import BLOCK, Batch, RowSummary, streamed
from dtrain.recipe.data import Data
from dtrain.recipe.models import EncoderSpec
from dtrain.runfolder import write_json
from dtrain.tasks.preparing import Preparing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FEATURES = Features(
    {
        "id": Value("int64"),
        "key": Value("string"),
        "text": Value("string"),
        "tags": List(Value("int16")),
        "label": Value("int64"),
        "document": Value("int64"),
        "start": Value("int32"),
        "file": Value("int32"),
        "line": Value("int32"),
    }
)


class DocumentPreparing(Preparing):
    """Preparing for task `tagging`: a row is a piece of a document."""

    def write(self, corpus: Corpus, data: Data, folder: Path) -> None:
        """As the base class; documents are cut into pieces of at most `max_length` - 2 characters.

        Training documents are never cut inside an entity. All others are cut as `predict` cuts new text, regardless of
        entities, so that scores are those of new text.

        Texts are written as they are in the user's files. They are normalised when they are encoded; the normalisation
        is part of the fingerprint of the rows.
        """
        normalize = data.normalize.model_dump(mode="json")
        beside = ["privileged"] if corpus.privileged else []
        identity = [data.task, corpus.labels, normalize, *([corpus.privileged] if beside else [])]
        summary = RowSummary(["text"], identity, ["tags", "document", "start", *beside])
        features = Features({**FEATURES, "privileged": FEATURES["tags"]}) if beside else FEATURES
        pieces_of = _Pieces(data.max_length - 2, corpus)
        pieces: dict[str, int] = {}
        first_document = 0
        for part, rows in corpus.parts.items():
            blocks = pieces_of(rows, part == "train", sum(pieces.values()), first_document)
            with streamed(blocks, features, folder / "raw.arrow") as dataset:
                dataset.save_to_disk(folder / part)
                summary.add(part, dataset)
                pieces[part] = len(dataset)
            first_document += len(rows)
        info = {
            "format": 1,
            "task": data.task,
            "labels": corpus.labels,
            "types": corpus.types,
            **({"privileged": corpus.privileged} if beside else {}),
            "scheme": corpus.scheme,
            "span_end": corpus.span_end,
            "rows": pieces,
            "documents": corpus.counts,
            "label_counts": corpus.label_counts,
            "empty_texts": summary.empty,
            "also_in_train": summary.also_in_train,
            "files": corpus.files,
            "remarks": corpus.remarks,
            "normalize": normalize,
            "fingerprint": summary.digest.hexdigest()[:32],
        }
        write_json(folder / "data.json", info)

    def normalised(self, texts: Iterable[list[str]], data: Data) -> Iterator[list[str]]:
        """As the base class; the written rows are not normalised."""
        normalizer = CharacterNormalizer(data.normalize)
        return ([normalizer(text).replace(DROPPED, "") for text in batch] for batch in texts)

    def tokenizer(
        self, spec: EncoderSpec | None, texts: Iterable[list[str]], data: Data, targets: Iterable[list[str]] = ()
    ) -> PreTrainedTokenizerFast:
        if spec is None:
            return student_tokenizer(data.vocabulary, texts)
        return character_tokenizer(spec, data.vocabulary.min_count, texts, data.normalize.lower)

    def encode(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> _EncodeCharacters:
        return _EncodeCharacters(CharacterEncoder(tokenizer, data.normalize))

    def specials(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> int:
        return CharacterEncoder(tokenizer, data.normalize).specials


class _EncodeCharacters:
    types = False

    def __init__(self, encoder: CharacterEncoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Batch) -> Batch:
        ids = self.encoder(batch["text"])
        return {"id": batch["id"], "input_ids": ids, "cut": [False] * len(ids)}


class _Pieces:
    """Cuts the documents of a part into pieces, in order, and yields these in blocks of rows."""

    def __init__(self, limit: int, corpus: Corpus) -> None:
        self.limit = limit
        self.types, self.privileged = (_numbers(names) for names in (corpus.types, corpus.privileged))

    def __call__(
        self, rows: Rows, spare_entities: bool, first_id: int, first_document: int
    ) -> Iterator[dict[str, list[Any]]]:
        names = [*FEATURES, *(["privileged"] if self.privileged else [])]
        block: dict[str, list[Any]] = {name: [] for name in names}
        beside: Iterator[list[Span] | None] = iter(rows.privileged)
        for number, (text, spans, key) in enumerate(zip(rows.text, rows.spans, rows.key, strict=True)):
            none = np.full(len(text), -1, dtype=np.int16)
            tags = none if spans is None else number_tags(spans, len(text), self.types)
            given = next(beside) if self.privileged else None
            more = number_tags(given or [], len(text), self.privileged)
            for start, end in cut(text, self.limit, spans or () if spare_entities else ()):
                block["id"].append(first_id)
                block["key"].append(key)
                block["text"].append(text[start:end])
                block["tags"].append(tags[start:end])
                block["label"].append(-1 if spans is None else 0)
                block["document"].append(first_document + number)
                block["start"].append(start)
                block["file"].append(rows.file[number])
                block["line"].append(rows.line[number])
                if self.privileged:
                    block["privileged"].append(more[start:end])
                first_id += 1
            if len(block["id"]) >= BLOCK:
                yield block
                block = {name: [] for name in names}
        yield block


def _numbers(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
