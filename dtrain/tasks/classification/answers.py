"""A classifier's answers: a label for each text, written as JSON lines, as a table or as a CLUE submission."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import EncodedSplit, Normalizer, encode_texts
from dtrain.data.dataset import PreparedData
from dtrain.data.encode import Encoder
from dtrain.data.files import SUFFIXES, Source, matching_files, resolve_path, suffix_of
from dtrain.data.normalization_table import table_of_texts
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError
from dtrain.quiet import quiet_transformers
from dtrain.recipe.data import Data, Normalization
from dtrain.tasks.answers import Answers, Exported, Texts, model_labels
from dtrain.training.workers import Workers

SCRIPT = "dtrain.tasks.classification.exported"


class TextAnswers(Answers):
    """Answers of tasks with one vector of logits for each text or pair: how texts are encoded and answers written.

    A subclass defines how logits become an answer, and which columns an answer has in a table.
    """

    forms: tuple[str, ...] = ("jsonl", "tsv")
    formats = ("jsonl", "tsv", "csv", "parquet", "lines", "dataset")
    columns: tuple[str, ...] = ()  # the columns of a table that hold the answer

    def __init__(self, texts: int = 1) -> None:
        self.texts = texts

    def answers(self, logits: torch.Tensor, model: nn.Module) -> Iterator[dict[str, Any]]:
        """The answers for logits, float32 [N, C], one for each row."""
        raise NotImplementedError

    def cells(self, answer: dict[str, Any]) -> list[str]:
        """An answer as the cells of a table, one for each of `columns`."""
        raise NotImplementedError

    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        normalizer = Normalizer(normalize)
        with quiet_transformers():  # transformers warns about model types of this package
            tokenizer = load_tokenizer(model)
        encoders = [Encoder(tokenizer, max_length, pairs=pairs) for pairs in (False, True)]

        def read(texts: Texts) -> EncodedSplit:
            text, text_b = ([normalizer(text) for text in column] for column in (texts.text, texts.text_b))
            pairs = bool(text_b)
            return encode_texts(encoders[pairs], tokenizer.pad_token_id, text, text_b if pairs else None)

        return read

    def meaning(self, model: nn.Module) -> dict[str, Any]:
        """Entries of `settings.json` by which an exported model turns logits into an answer: `answer`, parameters."""
        raise InputError(f"export: models that answer with {', '.join(self.columns)} cannot be exported")

    def exported(
        self, model: nn.Module, place: Path, normalize: Normalization, max_length: int, texts: int
    ) -> Exported:
        with quiet_transformers():
            tokenizer = load_tokenizer(place)
        encoder = Encoder(tokenizer, max_length, pairs=texts == 2)
        settings = {
            **self.meaning(model),
            "texts": texts,
            "labels": model_labels(model),
            "types": encoder.types,
            "pad_id": tokenizer.pad_token_id,
            "unknown_id": encoder.unknown,
            "blank_id": encoder.blank,
            "mask_id": encoder.mask,
        }
        table = table_of_texts(normalize)
        return Exported(SCRIPT, settings, table, encoder.backend.to_str(), encoder.types)

    def find(self, model: nn.Module, part: EncodedSplit, texts: Texts, workers: Workers) -> Iterator[dict[str, Any]]:
        logits = torch.zeros(len(part), len(model_labels(model)))
        for rows, (answer,) in workers.outputs(model, part, lambda output: (output.logits.float(),)):
            logits[torch.from_numpy(rows)] = answer.cpu()
        return self.answers(workers.sum(logits), model)  # every other rank adds an exact zero

    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        pairs = bool(texts.text_b)
        if form == "tsv":
            yield "\t".join(["id", *self.columns, "text", *(["text_b"] if pairs else []), "line"])
        for number, (key, line, answer) in enumerate(zip(texts.ids, texts.lines, answers, strict=True)):
            row = {"text": texts.text[number]} | ({"text_b": texts.text_b[number]} if pairs else {})
            if form == "tsv":
                cells = [str(key), *self.cells(answer), *row.values(), str(line)]
                # A tab inside a text would shift the columns.
                yield "\t".join(" ".join(cell.split()) for cell in cells)
            else:
                yield json.dumps({"id": key, "line": line, **row, **answer}, ensure_ascii=False)


class Labels(TextAnswers):
    """Answers of tasks `classification` and `pairs`: the `label`, its probability `score`, and all `scores`."""

    forms = ("jsonl", "tsv", "clue")
    columns = ("label", "score")

    def answers(self, logits: torch.Tensor, model: nn.Module) -> Iterator[dict[str, Any]]:
        labels = model_labels(model)
        for shares in torch.softmax(logits.double(), dim=1).numpy():
            best = int(np.argmax(shares))
            scores = {label: round(float(share), 6) for label, share in zip(labels, shares, strict=True)}
            yield {"label": labels[best], "score": scores[labels[best]], "scores": scores}

    def cells(self, answer: dict[str, Any]) -> list[str]:
        return [answer["label"], f"{answer['score']:.6f}"]

    def meaning(self, model: nn.Module) -> dict[str, Any]:
        return {"answer": "label"}

    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        if form == "clue":
            return _clue_lines(texts, answers, label_descriptions(section))
        return super().lines(texts, answers, form, section, data)


def _clue_lines(texts: Texts, answers: Iterable[Any], descriptions: dict[str, str]) -> Iterator[str]:
    """The lines of a CLUE submission: id, label, and the label's description if the recipe's files have one."""
    for key, answer in zip(texts.ids, answers, strict=True):
        entry = {"id": key, "label": answer["label"]}
        if answer["label"] in descriptions:
            entry["label_desc"] = descriptions[answer["label"]]
        yield json.dumps(entry, ensure_ascii=False)


def label_descriptions(data: Data) -> dict[str, str]:
    """CLUE's `label_desc` by label, from the label file, else from a training file; empty if neither has any."""
    files = [(name, data.columns.label) for name in data.train]
    if isinstance(data.labels, str):
        files.insert(0, (data.labels, "label"))
    for name, column in files:
        for file in _json_files(name):
            found = _descriptions(Source("train", file, "jsonl", data.encoding), column)
            if found:
                return found
    return {}


def _json_files(name: str) -> list[str]:
    """The files of JSON lines that a path, pattern or folder of the recipe stands for; none if they are gone."""
    try:
        files = matching_files(name, [suffix for suffix, kind in SUFFIXES.items() if kind == "jsonl"])
    except InputError:
        return []
    return [file for file in files if SUFFIXES.get(suffix_of(resolve_path(file))) == "jsonl"]


def _descriptions(source: Source, column: str | int) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for _, record in read_records(source, True, column, Problems()):
            if "label_desc" not in record:
                break
            found.setdefault(str(record[column]), str(record["label_desc"]))
    except (OSError, KeyError):
        return {}  # the sources may have changed or gone since the data was prepared
    return found
