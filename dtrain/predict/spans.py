"""Entities as answers: where a tagger finds them in each text.

pieces of texts -> fixed batches over ranks -> best tags and their probabilities -> texts joined again -> lines
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import Part, inference_batches
from dtrain.data.schemes import Span, write_tags
from dtrain.distributed import World
from dtrain.metrics.spans_text import answer_spans
from dtrain.predict.texts import Texts
from dtrain.training.inference import forward_outputs

BLANK = "\u2581"  # stands for white space, which has no place in a column
Answer = tuple[np.ndarray, np.ndarray]  # tags of a row's characters, and their log-probabilities


def tag_texts(
    model: nn.Module,
    part: Part,
    texts: list[str],
    types: Sequence[str],
    world: World,
    precision: str,
    batch_tokens: int,
) -> list[list[dict[str, Any]]]:
    """The entities of each text, on every rank: text, type, start, end (exclusive) and score.

    Args:
        part: the pieces of the texts; `documents` tells whose.
    """
    mine = inference_batches(part.lengths, batch_tokens)[world.rank :: world.size]
    found = _tagged(model, part, mine, device=world.device, precision=precision, threads=world.threads)
    return _documents(part, texts, types, {r: a for answers in world.gather_objects(found) for r, a in answers.items()})


def tag_alone(model: nn.Module, part: Part, texts: list[str], types: Sequence[str]) -> list[list[dict[str, Any]]]:
    """As `tag_texts`, by this process on its CPU."""
    batches = inference_batches(part.lengths, 4096)
    threads = torch.get_num_threads()
    found = _tagged(model, part, batches, device=torch.device("cpu"), precision="fp32", threads=threads)
    return _documents(part, texts, types, found)


def _tagged(model: nn.Module, part: Part, batches: list[np.ndarray], **how: Any) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    answers = forward_outputs(model, part, batches, outputs=lambda output: best_tags(model, output), **how)
    for rows, (tags, sure) in zip(batches, answers, strict=True):
        for row, row_tags, row_sure in zip(rows.tolist(), tags.cpu().numpy(), sure.cpu().numpy(), strict=True):
            found[row] = row_tags[: part.characters[row]], row_sure[: part.characters[row]]
    return found


def _documents(
    part: Part, texts: list[str], types: Sequence[str], found: dict[int, Answer]
) -> list[list[dict[str, Any]]]:
    assert part.documents is not None
    pieces: list[list[int]] = [[] for _ in texts]
    for row, document in enumerate(part.documents.tolist()):
        pieces[document].append(row)
    return [_joined(text, [found[row] for row in rows], types) for text, rows in zip(texts, pieces, strict=True)]


def best_tags(model: nn.Module, output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The best tags [B, N] (-1 at padding), and log p(tag | text) of each, [B, N]."""
    tags = model.decode(output.logits, output.mask)  # type: ignore[operator]
    marginals = model.log_marginals(output.logits, output.mask)  # type: ignore[operator]
    return tags, marginals.gather(2, tags.clamp(min=0)[:, :, None])[:, :, 0]


def _joined(text: str, pieces: list[Answer], types: Sequence[str]) -> list[dict[str, Any]]:
    tags = np.concatenate([tags for tags, _ in pieces])
    sure = np.concatenate([sure for _, sure in pieces])
    # An empty text was shown to the model as one unknown character.
    answers = answer_spans(text, tags[: len(text)], types, sure[: len(text)])
    for answer in answers:
        answer["score"] = round(answer["score"], 6)
    return answers


def lines(texts: Texts, answers: list[list[dict[str, Any]]], form: str, scheme: str) -> Iterator[str]:
    """The answers in `form`: jsonl (a line a text with its spans), tsv (a line a span), clue (a line a text as CLUENER
    wants it, ends inclusive), or conll (a line a character with its tag in the user's scheme, blank lines between)."""
    if form == "tsv":
        yield "\t".join(["id", "type", "start", "end", "score", "text", "line"])
    for key, line, text, spans in zip(texts.ids, texts.lines, texts.text, answers, strict=True):
        if form == "jsonl":
            yield json.dumps({"id": key, "line": line, "text": text, "spans": spans}, ensure_ascii=False)
        elif form == "tsv":
            for span in spans:
                cells = [key, span["type"], span["start"], span["end"], f"{span['score']:.6f}", span["text"], line]
                # A tab inside a text would shift the columns.
                yield "\t".join(" ".join(str(cell).split()) for cell in cells)
        elif form == "clue":
            labels: dict[str, dict[str, list[list[int]]]] = {}
            for span in spans:
                places = labels.setdefault(span["type"], {}).setdefault(span["text"], [])
                places.append([span["start"], span["end"] - 1])
            yield json.dumps({"id": key, "label": labels}, ensure_ascii=False)
        else:
            tags = write_tags([Span(span["start"], span["end"], span["type"]) for span in spans], len(text), scheme)
            for character, name in zip(text, tags, strict=True):
                yield f"{BLANK if character.isspace() else character} {name}"
            yield ""
