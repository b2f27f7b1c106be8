"""What pre-training does with a batch of packed rows or pairs: mask, score, count."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data import share_of
from dtrain.distributed import World
from dtrain.pretraining.masking import OTHER, PIECE_START, SECOND, Masker
from dtrain.pretraining.packing import PackedRows
from dtrain.pretraining.pairs import PairedRows
from dtrain.training.inference import in_threads
from dtrain.training.precision import autocast

Rows = PackedRows | PairedRows
HELD_OUT_EPOCH = 2**32  # masks of held-out rows are no epoch's, and the same at every evaluation
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class MaskedBatch:
    """Rows as the model reads them, and what it is asked."""

    input_ids: Tensor  # int64 [B, L]
    places: Tensor  # int64 [M], in the flattened [B · L]
    labels: Tensor  # int64 [M]
    pieces: Tensor | None = None  # int64 [B, L]; only where documents are kept apart
    segments: Tensor | None = None  # int64 [B, L], 0 for A and 1 for B; only of pairs
    other: Tensor | None = None  # int64 [B], 0 where B follows A and 1 where it does not; only of pairs

    def to(self, device: torch.device) -> MaskedBatch:
        given = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return MaskedBatch(**{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()})


class MaskedRows:
    """Packed rows or pairs with the masks of one epoch after another.

    Attributes:
        units: int64 [N], how many tokens of a row are to be predicted; of the rows of the batch under way. Of pairs 1:
            their loss has two means, one over tokens and one over rows, and is summed up as the latter.
    """

    def __init__(self, rows: Rows, masker: Masker, world: World, *, separate: bool) -> None:
        self.rows, self.masker, self.world, self.separate = rows, masker, world, separate
        self.units = np.zeros(len(rows), dtype=np.int64)
        self._place = np.full(len(rows), -1, dtype=np.int64)  # of a row in `_chosen`
        self._mine = np.zeros(0, dtype=np.int64)  # rows of `_chosen`
        self._chosen = np.zeros((0, rows.length), dtype=bool)
        self._epoch = 0
        self._tokens_a_row = 1.0  # to be predicted in the batch under way, over all ranks

    def begin_step(self, batch: np.ndarray, epoch: int, step: int) -> None:
        """Draw the masks of this rank's share of a global batch, and count with the others (*together*).

        The draw comes first: on a GPU it is done while the last step is still at work there.
        """
        world, self._epoch = self.world, epoch
        self._place[self._mine] = -1
        self._mine = np.concatenate(share_of(batch, world.rank, world.size, 1, step))
        self._place[self._mine] = np.arange(len(self._mine))
        self._chosen = self.masker.choose(self.rows.take(self._mine, epoch)[1], self._mine, epoch)
        self.units[batch] = 0
        self.units[self._mine] = self._chosen.sum(axis=1)
        self.units[batch] = world.sum(torch.from_numpy(self.units[batch])).numpy()
        if not self.units[batch].any():
            self.units[batch[0]] = 1  # a batch in which nothing can be masked has a loss of 0
        if self.rows.paired:
            self._tokens_a_row = float(self.units[batch].sum()) / len(batch)
            self.units[batch] = 1

    def batch(self, index: np.ndarray) -> MaskedBatch:
        """Rows at `index` [B] of the epoch under way, masked."""
        tokens, kinds = self.rows.take(index, self._epoch)
        place = self._place[index]
        # A rank without rows borrows one to take part.
        chosen = self._chosen[place] if (place >= 0).all() else self.masker.choose(kinds, index, self._epoch)
        batch = masked_batch(self.masker, tokens, kinds, chosen, index, self._epoch, separate=self.separate)
        return with_pairs(batch, kinds) if self.rows.paired else batch

    def loss(
        self, model: nn.Module, index: np.ndarray, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The cross-entropy summed over the masked tokens of these rows, and their right answers, with their count.

        Of pairs it is such that over the global batch, divided by its rows, it is the mean over masked tokens plus
        the mean over rows.
        """
        batch = self.batch(index).to(device)
        count = torch.tensor(float(len(batch.labels)), device=device)
        if batch.other is None:
            losses, right = token_losses(model, batch)
            return losses.sum(), {"accuracy": right.sum()}, {"accuracy": count}
        losses, right, next_losses, next_right = pair_losses(model, batch)
        tokens, pairs = losses.sum(), next_losses.sum()
        rows = torch.tensor(float(len(index)), device=device)
        return (
            tokens / self._tokens_a_row + pairs,
            {
                "accuracy": right.sum(),
                "masked_loss": tokens.detach(),
                "next_sentence_loss": pairs.detach(),
                "next_sentence_accuracy": next_right.sum(),
            },
            {"accuracy": count, "masked_loss": count, "next_sentence_loss": rows, "next_sentence_accuracy": rows},
        )


def masked_batch(
    masker: Masker,
    tokens: np.ndarray,
    kinds: np.ndarray,
    chosen: np.ndarray,
    index: np.ndarray,
    epoch: int,
    *,
    separate: bool,
) -> MaskedBatch:
    """Rows [B, L] with their chosen tokens replaced and asked for."""
    places = np.flatnonzero(chosen)
    pieces = torch.from_numpy(np.cumsum(kinds == PIECE_START, axis=1)) if separate else None
    return MaskedBatch(
        input_ids=torch.from_numpy(masker.replace(tokens, chosen, index, epoch)),
        places=torch.from_numpy(places),
        labels=torch.from_numpy(tokens.reshape(-1)[places].astype(np.int64)),
        pieces=pieces,
    )


def with_pairs(batch: MaskedBatch, kinds: np.ndarray) -> MaskedBatch:
    """Rows [B, L] that are pairs, with their texts told apart, and whether the second follows the first asked for."""
    segments = torch.from_numpy(((kinds & SECOND) > 0).astype(np.int64))
    return replace(batch, segments=segments, other=torch.from_numpy(((kinds[:, 0] & OTHER) > 0).astype(np.int64)))


def token_losses(model: nn.Module, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy and whether the answer is right, of each masked token; [M] each, at least float32."""
    return _answered(model(batch.input_ids, batch.places, batch.pieces), batch.labels)


def pair_losses(model: nn.Module, batch: MaskedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `token_losses`, and the same of each row's next sentence, [B]."""
    assert batch.other is not None
    scores, follows = model(batch.input_ids, batch.places, batch.segments)
    return *_answered(scores, batch.labels), *_answered(follows, batch.other)


def _answered(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    losses = functional.cross_entropy(scores, labels, reduction="none")
    return losses, (scores.detach().argmax(dim=1) == labels).to(losses.dtype)


def evaluate(
    model: nn.Module, rows: Rows, masker: Masker, world: World, *, precision: str, separate: bool
) -> dict[str, float]:
    """`loss` and `accuracy` over the masked tokens of held-out rows, `perplexity`, `tokens`; equal for any world size.

    Of pairs also `next_sentence_loss` and `next_sentence_accuracy` over rows, and `masked_loss`; `loss` then is the sum
    of both losses.

    Every rank takes its share of fixed batches; sums by row are added over ranks, and then in the order of rows.
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
            losses, right, *of_pairs = (pair_losses if rows.paired else token_losses)(model, batch.to(world.device))
        answers = torch.stack([losses, right, torch.ones_like(losses)], dim=1).double().cpu()
        row = batch.places // rows.length
        sums = torch.zeros(len(index), 3, dtype=torch.float64).index_add_(0, row, answers)
        return index, torch.cat([sums, *(values.double().cpu()[:, None] for values in of_pairs)], dim=1)

    # Loss, right answers, tokens; of pairs also next sentence's loss and right answer.
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
