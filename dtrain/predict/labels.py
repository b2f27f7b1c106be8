"""Labels as answers: a classifier's opinion of each text, as lines of JSON, of a table, or of a CLUE submission."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import Part, inference_batches
from dtrain.data.files import Source, resolve_path
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.distributed import World
from dtrain.predict.texts import Texts
from dtrain.recipe.data import Data
from dtrain.training.inference import forward_batches


def all_logits(model: nn.Module, part: Part, world: World, precision: str, batch_tokens: int) -> torch.Tensor:
    """float32 [N, C] on the CPU of every rank; each rank computes every size-th of the fixed batches."""
    batches = inference_batches(part.lengths, batch_tokens)
    mine = batches[world.rank :: world.size]
    logits = torch.zeros(len(part), len(labels_of(model)))
    answers = forward_batches(model, part, mine, device=world.device, precision=precision, threads=world.threads)
    for rows, answer in zip(mine, answers, strict=True):
        logits[torch.from_numpy(rows)] = answer.cpu()
    return world.sum(logits)  # every other rank adds an exact zero


def labels_of(model: nn.Module) -> list[str]:
    config: Any = model.config
    names = config["id2label"] if isinstance(config, dict) else config.id2label
    return [names[key] for key in sorted(names, key=int)]


def answers(logits: torch.Tensor, labels: list[str]) -> Iterator[dict[str, Any]]:
    """For each row of logits [N, C] its `label`, the label's probability `score`, and all probabilities `scores`."""
    for shares in torch.softmax(logits.double().cpu(), dim=1).numpy():
        best = int(np.argmax(shares))
        scores = {label: round(float(share), 6) for label, share in zip(labels, shares, strict=True)}
        yield {"label": labels[best], "score": scores[labels[best]], "scores": scores}


def lines(texts: Texts, logits: torch.Tensor, labels: list[str], form: str, data: Data) -> Iterator[str]:
    """A line a text, in `form` jsonl, tsv or clue."""
    found = answers(logits, labels)
    if form == "clue":
        descriptions = label_descriptions(data)
        for key, answer in zip(texts.ids, found, strict=True):
            entry = {"id": key, "label": answer["label"]}
            if answer["label"] in descriptions:
                entry["label_desc"] = descriptions[answer["label"]]
            yield json.dumps(entry, ensure_ascii=False)
        return
    pairs = bool(texts.text_b)
    if form == "tsv":
        yield "\t".join(["id", "label", "score", "text", *(["text_b"] if pairs else []), "line"])
    for number, (key, line, answer) in enumerate(zip(texts.ids, texts.lines, found, strict=True)):
        row = {"text": texts.text[number]} | ({"text_b": texts.text_b[number]} if pairs else {})
        if form == "tsv":
            cells = [str(key), answer["label"], f"{answer['score']:.6f}", *row.values(), str(line)]
            # A tab inside a text would shift the columns.
            yield "\t".join(" ".join(cell.split()) for cell in cells)
        else:
            yield json.dumps({"id": key, "line": line, **row, **answer}, ensure_ascii=False)


def label_descriptions(data: Data) -> dict[str, str]:
    """`label_desc` by label, as CLUE's files have it: from the label file, else from a training file; or none."""
    files = [(name, data.columns.label) for name in data.train]
    if isinstance(data.labels, str):
        files.insert(0, (data.labels, "label"))
    for name, column in files:
        if resolve_path(name).suffix.lower() in (".json", ".jsonl"):
            found = _descriptions(Source("train", name, "jsonl"), column)
            if found:
                return found
    return {}


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
