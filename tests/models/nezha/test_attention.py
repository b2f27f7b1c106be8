"""The forms of relative attention against the formula itself, in float64 and written out pair by pair."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.models.nezha import banded
from dtrain.models.nezha.attention import (
    RelativePositions,
    doubled_head_attention,
    eager_attention,
    relative_attention,
    turned_attention,
)

FORMS = {
    "eager": lambda *args: eager_attention(*args)[0],
    "doubled": doubled_head_attention,
    "turned": turned_attention,
    "banded": lambda q, k, v, positions, keep=None, dropout=0.0: banded.banded_attention(
        q, k, v, positions.table.to(q.dtype), keep, dropout
    ),
}
HEAD = 8


def draw(length: int, dtype: torch.dtype = torch.float64, batch: int = 2, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(batch, heads, length, HEAD, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


def positions_for(length: int, reach: int, dtype: torch.dtype = torch.float64) -> RelativePositions:
    return RelativePositions.build(length, head_size=HEAD, max_distance=reach, device=torch.device("cpu"), dtype=dtype)


def by_the_paper(q: np.ndarray, k: np.ndarray, v: np.ndarray, reach: int, keep: np.ndarray) -> np.ndarray:
    """arXiv 1909.00204, equations 2 to 5, for one head: [L, d] each, keep [L]."""

    @functools.cache
    def relation(distance: int) -> np.ndarray:
        place = max(-reach, min(reach, distance)) + reach
        values = np.empty(HEAD)
        for pair in range(HEAD // 2):
            values[2 * pair] = math.sin(place / 10000 ** (2 * pair / HEAD))
            values[2 * pair + 1] = math.cos(place / 10000 ** (2 * pair / HEAD))
        return values

    output = np.empty_like(q)
    for i in range(len(q)):
        seen = [j for j in range(len(q)) if keep[j]]
        scores = np.array([q[i] @ (k[j] + relation(j - i)) / math.sqrt(HEAD) for j in seen])
        weights = np.exp(scores - scores.max())
        output[i] = sum(w * (v[j] + relation(j - i)) for w, j in zip(weights / weights.sum(), seen, strict=True))
    return output


def cases() -> list[tuple[str, int, int]]:
    found = []
    for length, reach in [(1, 3), (1, 64), (4, 3), (5, 3), (30, 64), (65, 64), (70, 64), (70, 3), (20, 1)]:
        short = ["doubled", "turned"] if length <= reach + 1 else []
        found += [(form, length, reach) for form in ["eager", "banded", *short]]
    return found


@pytest.mark.parametrize(("form", "length", "reach"), cases())
@pytest.mark.parametrize("padded", [False, True])
def test_every_form_is_the_formula(form: str, length: int, reach: int, padded: bool) -> None:
    q, k, v = draw(length)
    keep = torch.ones(2, 1, 1, length, dtype=torch.bool)
    if padded:
        keep[0, ..., (length + 1) // 2 :] = False
        keep[1, ..., : length // 3] = False
    found = FORMS[form](q, k, v, positions_for(length, reach), keep if padded else None)
    for b in range(2):
        for h in range(2):
            wanted = by_the_paper(*(x[b, h].numpy() for x in (q, k, v)), reach, keep[b, 0, 0].numpy())
            assert np.abs(found[b, h].numpy() - wanted).max() < 1e-12


@pytest.mark.parametrize("length", [1, 7, 64, 65, 66, 130, 512])
@pytest.mark.parametrize("reach", [64, 3])
def test_float32_against_float64(length: int, reach: int) -> None:
    precise, rounded = draw(length), draw(length, torch.float32)
    wanted = eager_attention(*precise, positions_for(length, reach))[0]
    positions = positions_for(length, reach, torch.float32)
    assert (eager_attention(*rounded, positions)[0] - wanted).abs().max() < 1e-5
    assert (relative_attention(*rounded, positions) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("keep_up_to", [0, 256], ids=["computed again", "kept"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("length", "reach", "rows"), [(11, 3, 4), (9, 1, 2), (6, 5, 4), (7, 2, 512)])
def test_banded_gradients(
    monkeypatch: pytest.MonkeyPatch, keep_up_to: int, dropout: float, length: int, reach: int, rows: int
) -> None:
    """Against finite differences, over blocks with both corners, one, and none."""
    monkeypatch.setattr(banded, "KEEP_WEIGHTS_UP_TO", keep_up_to)
    monkeypatch.setattr(banded, "ROWS_ON_CPU", rows)
    inputs = [x.requires_grad_() for x in draw(length, batch=1)]
    keep = torch.ones(1, 1, length, length, dtype=torch.bool).tril(length // 2)
    positions = positions_for(length, reach)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return FORMS["banded"](q, k, v, positions, keep, dropout)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("form", ["banded", "turned", "doubled", "eager"])
def test_dropout_keeps_the_mean(form: str) -> None:
    torch.manual_seed(0)
    inputs, positions = draw(4, torch.float32, batch=1), positions_for(4, 3)
    repeated = [x.expand(8000, -1, -1, -1) for x in inputs]
    dropped = FORMS[form](*repeated, positions, None, 0.3)
    wanted = FORMS[form](*inputs, positions, None, 0.0)
    assert dropped.std(0).min() > 0.01
    assert (dropped.mean(0) - wanted[0]).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "length"), [("banded", 80), ("turned", 40), ("doubled", 40), ("eager", 80)])
def test_half_precision(form: str, length: int, dtype: torch.dtype) -> None:
    """Near, and finite even where a query may see nothing."""
    precise = draw(length)
    keep = torch.ones(2, 1, 1, length, dtype=torch.bool)
    keep[1] = False
    positions = positions_for(length, 64, torch.float32)
    found = FORMS[form](*(x.to(dtype) for x in precise), positions, keep)
    assert found.dtype == dtype and found.isfinite().all()
    wanted = FORMS[form](*precise, positions_for(length, 64), keep)
    assert (found - wanted)[0].abs().max() < {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]


def test_which_form_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from dtrain.models.nezha import attention

    taken: list[str] = []
    for name in ("banded_attention", "turned_attention", "doubled_head_attention"):
        monkeypatch.setattr(attention, name, lambda *args, name=name: taken.append(name))
    for length in (65, 66):
        relative_attention(*draw(length), positions_for(length, 64))
    assert taken == ["turned_attention", "banded_attention"]
