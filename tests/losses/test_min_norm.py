"""The small quadratic programme against scipy and against enumeration of its faces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dtrain.losses.min_norm import min_norm_weights


def by_enumeration(gram: np.ndarray, limit: float) -> float:
    """The least 1/2 w' G w over all ways to hold weights at 0 or at the limit; its own method, slow and plain."""
    count = len(gram)
    best = np.inf
    for held in itertools.product((0.0, limit, None), repeat=count):
        free = [i for i, value in enumerate(held) if value is None]
        weights = np.array([0.0 if value is None else value for value in held])
        rest = 1 - weights.sum()
        if free:
            system = np.ones((len(free) + 1, len(free) + 1))
            system[:-1, :-1] = gram[np.ix_(free, free)]
            system[-1, -1] = 0
            right = np.append(-gram[free] @ weights, rest)
            weights[free] = np.linalg.lstsq(system, right, rcond=None)[0][:-1]
        if abs(weights.sum() - 1) < 1e-9 and weights.min() > -1e-9 and weights.max() < limit + 1e-9:
            best = min(best, 0.5 * weights @ gram @ weights)
    return best


def grams(rows: int, count: int, width: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors[0, 1] = vectors[0, 0]  # two that agree
    vectors[1] = vectors[1, :1]  # all the same
    vectors[2] = 0.0
    vectors[3, 0] *= 1e4
    vectors[4, -1] = -vectors[4, 0]  # two that cancel
    return vectors @ vectors.mT


@pytest.mark.parametrize(("count", "limit"), [(2, 1.0), (2, 0.6), (3, 1.0), (3, 0.4), (4, 0.5), (4, 0.25), (5, 0.3)])
def test_as_good_as_the_best_face(count: int, limit: float) -> None:
    gram = grams(40, count, 3, seed=count)
    weights = min_norm_weights(gram, limit)
    torch.testing.assert_close(weights.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-7)
    assert (weights >= -1e-12).all() and (weights <= limit + 1e-9).all()
    reached = 0.5 * torch.einsum("bi,bij,bj->b", weights, gram, weights)
    for row, value in enumerate(reached.tolist()):
        scale = float(gram[row].diagonal().mean()) or 1.0
        best = by_enumeration(gram[row].numpy() / scale, limit)
        assert value / scale == pytest.approx(best, rel=1e-6, abs=1e-7)


def test_against_scipy_for_eight() -> None:
    gram = grams(12, 8, 12, seed=8)
    weights = min_norm_weights(gram, 0.3)
    for row in range(5, 12):
        one = gram[row].numpy()
        found = minimize(
            lambda w, g=one: 0.5 * w @ g @ w,
            np.full(8, 1 / 8),
            jac=lambda w, g=one: g @ w,
            bounds=[(0, 0.3)] * 8,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(weights[row], found.x, atol=1e-5)


def test_many_random_rows_end_at_their_best_point() -> None:
    """By the optimality conditions: on the free weights the slope is one number, at 0 it is more, at the limit less."""
    for count, limit in ((3, 1.0), (3, 0.5), (6, 1.0), (8, 1.0), (8, 0.2)):
        gram = grams(3000, count, 4, seed=count)[5:]
        weights = min_norm_weights(gram, limit)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)
        slope = torch.einsum("bij,bj->bi", gram, weights) / scale[:, None]
        lowest_up = torch.where(weights < limit - 1e-7, slope, torch.inf).amin(1)  # of those that could grow
        highest_down = torch.where(weights > 1e-7, slope, -torch.inf).amax(1)  # of those that could shrink
        assert (lowest_up - highest_down).min() > -1e-7


def test_equal_vectors_count_alike() -> None:
    for count in (1, 2, 4):
        equal = torch.full((count, count), 2.0)[None]
        torch.testing.assert_close(min_norm_weights(equal)[0], torch.full((count,), 1 / count, dtype=torch.float64))
        torch.testing.assert_close(min_norm_weights(0 * equal)[0], torch.full((count,), 1 / count, dtype=torch.float64))


def test_two_by_hand() -> None:
    # (2, 0) and (0, 1): w on the first, 2w = g.(difference) -> |(2w, 1 - w)|^2 is least at w = 1/5
    gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(min_norm_weights(gram), torch.tensor([[0.2, 0.8]], dtype=torch.float64))
    torch.testing.assert_close(min_norm_weights(gram, 0.7), torch.tensor([[0.3, 0.7]], dtype=torch.float64))


def test_a_limit_that_no_weights_can_keep() -> None:
    with pytest.raises(ValueError, match="weights of 2 teachers cannot sum to 1 when none exceeds 0.4"):
        min_norm_weights(torch.eye(2)[None], 0.4)
