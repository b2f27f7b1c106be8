"""Masked language modelling as a task: batches, losses and scores of pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data.batch import Batch
from dtrain.engines.precision import autocast
from dtrain.losses.objective import Losses
from dtrain.runtime.distributed import World
from dtrain.tasks.masked_lm.masking import Masker
from dtrain.tasks.masked_lm.rows import HELD_OUT_EPOCH, MaskedRows, Rows, masked_batch, with_pairs
from dtrain.training.inference import in_threads

BATCH_TOKENS = 8192


class MaskedLosses(nn.Module):
    """The cross-entropy summed over the masked tokens of a batch, and the number of correct predictions.

    For pairs the sum is scaled so that, summed over the global batch and divided by its number of rows, it is the mean
    cross-entropy over masked tokens plus the mean cross-entropy of next-sentence prediction over rows.
    """

    needs: set[str] = set()

    def forward(
        self,
        known: Mapping[str, Tensor],
        teachers: Any,
        labelled: Tensor,
        units: Tensor | None = None,
        *,
        progress: float = 0.0,
        peers: Any = None,
    ) -> Losses:
        """Called as `LossSum` is, with the scores of `MaskedLanguageModel.outputs` and the batch's targets."""
        count = known["labels"].new_full((), len(known["labels"]), dtype=torch.float32)  # does not wait for the device
        losses, right = answered(known["scores"], known["labels"])
        if "other" not in known:
            return losses.sum(), {"accuracy": right.sum()}, {"accuracy": count}
        next_losses, next_right = answered(known["follows"], known["other"])
        tokens, pairs = losses.sum(), next_losses.sum()
        rows = count.new_full((), len(known["other"]))
        return (
            tokens / known["tokens_a_row"].to(tokens.dtype) + pairs,
            {
                "accuracy": right.sum(),
                "masked_loss": tokens.detach(),
                "next_sentence_loss": pairs.detach(),
                "next_sentence_accuracy": next_right.sum(),
            },
            {"accuracy": count, "masked_loss": count, "next_sentence_loss": rows, "next_sentence_accuracy": rows},
        )


class MaskedLanguageModel:
    """The task of training an encoder on plain text.

    Args:
        masker: draws the masks as a function of (seed, epoch, row).
        separate: whether a token attends to the tokens of its own document only.
    """

    name = "masked_lm"
    card_tag = "fill-mask"

    def __init__(self, masker: Masker, *, separate: bool) -> None:
        self.masker, self.separate = masker, separate

    def collate(self, rows: MaskedRows, index: np.ndarray) -> Batch:
        """The rows at positions `index` [B] of the current step, masked, on the CPU."""
        found = rows.batch(index)
        targets = {"labels": found.labels}
        if found.other is not None:
            targets |= {"other": found.other, "tokens_a_row": torch.tensor(rows.tokens_a_row, dtype=torch.float64)}
        units = torch.from_numpy(rows.units[index])
        return Batch(index, index, found.inputs, targets, torch.ones(len(index), dtype=torch.bool), units)

    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        """`scores`: logits over the vocabulary at masked positions, [M, V]; for pairs also `follows`, logits [B, 2]."""
        found = model(**batch.inputs)
        return {"scores": found} if isinstance(found, Tensor) else dict(zip(("scores", "follows"), found, strict=True))

    def scores(self, model: nn.Module, rows: Rows, world: World, *, precision: str) -> dict[str, float]:
        """`loss` and `accuracy` over the masked tokens of held-out rows, `perplexity`, `tokens`; see `evaluate`."""
        return evaluate(model, rows, self.masker, world, precision=precision, separate=self.separate)

    def headline(self, scores: Mapping[str, float]) -> str:
        """The most important scores as a short text."""
        told = f"accuracy {scores['accuracy']:.4f}, perplexity {scores['perplexity']:.2f}"
        if "next_sentence_accuracy" in scores:
            told += f", next sentence {scores['next_sentence_accuracy']:.4f} (loss {scores['next_sentence_loss']:.4f})"
        return told


def answered(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of logits [M, C] in float32 at least, and 1 where the prediction is right, else 0; both [M]."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    losses = functional.cross_entropy(scores, labels, reduction="none")
    return losses, (scores.detach().argmax(dim=1) == labels).to(losses.dtype)


def evaluate(
    model: nn.Module, rows: Rows, masker: Masker, world: World, *, precision: str, separate: bool
) -> dict[str, float]:
    """`loss` and `accuracy` over the masked tokens of held-out rows, `perplexity`, `tokens`; equal for any world size.

    For pairs also `next_sentence_loss` and `next_sentence_accuracy` over rows, and `masked_loss`; `loss` is then the
    sum of both losses.

    Batches are fixed and shared among ranks. Sums for each row are added over ranks, and then in the order of rows.
    """
    size = max(1, BATCH_TOKENS // rows.length)
    everything = np.arange(len(rows))
    batches = [everything[start : start + size] for start in range(0, len(rows), size)]
    mine = batches[world.rank :: world.size]
    model.to(world.device).eval()

    def work(index: np.ndarray) -> tuple[np.ndarray, Tensor]:
        tokens, kinds = rows.take(index, HELD_OUT_EPOCH)
        chosen = masker.choose(kinds, index, HELD_OUT_EPOCH)
        batch = masked_batch(masker, tokens, kinds, chosen, index, HELD_OUT_EPOCH, separate=separate)
        if rows.paired:
            batch = with_pairs(batch, kinds)
        with torch.inference_mode(), autocast(precision, world.device):
            here = batch.to(world.device)
            found = model(**here.inputs)
            losses, right = answered(found[0] if rows.paired else found, here.labels)
            of_pairs = answered(found[1], here.other) if here.other is not None else ()
        answers = torch.stack([losses, right, torch.ones_like(losses)], dim=1).double().cpu()
        row = batch.places // rows.length
        sums = torch.zeros(len(index), 3, dtype=torch.float64).index_add_(0, row, answers)
        return index, torch.cat([sums, *(values.double().cpu()[:, None] for values in of_pairs)], dim=1)

    # Loss, correct predictions, tokens; for pairs also loss and correctness of next-sentence prediction.
    by_row = torch.zeros(len(rows), 5 if rows.paired else 3, dtype=torch.float64)
    for index, sums in in_threads(work, mine, world.threads if world.device.type == "cpu" else 1):
        by_row[torch.from_numpy(index)] = sums
    loss, right, tokens, *of_pairs = world.sum(by_row).sum(dim=0).tolist()
    mean = loss / max(tokens, 1.0)
    perplexity = math.exp(min(mean, 700.0)) if math.isfinite(mean) else mean
    scores = {"loss": mean, "accuracy": right / max(tokens, 1.0), "perplexity": perplexity, "tokens": tokens}
    if rows.paired:
        next_loss, next_accuracy = (value / len(rows) for value in of_pairs)
        scores |= {"masked_loss": mean, "next_sentence_loss": next_loss, "next_sentence_accuracy": next_accuracy}
        scores["loss"] += next_loss
    return scores
