"""Losses on what an encoder-decoder writes, against numbers worked out by hand and torch's own gradients."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor

from dtrain.data.batch import KNOWN
from dtrain.losses.objective import build_losses
from dtrain.losses.written import token_cross_entropy, word_level
from dtrain.recipe.training import LossSpec

MASK = torch.tensor([[True, True], [True, False]])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_summed_over_a_targets_tokens() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4), of (ln 4, 0) it is (4/5, 1/5).
    given = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0]], [[0.0, math.log(3)], [9.0, -9.0]]])
    tokens = torch.tensor([[1, 0], [0, 0]])
    found = token_cross_entropy(given, tokens, MASK)
    assert found.tolist() == pytest.approx([-math.log(3 / 4) - math.log(4 / 5), -math.log(1 / 4)])
    # e = 0.2: each token keeps 0.8 + 0.1 of itself and gives 0.1 to the other one.
    smooth = token_cross_entropy(given, tokens, MASK, label_smoothing=0.2)
    first = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4) - 0.9 * math.log(4 / 5) - 0.1 * math.log(1 / 5)
    assert smooth.tolist() == pytest.approx([first, -0.9 * math.log(1 / 4) - 0.1 * math.log(3 / 4)])


def test_word_level_is_a_divergence_of_each_token() -> None:
    student = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]]))
    teacher = torch.log(torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]]))
    mask, known = torch.tensor([[True, True]]), torch.tensor([True])
    by_hand = (
        0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
        + 2 * 0.1 * math.log(0.1 / 0.2) + 0.8 * math.log(0.8 / 0.6)
    )  # fmt: skip
    assert word_level(student, mask, known, teacher).item() == pytest.approx(by_hand, rel=1e-5)
    assert word_level(student, mask, ~known, teacher).item() == 0.0
    assert word_level(student, mask, known, torch.stack([teacher, student])).item() == pytest.approx(by_hand / 2)


def test_the_largest_alone_are_compared_with_the_rest_as_one() -> None:
    # Four tokens, of which the teacher's largest is stored: token 2 with 0.6, the others 0.4 together.
    student = torch.log(torch.tensor([[[0.1, 0.2, 0.5, 0.2]]], dtype=torch.float64))
    stored = torch.tensor([[[math.log(0.6), math.log(0.4), 2.0]]], dtype=torch.float64)
    found = word_level(student, torch.tensor([[True]]), torch.tensor([True]), stored)
    assert found.item() == pytest.approx(0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5))


@pytest.mark.parametrize("stored", [False, True])
def test_gradients(stored: bool) -> None:
    student = logits(2, 2, 6).requires_grad_()
    teacher = logits(2, 2, 6, seed=1)
    if stored:
        values, tokens = teacher.topk(2)
        rest = teacher.scatter(2, tokens, -torch.inf).logsumexp(2, keepdim=True)
        teacher = torch.cat([values, rest, tokens.double()], dim=2)
    known = torch.tensor([True, True])
    assert torch.autograd.gradcheck(lambda s: word_level(s, MASK, known, teacher), student)
    tokens = torch.tensor([[1, 5], [0, 0]])
    assert torch.autograd.gradcheck(lambda s: token_cross_entropy(s, tokens, MASK, label_smoothing=0.1), student)


def test_a_token_that_a_model_rules_out_counts_nothing() -> None:
    """Some models give tokens that must never be written (padding) a logit of -inf; against scipy."""
    student, teacher = logits(2, 2, 6).requires_grad_(), logits(2, 2, 6, seed=1)
    teacher[:, :, 3] = -torch.inf
    both = student.clone()
    both[:, :, 3] = -torch.inf  # as in a student that was made from the teacher
    for own in (student, both):
        value = word_level(own, MASK, torch.tensor([True, True]), teacher)
        p, q = (x.detach().softmax(2).numpy() for x in (teacher, own))
        expected = torch.from_numpy(rel_entr(p, q).sum(2)) * MASK
        torch.testing.assert_close(value, expected.sum(1))
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert gradient.isfinite().all()
    rules_out_more = word_level(both, MASK, torch.tensor([True, True]), logits(2, 2, 6, seed=1))
    assert rules_out_more.tolist() == [math.inf, math.inf]


def test_the_divergence_over_the_largest_is_at_most_that_over_all() -> None:
    student, teacher = logits(1, 3, 9), logits(1, 3, 9, seed=1)
    mask, known = torch.ones(1, 3, dtype=torch.bool), torch.tensor([True])
    whole = word_level(student, mask, known, teacher).item()
    lumped = []
    for k in (1, 2, 3):
        values, tokens = teacher.topk(k)
        rest = teacher.scatter(2, tokens, -torch.inf).logsumexp(2, keepdim=True)
        lumped.append(word_level(student, mask, known, torch.cat([values, rest, tokens.double()], dim=2)).item())
    assert 0 < lumped[0] <= lumped[1] <= lumped[2] <= whole


def test_padding_and_other_lengths_change_nothing() -> None:
    student, teacher = logits(2, 2, 6), logits(2, 2, 6, seed=1)
    known, tokens = torch.tensor([True, True]), torch.tensor([[1, 5], [3, 0]])
    wide = torch.cat([student, logits(2, 3, 6, seed=2)], dim=1)
    mask = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    more = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    assert torch.equal(word_level(wide, mask, known, teacher), word_level(student, MASK, known, teacher))
    assert torch.equal(token_cross_entropy(wide, more, mask), token_cross_entropy(student, tokens, MASK))
    longer = torch.cat([teacher, torch.zeros(2, 4, 6)], dim=1)  # as a store pads it, where another row is longest
    assert torch.equal(word_level(student, MASK, known, longer), word_level(student, MASK, known, teacher))


def test_teachers_may_know_rows_of_different_lengths() -> None:
    """A store pads to its longest row of a batch, and a teacher that reads another side may lack the longest one."""
    student, full, short = logits(2, 2, 6), logits(2, 2, 6, seed=1), logits(2, 1, 6, seed=2)
    mask, known = torch.tensor([[True, True], [True, False]]), torch.tensor([True, True])
    losses = build_losses([LossSpec(type="word_level")])
    given = {"token_logits": student, "target_mask": mask, "known_prefix": known}
    teachers = {"a": {"token_logits": full}, "b": {"token_logits": short, KNOWN: torch.tensor([False, True])}}
    total, _, counts = losses(given, teachers, torch.tensor([True, True]), mask.sum(1))
    second = [word_level(student[1:], mask[1:], known[1:], of[1:]) for of in (full, short)]
    torch.testing.assert_close(total, sum(second).sum() / 2)
    assert counts["word_level"] == 1
