"""Losses on outputs: hand-worked numbers, numpy in float64 and torch's own functions as references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dtrain.losses.outputs import (
    cosine,
    cross_entropy,
    logit_regression,
    reverse_soft_targets,
    soft_targets,
    teacher_annealing,
    top_gap,
)
from dtrain.losses.weighting import entropy_weights


def np_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 4, generator=generator), 3 * torch.randn(2, 5, 4, generator=generator)


def test_cross_entropy_by_hand() -> None:
    # softmax([0, ln 3]) = [1/4, 3/4]
    student = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    labels = torch.tensor([1, 0])
    torch.testing.assert_close(
        cross_entropy(student, labels), torch.tensor([math.log(4 / 3), math.log(4)]), rtol=1e-6, atol=0
    )
    # q = [0.1, 0.9] for the first row, [0.9, 0.1] for the second
    smoothed = torch.tensor([0.1 * math.log(4) + 0.9 * math.log(4 / 3), 0.9 * math.log(4) + 0.1 * math.log(4 / 3)])
    torch.testing.assert_close(cross_entropy(student, labels, label_smoothing=0.2), smoothed)


def test_soft_targets_by_hand() -> None:
    # At T = 2 the teacher's [0, 2 ln 3] softens to [1/4, 3/4]; the student is uniform.
    # KL = 1/4 ln(1/2) + 3/4 ln(3/2), times T^2 = 4: ln(1/2) + 3 ln(3/2) = ln(27/16)
    student = torch.zeros(1, 2)
    teacher = torch.tensor([[0.0, 2 * math.log(3)]])
    assert soft_targets(student, teacher, temperature=2.0).item() == pytest.approx(math.log(27 / 16), rel=1e-6)


def test_soft_targets_of_two_teachers_by_hand() -> None:
    # [1/4, 3/4] and [3/4, 1/4] have the mean [1/2, 1/2]: a uniform student is perfect. The mean of the two
    # losses would be ln 2 - H(1/4) > 0.
    teachers = torch.tensor([[[0.0, math.log(3)]], [[math.log(3), 0.0]]])
    assert soft_targets(torch.zeros(1, 2), teachers, temperature=1.0).item() == pytest.approx(0.0, abs=1e-7)
    student = torch.tensor([[0.0, math.log(3)]])  # KL([1/2, 1/2] || [1/4, 3/4]) = ln(2 / sqrt 3)
    assert soft_targets(student, teachers, temperature=1.0).item() == pytest.approx(
        math.log(2 / math.sqrt(3)), rel=1e-6
    )


def test_logit_regression_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0]])
    assert logit_regression(student, torch.tensor([[0.0, 4.0, 1.0]])).tolist() == [1 + 4 + 4]
    teachers = torch.tensor([[[0.0, 4.0, 1.0]], [[4.0, 0.0, 1.0]]])  # mean [2, 2, 1]
    assert logit_regression(student, teachers).tolist() == [1 + 0 + 4]


def test_what_has_probability_0_counts_nothing() -> None:
    """0 log 0 is 0, in the divergence and in its gradient."""
    p = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.0, 0.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    value = reverse_soft_targets(p, q, temperature=1.0)
    torch.testing.assert_close(value, reverse_soft_targets(p[:, :2], q[:, :2], temperature=1.0))
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert gradient.isfinite().all()
    assert entropy_weights(torch.stack([p, q])).tolist() == [[0.5], [0.5]]


def test_reverse_soft_targets_by_hand() -> None:
    # The uniform student against [1/4, 3/4] at T = 2: 4 (1/2 ln 2 + 1/2 ln(2/3)) = 2 ln(4/3)
    student = torch.zeros(1, 2)
    teacher = torch.tensor([[0.0, 2 * math.log(3)]])
    assert reverse_soft_targets(student, teacher).item() == pytest.approx(2 * math.log(4 / 3), rel=1e-6)
    # Of [1/4, 3/4] and [3/4, 1/4] the mean is uniform.
    teachers = torch.stack([teacher, teacher.flip(-1)])
    assert reverse_soft_targets(student, teachers).item() == pytest.approx(0.0, abs=1e-6)


def test_reverse_is_forward_with_the_roles_swapped(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, (teacher, _) = logits
    torch.testing.assert_close(
        reverse_soft_targets(student, teacher, temperature=3.0), soft_targets(teacher, student, temperature=3.0)
    )


def test_cosine_by_hand() -> None:
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    torch.testing.assert_close(cosine(student, teacher), torch.tensor([1 - 24 / 25, 2.0]))
    torch.testing.assert_close(cosine(student, torch.stack([teacher, 2 * student - teacher])), torch.zeros(2))


def test_teacher_annealing_by_hand() -> None:
    # The student says [1/4, 3/4], the teacher [3/4, 1/4], the label is class 1.
    student = torch.tensor([[0.0, math.log(3)]]).repeat(2, 1)
    teacher, labels = student.flip(-1), torch.tensor([1, 0])
    labelled = torch.tensor([True, False])
    low, high = math.log(4 / 3), math.log(4)  # -log 3/4, -log 1/4
    soft = 0.75 * high + 0.25 * low
    for progress, until, gold in ((0.0, 1.0, 0.0), (0.25, 1.0, 0.25), (0.25, 0.5, 0.5), (0.8, 0.5, 1.0)):
        found = teacher_annealing(student, labels, labelled, teacher, progress, until=until)
        expected = [gold * low + (1 - gold) * soft, (1 - gold) * soft]
        torch.testing.assert_close(found, torch.tensor(expected))


def test_top_gap_by_hand() -> None:
    student = torch.tensor([[1.0, 9.0, 3.0, 5.0]])
    assert top_gap(student, k=2).tolist() == [4.0]
    assert top_gap(student, k=3).tolist() == [5.0]
    assert top_gap(student, k=9).tolist() == top_gap(student, k=4).tolist() == [6.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_soft_targets_against_numpy(logits: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teachers = logits
    p = np_softmax(teachers.double().numpy() / temperature).mean(0)
    q = np_softmax(student.double().numpy() / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)
    np.testing.assert_allclose(
        soft_targets(student.double(), teachers.double(), temperature=temperature), expected, rtol=1e-12
    )
    # The logarithms' differences cancel in float32, and T^2 scales what is left of their rounding.
    np.testing.assert_allclose(
        soft_targets(student, teachers, temperature=temperature),
        expected,
        rtol=1e-5,
        atol=1e-6 * temperature**2,
    )


def test_against_torch(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, (teacher, _) = logits
    labels = torch.tensor([0, 3, 1, 1, 2])
    torch.testing.assert_close(cross_entropy(student, labels).mean(), functional.cross_entropy(student, labels))
    torch.testing.assert_close(
        soft_targets(student, teacher, temperature=3.0).mean(),
        9 * functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean"),
    )
    torch.testing.assert_close(logit_regression(student, teacher).mean() / 4, functional.mse_loss(student, teacher))


def test_one_teacher_stacked_is_one_teacher(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, (teacher, _) = logits
    for loss in (soft_targets, reverse_soft_targets, logit_regression, cosine):
        assert torch.equal(loss(student, teacher), loss(student, teacher[None]))


def test_gradients(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teachers = (tensor.double() for tensor in logits)
    student.requires_grad_()
    labels = torch.tensor([0, 3, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, label_smoothing=0.1), student)
    assert torch.autograd.gradcheck(lambda z: soft_targets(z, teachers, temperature=3.0), student)
    assert torch.autograd.gradcheck(lambda z: logit_regression(z, teachers), student)
    assert torch.autograd.gradcheck(lambda z: reverse_soft_targets(z, teachers, temperature=3.0), student)
    assert torch.autograd.gradcheck(lambda z: cosine(z, teachers), student)
    assert torch.autograd.gradcheck(lambda z: top_gap(z, k=3), student)
    labelled = labels > 0
    assert torch.autograd.gradcheck(lambda z: teacher_annealing(z, labels, labelled, teachers, 0.3), student)


def test_gradient_of_soft_targets_at_high_temperature_is_that_of_regression() -> None:
    # Hinton et al., section 2.1: for zero-mean logits, T^2 dKL/dz -> (z_s - z_t) / C.
    student = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.5, 2.0, -1.5]], dtype=torch.float64)
    # dKL/dz_s = (q - p) / T, so T^2 KL has the gradient T (q - p) -> (z_s - z_t) / C.
    soft_targets(student, teacher, temperature=1e4).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_with_in_float32(
    logits: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> None:
    student, teachers = (tensor.to(dtype) for tensor in logits)
    labels = torch.tensor([0, 3, 1, 1, 2])
    calls = [
        lambda s, t: cross_entropy(s, labels, label_smoothing=0.1),
        lambda s, t: soft_targets(s, t),
        lambda s, t: logit_regression(s * 100, t),
    ]
    for call in calls:
        expected = call(student.float(), teachers.float())
        with torch.autocast("cpu", dtype):
            values = call(student.float(), teachers)
            from_half = call(student, teachers) if call is not calls[2] else values
        assert values.dtype == from_half.dtype == torch.float32
        assert torch.equal(values, expected)
        assert torch.equal(from_half, expected)


def test_float16_does_not_overflow() -> None:
    student = torch.tensor([[300.0, -300.0]], dtype=torch.float16)
    assert logit_regression(student, -student).item() == 2 * 600.0**2  # beyond float16's 65504


def test_probability_zero_is_no_nan() -> None:
    student = torch.tensor([[0.0, 1.0]], requires_grad=True)
    values = soft_targets(student, torch.tensor([[0.0, 1e4]]), temperature=1.0)
    values.sum().backward()
    assert values.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    assert student.grad is not None and student.grad.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 9), st.integers(1, 3), st.floats(0.5, 20))
def test_properties(seed: int, rows: int, classes: int, teachers: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    teacher = torch.randn(teachers, rows, classes, generator=generator, dtype=torch.float64)
    order, shuffle = torch.randperm(classes, generator=generator), torch.randperm(rows, generator=generator)
    for loss in (lambda s, t: soft_targets(s, t, temperature=temperature), logit_regression):
        values = loss(student, teacher)
        assert values.shape == (rows,)
        assert (values >= -1e-9).all()
        torch.testing.assert_close(values[shuffle], loss(student[shuffle], teacher[:, shuffle]))
        torch.testing.assert_close(values, loss(student[:, order], teacher[:, :, order]))
        torch.testing.assert_close(values, loss(student, teacher.flip(0)))
        torch.testing.assert_close(loss(student, student), torch.zeros(rows, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shape", "gold"), [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2), ("step", 0.0)]
)
def test_shapes_of_teacher_annealing_in_float64(shape: str, gold: float) -> None:
    """By hand, to the last digits: nothing in between is rounded to float32."""
    student = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)  # [1/4, 3/4]
    teacher = student.flip(-1)
    low, high = math.log(4 / 3), math.log(4)
    found = teacher_annealing(student, torch.tensor([1]), torch.tensor([True]), teacher, 0.125, until=0.5, shape=shape)
    assert found.item() == pytest.approx(gold * low + (1 - gold) * (0.75 * high + 0.25 * low), rel=1e-14)
    at_end = teacher_annealing(student, torch.tensor([1]), torch.tensor([True]), teacher, 0.5, until=0.5, shape=shape)
    assert at_end.item() == pytest.approx(low, rel=1e-14)
    odd = teacher_annealing(student, torch.tensor([1]), torch.tensor([True]), teacher, 0.3)
    assert odd.item() == pytest.approx(0.3 * low + 0.7 * (0.75 * high + 0.25 * low), rel=1e-14)
