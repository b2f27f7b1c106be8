"""Weights of several teachers against numbers worked out by hand, and what the weighted losses do with them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dtrain.errors import InputError
from dtrain.knowledge.top_k import largest, spread
from dtrain.losses.objective import build_losses
from dtrain.losses.outputs import logit_regression, soft_targets
from dtrain.losses.weighting import confidence_weights, entropy_weights, fixed_weights, gradient_weights
from dtrain.recipe.training import LossSpec

LN3 = math.log(3)
# softmax [3/4, 1/4], [1/2, 1/2] and [1/4, 3/4]
SURE, TORN, WRONG = [LN3, 0.0], [0.0, 0.0], [0.0, LN3]


def weighted(
    weighting: Any, student: Tensor, labels: Tensor, *teachers: Tensor, type: str = "soft_targets", **parameters: Any
) -> Tensor:
    """The total of one weighted term."""
    spec = LossSpec.model_validate({"type": type, "weighting": weighting, **parameters})
    spec.teachers = [f"t{k}" for k in range(len(teachers))]
    stored = {name: {"logits": logits} for name, logits in zip(spec.teachers, teachers, strict=True)}
    total, _, _ = build_losses([spec])({"logits": student, "labels": labels.clamp(min=0)}, stored, labels >= 0)
    return total


def test_confidence_by_hand() -> None:
    # exp(CE) = 1/p: 4/3, 2 and 4, of sum 22/3. w_k = (1 - share) / 2
    logits = torch.tensor([SURE, TORN, WRONG])[:, None].repeat(1, 2, 1)
    labels, labelled = torch.tensor([0, 0]), torch.tensor([True, False])
    weights = confidence_weights(logits, labels, labelled)
    expected = [(1 - 2 / 11) / 2, (1 - 3 / 11) / 2, (1 - 6 / 11) / 2]
    torch.testing.assert_close(weights, torch.tensor([expected, [1 / 3] * 3]).T)


def test_entropy_by_hand() -> None:
    # exp(H): of (3/4, 1/4) 4 / 3^(3/4), of (1/2, 1/2) 2
    sharp = 4 / 3**0.75
    weights = entropy_weights(torch.tensor([[SURE], [TORN]]))
    torch.testing.assert_close(weights[:, 0], torch.tensor([2 / (2 + sharp), sharp / (2 + sharp)]))


def test_gradient_by_hand() -> None:
    weights = gradient_weights(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), 1.0)
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.2, 0.8], dtype=torch.float64))


def test_fixed_by_hand() -> None:
    assert fixed_weights([3.0, 1.0], 2, torch.device("cpu")).tolist() == [[0.75, 0.75], [0.25, 0.25]]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    numbers = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    return numbers[0].requires_grad_(), torch.tensor([0, -1, 2, 4, -1, 3]), list(2 * numbers[1:])


ALL = ["average", "confidence", "entropy", "gradient"]


@pytest.mark.parametrize("weighting", [*ALL, {"type": "fixed", "weights": {"t0": 0.3}}, {"type": "gradient"}])
@pytest.mark.parametrize("loss", ["soft_targets", "reverse_soft_targets", "logit_regression", "cosine"])
def test_one_teacher_is_the_plain_loss(batch: Any, weighting: Any, loss: str) -> None:
    student, labels, teachers = batch
    torch.testing.assert_close(
        weighted(weighting, student, labels, teachers[0], type=loss),
        weighted(None, student, labels, teachers[0], type=loss),
    )


@pytest.mark.parametrize("weighting", ALL)
def test_the_published_sum(batch: Any, weighting: str) -> None:
    """Gradients are those of -T^2 sum_k w_k sum_c softmax(z_k / T)_c log softmax(z_s / T)_c with constant weights."""
    student, labels, teachers = batch
    stacked, temperature = torch.stack(teachers), 3.0
    if weighting == "confidence":
        cross_entropies = -stacked.log_softmax(-1)[:, range(6), labels.clamp(min=0)]
        shares = cross_entropies.exp() / cross_entropies.exp().sum(0)
        weights = torch.where(labels >= 0, (1 - shares) / 2, 1 / 3)
    elif weighting == "entropy":
        entropy = -(stacked.softmax(-1) * stacked.log_softmax(-1)).sum(-1)
        weights = (1 - entropy.exp() / entropy.exp().sum(0)) / 2
    elif weighting == "gradient":  # of T^2 KL in z_s: T (softmax(z_s / T) - softmax(z_k / T))
        weights = gradient_weights((student.detach() / 3).softmax(-1) - (stacked / 3).softmax(-1), 1.0)
    else:
        weights = torch.full((3, 6), 1 / 3)
    torch.testing.assert_close(weights.sum(0), torch.ones(6, dtype=weights.dtype))
    own = (stacked / temperature).softmax(-1) * (student / temperature).log_softmax(-1)
    (expected,) = torch.autograd.grad(-(temperature**2) * (weights * own.sum(-1)).sum(), student)
    total = weighted(weighting, student, labels, *teachers, temperature=temperature)
    (found,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(found, expected)


def test_average_has_the_gradient_of_the_plain_loss(batch: Any) -> None:
    student, labels, teachers = batch
    for loss in ("soft_targets", "logit_regression"):
        (averaged,) = torch.autograd.grad(weighted("average", student, labels, *teachers, type=loss), student)
        (plain,) = torch.autograd.grad(weighted(None, student, labels, *teachers, type=loss), student)
        torch.testing.assert_close(averaged, plain)


def test_weighted_logit_regression_by_hand() -> None:
    # weights 3/4 and 1/4; squares (1 + 1) and (4 + 9); halved by the weight
    teachers = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 3.0]])
    fixed = {"type": "fixed", "weights": {"t0": 3, "t1": 1}}
    value = weighted(fixed, torch.zeros(1, 2), torch.tensor([0]), *teachers, type="logit_regression", weight=0.5)
    assert value.item() == pytest.approx((0.75 * 2 + 0.25 * 13) / 2)


HELD = ["average", "confidence", "entropy", {"type": "fixed", "weights": {"t0": 1, "t1": 2, "t2": 4}}]


@pytest.mark.parametrize("weighting", HELD)
def test_gradcheck_of_hints(batch: Any, weighting: Any) -> None:
    student, labels, teachers = batch
    features = torch.randn(3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    spec = LossSpec.model_validate({"type": "feature_hint", "weighting": weighting})
    spec.teachers = ["t0", "t1", "t2"]
    stored = {
        name: {"logits": logits, "features": of_teacher}
        for name, logits, of_teacher in zip(spec.teachers, teachers, features, strict=True)
    }

    def total(own: Tensor) -> Tensor:
        given = {"logits": student.detach(), "features": own, "labels": labels.clamp(min=0)}
        return build_losses([spec])(given, stored, labels >= 0)[0]

    own = 2 * torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    assert torch.autograd.gradcheck(total, own.requires_grad_())


def test_gradcheck_of_fixed_weights(batch: Any) -> None:
    student, labels, teachers = batch
    assert torch.autograd.gradcheck(lambda z: weighted(HELD[-1], z, labels, *teachers), student)


@pytest.mark.parametrize("weighting", ALL)
def test_gradcheck(batch: Any, weighting: str) -> None:
    """Weights that follow the student are constants in its gradient, so `gradient` is checked with its weights held."""
    student, labels, teachers = batch
    if weighting != "gradient":
        assert torch.autograd.gradcheck(lambda z: weighted(weighting, z, labels, *teachers), student)
        return
    weights = gradient_weights((student.detach() / 2).softmax(-1) - (torch.stack(teachers) / 2).softmax(-1), 1.0)
    (expected,) = torch.autograd.grad(
        sum((w * soft_targets(student, t)).sum() for w, t in zip(weights, teachers, strict=True)), student
    )
    (found,) = torch.autograd.grad(weighted("gradient", student, labels, *teachers), student)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weighting", ALL)
def test_any_cut_of_a_batch_adds_up(batch: Any, weighting: str) -> None:
    student, labels, teachers = batch
    whole = weighted(weighting, student, labels, *teachers)
    parts = [
        weighted(weighting, student[rows], labels[rows], *(t[rows] for t in teachers))
        for rows in (slice(0), slice(1), slice(1, None))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_a_gradient_limit_is_kept(batch: Any) -> None:
    student, labels, teachers = batch
    limited = weighted({"type": "gradient", "limit": 0.34}, student, labels, *teachers)
    # 1/3 is nearly all that is left
    torch.testing.assert_close(limited, weighted("average", student, labels, *teachers), rtol=0.05, atol=0)
    assert weighted("gradient", student, labels, *teachers) < limited


@pytest.mark.parametrize("weighting", ALL)
def test_top_k_logits_weigh_as_the_whole_ones(batch: Any, weighting: str) -> None:
    """Of peaked teachers the few largest logits are nearly all."""
    student, labels, teachers = batch
    peaked = [4 * t.float() for t in teachers]
    kept = [spread(*largest(t, 3), width=5) for t in peaked]
    student = student.detach().float()
    torch.testing.assert_close(
        weighted(weighting, student, labels, *kept, temperature=1.0),
        weighted(weighting, student, labels, *peaked, temperature=1.0),
        rtol=0.02,
        atol=0,
    )
    assert logit_regression(student, torch.stack(kept)).isfinite().all()


def test_a_dead_certain_wrong_teacher_counts_nothing_and_breaks_nothing() -> None:
    logits = torch.tensor([[[0.0, 1e4]], [[1.0, 0.0]]])
    weights = confidence_weights(logits, torch.tensor([0]), torch.tensor([True]))
    assert weights[:, 0].tolist() == [0.0, 1.0]
    assert entropy_weights(logits).isfinite().all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "fixed"}, "weights: a number for each teacher"),
        ({"type": "average", "weights": {"a": 1}}, "weights: a number for each teacher"),
        ({"type": "entropy", "limit": 0.5}, "limit: is only for type 'gradient'"),
        ("confident", "Input should be 'average', 'fixed', 'confidence', 'entropy' or 'gradient'"),
    ],
)
def test_what_is_refused(section: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossSpec.model_validate({"type": "soft_targets", "weighting": section})


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_logits_weigh_as_their_values_do(batch: Any, half: torch.dtype) -> None:
    """Gradients of teachers that agree differ by little, and the programme divides by that."""
    generator = torch.Generator().manual_seed(8)
    teacher = 2 * torch.randn(200, 15, generator=generator)
    teachers = [teacher, teacher + 0.02 * torch.randn(200, 15, generator=generator)]
    student = torch.randn(200, 15, generator=generator).to(half)
    labels = torch.zeros(200, dtype=torch.int64)
    rounded = weighted("gradient", student, labels, *teachers)
    torch.testing.assert_close(rounded, weighted("gradient", student.float(), labels, *teachers), rtol=1e-6, atol=0)


def test_one_teacher_is_the_plain_loss_whatever_the_limit(batch: Any) -> None:
    student, labels, teachers = batch
    limited = weighted({"type": "gradient", "limit": 0.4}, student, labels, teachers[0])
    torch.testing.assert_close(limited, weighted(None, student, labels, teachers[0]))


def test_fixed_weights_are_exact_in_float64() -> None:
    assert fixed_weights([1.0, 1.0, 1.0], 1, torch.device("cpu"))[:, 0].tolist() == [1 / 3] * 3


def test_teachers_with_features_of_different_widths_are_told() -> None:
    spec = LossSpec.model_validate({"type": "feature_hint", "weighting": "average", "teachers": ["a", "b"]})
    stored = {"a": {"features": torch.zeros(2, 3)}, "b": {"features": torch.zeros(2, 4)}}
    inputs = {"features": torch.zeros(2, 3), "logits": torch.zeros(2, 2)}
    with pytest.raises(InputError, match=r"feature_hint: its teachers' features are of different widths \(a 3, b 4\)"):
        build_losses([spec])(inputs, stored, torch.ones(2, dtype=torch.bool))
