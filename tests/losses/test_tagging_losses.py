"""Losses on taggers' outputs against numbers worked out by hand, and their gradients."""

from __future__ import annotations

import math

import torch

from dtrain.losses.tagging import emission_regression, marginal_matching, tag_likelihood

MASK = torch.tensor([[True, True], [True, False]])


def test_emission_regression_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [3.0, 1.0]], [[5.0, 3.0], [0.0, 0.0]]])
    # differences 1, 0 -> 0.5, -0.5; -3, -1 -> -1, 1; -3, -3 -> 0, 0 (a constant carries nothing)
    expected = torch.tensor([0.5 + 2.0, 0.0])
    torch.testing.assert_close(emission_regression(student, MASK, teacher), expected)
    both = torch.stack([teacher, student])  # the mean halves every difference
    torch.testing.assert_close(emission_regression(student, MASK, both), expected / 4)


def test_marginal_matching_by_hand() -> None:
    student = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 1.0], [1.0, 1.0]]]).log()
    student[1, 0] = torch.tensor([0.0, -1e4])
    teacher = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    first = math.log(2) + 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    values = marginal_matching(student, MASK, teacher)
    torch.testing.assert_close(values, torch.tensor([first, 0.0]))
    other = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    mixed = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # the mean target of character 0 is the student's
    torch.testing.assert_close(
        marginal_matching(student, MASK, torch.stack([teacher, other])), torch.tensor([mixed, 0.0])
    )


def test_padding_gives_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    for loss in (emission_regression, marginal_matching):
        student = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        teacher = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64).softmax(-1)
        loss(student, MASK, teacher).sum().backward()
        assert student.grad is not None and not student.grad[1, 1].any() and student.grad[1, 0].any()


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(lambda z: emission_regression(z, MASK, teacher), student)
    assert torch.autograd.gradcheck(lambda z: marginal_matching(z.log_softmax(-1), MASK, teacher), student)


def test_half_precision_is_computed_in_float32() -> None:
    half = torch.full((1, 1, 2), 300.0, dtype=torch.float16)
    values = emission_regression(half * torch.tensor([1.0, -1.0]).half(), MASK[:1, :1], half)
    assert values.dtype == torch.float32 and values.item() == 2 * 300.0**2
    assert tag_likelihood(torch.ones(2).half()).dtype == torch.float32
