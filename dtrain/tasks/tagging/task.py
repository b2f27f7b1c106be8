"""Tagging: batches, loss terms and scores of taggers of characters.

Entities are counted over whole documents: the pieces into which a long text was cut are joined again, whichever ranks
tagged them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import EncodedSplit
from dtrain.data.batch import Batch
from dtrain.errors import DtrainError
from dtrain.knowledge.kinds import layer_of
from dtrain.metrics import count_entities, entities, entity_scores, per_type
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.tasks.base import Task, check_coverage
from dtrain.training.workers import Workers

WRONG, RIGHT = 8, 4  # texts with and without mistakes that the report shows


@dataclass(frozen=True)
class Tagged:
    """Scoring results of a part's labelled rows, over all ranks."""

    entities: Tensor  # int64 [types, 3]: right, predicted, gold
    correct: int  # characters with the right tag
    characters: int
    rows: int
    loss: float  # mean negative log-likelihood per character
    examples: list[tuple[int, np.ndarray]]  # rows, those with mistakes first, and their predicted tags


class Tagging(Task):
    """Task `tagging`: BIOES tags of characters, scored by entities."""

    name = "tagging"
    card_tag = "token-classification"

    def units(self, part: EncodedSplit) -> np.ndarray:
        return part.characters

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        return [LossSpec(type="tag_likelihood")]

    def collate(self, rows: EncodedSplit, index: np.ndarray, needs: set[str]) -> Batch:
        return Batch(
            rows=index,
            ids=rows.ids[index],
            inputs=rows.collate(index),
            beside=rows.collate_for_teachers(index),
            targets={"tags": rows.collate_tags(index)} if "nll" in needs else {},
            labelled=torch.from_numpy(rows.labels[index] >= 0),
            units=torch.from_numpy(rows.characters[index].astype(np.int64)),
        )

    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        """As the base class.

        Raises:
            DtrainError: a teacher's outputs for these rows have another shape than the student's.
        """
        output = model(**batch.inputs, tags=batch.targets.get("tags"), marginals="marginals" in needs)
        found = {"emissions": output.logits, "mask": output.mask}
        if "nll" in needs:
            found["nll"] = output.nll
        if "marginals" in needs:
            found["marginals"] = output.marginals
        if "token_features" in needs:
            found["token_features"] = output.states
        for name, kinds in batch.teachers.items():
            for kind, values in kinds.items():
                own = output.states if kind == "token_features" else output.logits
                if layer_of(kind) is None and own is not None and values.shape != own.shape:
                    raise DtrainError(
                        f"knowledge of {name}: {list(values.shape)} values for these rows, "
                        f"but the student has {list(own.shape)}"
                    )
        return found

    def scores(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, float]:
        return self._scores(tag_part(model, part, workers, len(self.types)))

    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        tagged = tag_part(model, part, workers, len(self.types))
        return {
            "scores": self._scores(tagged),
            "per_type": per_type(tagged.entities, self.types),
            "counts": tagged.entities.tolist(),
            "examples": [self._example(part, row, tags) for row, tags in tagged.examples],
        }

    def headline(self, scores: Mapping[str, float]) -> str:
        return f"entity f1 {scores['f1']:.4f} (precision {scores['precision']:.4f}, recall {scores['recall']:.4f})"

    def _scores(self, tagged: Tagged) -> dict[str, float]:
        return {
            **entity_scores(tagged.entities, self.types),
            "accuracy": tagged.correct / max(tagged.characters, 1),
            "rows": tagged.rows,
            "characters": tagged.characters,
            "loss": tagged.loss,
        }

    def _example(self, part: EncodedSplit, row: int, predicted: np.ndarray) -> dict[str, Any]:
        text = part.rows()[row]["text"]
        return {"text": text, "gold": self._spans(gold_tags(part, row)), "predicted": self._spans(predicted)}

    def _spans(self, tags: np.ndarray) -> list[list[Any]]:
        found = entities(tags, np.array([0, len(tags)]))
        return [
            [int(start), int(end), self.types[kind]]
            for kind, start, end in zip(found.type, found.start, found.end, strict=True)
        ]


def gold_tags(part: EncodedSplit, row: int) -> np.ndarray:
    """The gold tags of a row, int16 [characters]."""
    assert part.tags is not None
    start, end = part.tag_offsets[row], part.tag_offsets[row + 1]
    return part.tags[start:end]


def tag_part(model: nn.Module, part: EncodedSplit, workers: Workers, types: int) -> Tagged:
    """Tag a part's labelled rows, each on one rank only, and score them; equal for any number of ranks.

    Raises:
        DtrainError: a row was not tagged exactly once.
    """

    def keep(output: Any) -> tuple[Tensor, ...]:
        return output.logits, output.mask, model.decode(output.logits, output.mask)  # type: ignore[operator]

    labelled = np.flatnonzero(part.labels >= 0)
    predicted: dict[int, np.ndarray] = {}
    by_row = torch.zeros(len(part), 3, dtype=torch.float64)  # loss, right tags, how often the row was tagged
    for rows, (emissions, mask, tags) in workers.outputs(model, part, keep, labelled):
        gold = part.collate_tags(rows)
        whole = whole_entities(gold, part, rows).to(emissions.device)
        gold = gold.to(emissions.device)
        with torch.inference_mode():
            nll = model.nll(emissions, mask, whole)  # type: ignore[operator]
        right = ((tags == gold) & mask).sum(1)
        found = torch.stack([nll.double(), right.double(), torch.ones_like(nll, dtype=torch.float64)], dim=1).cpu()
        by_row.index_add_(0, torch.from_numpy(rows), found)
        for row, row_tags, length in zip(rows.tolist(), tags.cpu().numpy(), part.characters[rows], strict=True):
            predicted[row] = row_tags[:length].astype(np.int16)

    counts, examples = _count(part, predicted, types, workers)
    counts, by_row = workers.sum(counts), workers.sum(by_row)
    check_coverage(part, by_row[:, 2])
    characters = int(part.characters[labelled].sum())
    return Tagged(
        entities=counts,
        correct=int(by_row[:, 1].sum()),
        characters=characters,
        rows=len(labelled),
        # fsum rounds once, whatever the order: the mean has the same last digit for any number of ranks.
        loss=math.fsum(by_row[:, 0].tolist()) / max(characters, 1),
        examples=examples,
    )


def whole_entities(tags: Tensor, part: EncodedSplit, rows: np.ndarray) -> Tensor:
    """Gold tags [B, N] of the pieces `rows`, in which the fragment of an entity on either side of a cut is an entity.

    Documents that are scored are cut regardless of their entities, and a CRF that allows only valid paths has no
    likelihood for a text that begins or ends inside an entity.
    """
    assert part.documents is not None
    tags, everywhere = tags.clone(), torch.arange(len(tags))
    joined = part.documents[1:] == part.documents[:-1]  # whether there is a cut between a row and the next
    for cut, place, change in (
        (np.append(False, joined)[rows], np.zeros(len(rows), dtype=np.int64), {1: -1, 2: 1}),  # I -> B, E -> S
        (np.append(joined, False)[rows], part.characters[rows].astype(np.int64) - 1, {0: 3, 1: 1}),  # B -> S, I -> E
    ):
        where = torch.from_numpy(place)
        found = tags[everywhere, where]
        for letter, step in change.items():
            fragment = torch.from_numpy(cut) & (found > 0) & ((found - 1) % 4 == letter)
            tags[everywhere, where] += step * fragment.long()
    return tags


def _count(
    part: EncodedSplit, predicted: dict[int, np.ndarray], types: int, workers: Workers
) -> tuple[Tensor, list[tuple[int, np.ndarray]]]:
    """This rank's share of the entity counts, int64 [types, 3], and examples over all ranks."""
    assert part.documents is not None
    document_of = np.unique(part.documents, return_inverse=True)[1]
    pieces = np.bincount(document_of)[document_of]
    whole = {row: tags for row, tags in predicted.items() if pieces[row] == 1}
    split = {row: tags for row, tags in predicted.items() if pieces[row] > 1}
    examples = _examples(part, whole)
    split = {row: tags for found in workers.gather(split) for row, tags in found.items()}
    examples = [example for found in workers.gather(examples) for example in found]
    documents: dict[int, list[int]] = {}
    for row in sorted(split):
        documents.setdefault(int(document_of[row]), []).append(row)
    groups = [[row] for row in sorted(whole)] + workers.mine(list(documents.values()))
    tags = {**whole, **split}
    gold = [np.concatenate([gold_tags(part, row) for row in group]) for group in groups]
    found = [np.concatenate([tags[row] for row in group]) for group in groups]
    offsets = np.cumsum([0, *map(len, gold)])
    empty = np.zeros(0, dtype=np.int16)
    counts = count_entities(np.concatenate([empty, *gold]), np.concatenate([empty, *found]), offsets, types)
    return counts, [(row, tags) for _, row, tags in _first(examples)]


def _examples(part: EncodedSplit, predicted: dict[int, np.ndarray]) -> list[tuple[bool, int, np.ndarray]]:
    """(correct, row, tags) of the first rows with a mistake, and of the first rows without one that have an entity."""
    found = []
    for row, tags in predicted.items():
        gold = gold_tags(part, row)
        right = np.array_equal(gold, tags)
        if not right or gold.any():
            found.append((right, row, tags))
    return _first(found)


def _first(examples: list[tuple[bool, int, np.ndarray]]) -> list[tuple[bool, int, np.ndarray]]:
    """The first examples by row number; choosing from the choices of all ranks gives the same ones."""
    examples = sorted(examples, key=lambda example: example[1])
    wrong, right = ([e for e in examples if e[0] is which] for which in (False, True))
    return wrong[:WRONG] + right[:RIGHT]
