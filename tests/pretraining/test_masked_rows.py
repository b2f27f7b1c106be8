"""Masked rows of a step: the same batch and count for any number of ranks, micro-batches and restarts; and the scores."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain.data import share_of
from dtrain.recipe.corpus import MaskingSpec
from dtrain.tasks.masked_lm.masking import MASKABLE, WORD_START, Masker
from dtrain.tasks.masked_lm.packing import PackedRows, write_rows
from dtrain.tasks.masked_lm.rows import MaskedRows
from dtrain.tasks.masked_lm.task import evaluate
from tests.pretraining.conftest import loss_of

LENGTH = 16


def world(rank: int = 0, size: int = 1, sums: dict[int, torch.Tensor] | None = None) -> Any:
    """One rank; `sum` gives what is put into `sums`, or adds nothing."""
    device = torch.device("cpu")
    return SimpleNamespace(rank=rank, size=size, device=device, threads=1, sum=lambda t: sums[0] if sums else t)


@pytest.fixture
def rows(tmp_path: Path) -> PackedRows:
    random = np.random.default_rng(0)
    tokens = random.integers(5, 60, (40, LENGTH)).astype(np.int32)
    kinds = np.full((40, LENGTH), MASKABLE, np.uint8)
    kinds[random.random(kinds.shape) < 0.6] |= WORD_START
    kinds[:, 0] = 0
    kinds[:, 1] |= WORD_START
    write_rows([(tokens[:25], kinds[:25]), (tokens[25:], kinds[25:])], LENGTH, tmp_path / "rows")
    return PackedRows.open(tmp_path / "rows")


def masker() -> Masker:
    return Masker(MaskingSpec(), 7, 4, np.arange(5, 60))


class Answers(torch.nn.Module):
    """Scores that follow from the token read alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(60, 60, generator=torch.Generator().manual_seed(1)))

    def forward(
        self, input_ids: torch.Tensor, places: torch.Tensor, pieces: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.table[input_ids.flatten()[places]]


@pytest.mark.parametrize("size", [2, 3, 7])
def test_ranks_together_have_the_loss_and_count_of_one(rows: PackedRows, size: int) -> None:
    batch, epoch, step = np.array([3, 39, 26, 0, 17]), 2, 4
    alone = MaskedRows(rows, masker(), world(), separate=False)
    alone.begin_step(batch, epoch, step)
    model = Answers()
    whole, right, count = (_first(value) for value in loss_of(alone, model, batch))
    assert alone.units[batch].sum() == count > 0

    # What the ranks' all-reduce would add up.
    parts = []
    for rank in range(size):
        one = MaskedRows(rows, masker(), world(rank, size), separate=False)
        one.begin_step(batch, epoch, step)
        parts.append(torch.from_numpy(one.units[batch].copy()))
    if size <= len(batch):
        assert torch.equal(sum(parts), torch.from_numpy(alone.units[batch]))
    losses, rights = [], []
    for rank in range(size):
        mine = MaskedRows(rows, masker(), world(rank, size, {0: sum(parts)}), separate=False)
        mine.begin_step(batch, epoch, step)
        assert size > len(batch) or np.array_equal(mine.units[batch], alone.units[batch])
        for share in share_of(batch, rank, size, 2, step):
            # An empty share is replaced by the first row, and counts nothing; it must be answered all the same.
            loss, part, _ = (_first(v) for v in loss_of(mine, model, share if len(share) else batch[:1]))
            losses.append(loss * bool(len(share)))
            rights.append(part * bool(len(share)))
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-6)
    assert sum(rights) == right


def _first(value: Any) -> Any:
    return value["accuracy"] if isinstance(value, dict) else value


def test_a_pass_before_the_first_step_is_answered(rows: PackedRows) -> None:
    loss, _, _ = loss_of(MaskedRows(rows, masker(), world(), separate=False), Answers(), np.array([5]))
    assert torch.isfinite(loss)


def test_a_batch_in_which_nothing_can_be_masked_has_no_loss(tmp_path: Path) -> None:
    write_rows([(np.full((2, LENGTH), 9, np.int32), np.zeros((2, LENGTH), np.uint8))], LENGTH, tmp_path / "rows")
    task = MaskedRows(PackedRows.open(tmp_path / "rows"), masker(), world(), separate=False)
    task.begin_step(np.array([0, 1]), 0, 0)
    assert task.units.sum() == 1
    loss, _, _ = loss_of(task, Answers(), np.array([0, 1]))
    loss.backward()
    assert loss == 0


def test_scores_are_means_over_masked_tokens_by_hand(rows: PackedRows) -> None:
    model = Answers()
    found = evaluate(model, rows, masker(), world(), precision="fp32", separate=False)
    tokens, kinds = rows.take(np.arange(40))
    chosen = masker().choose(kinds, np.arange(40), 2**32)
    read = masker().replace(tokens, chosen, np.arange(40), 2**32)
    scores = model.table.detach()[torch.from_numpy(read[chosen])]
    gold = torch.from_numpy(tokens[chosen].astype(np.int64))
    loss = functional.cross_entropy(scores.double(), gold).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["accuracy"] == pytest.approx((scores.argmax(1) == gold).double().mean().item())
    assert found["tokens"] == chosen.sum()
