"""Losses on features and on exits against numbers worked out by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from dtrain.errors import InputError
from dtrain.losses.exits import exits_cross_entropy, exits_distillation
from dtrain.losses.features import feature_cosine, feature_hint
from dtrain.losses.objective import build_losses
from dtrain.recipe.training import LossSpec

LN3 = math.log(3)


def test_feature_hint_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.5, -1.0, 3.0, 0.0]])  # 0.125, 0.5, 2.5, 0 over four
    assert feature_hint(student, teacher).tolist() == [3.125 / 4]
    assert feature_hint(student, teacher, beta=2.0).tolist() == [(0.0625 + 0.25 + 2.0) / 4]
    assert feature_hint(student, torch.stack([teacher, student])).tolist() == [3.125 / 8]
    torch.testing.assert_close(feature_hint(student, teacher)[0], functional.smooth_l1_loss(student, teacher))


def test_feature_cosine_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0]])
    teachers = torch.tensor([[[1.0, 1.0]], [[-2.0, 0.0]]])
    assert feature_cosine(student, teachers[0]).item() == pytest.approx(1 - math.sqrt(0.5))
    assert feature_cosine(student, teachers).item() == pytest.approx((1 - math.sqrt(0.5) + 2) / 2)


def test_other_widths_are_named() -> None:
    for loss in (feature_hint, feature_cosine):
        with pytest.raises(InputError, match="the student has 2 features and its teacher 3"):
            loss(torch.zeros(1, 2), torch.zeros(1, 3))


def test_weighted_hint_by_hand() -> None:
    """Weights come from the teachers' logits: 3/4 and 1/4 for the gold label give exp(CE) 4/3 and 4, so 3/4 and 1/4."""
    spec = LossSpec.model_validate({"type": "feature_hint", "weighting": "confidence"})
    losses = build_losses([spec])
    assert losses.teacher_outputs == {"features": None, "logits": None}
    teachers = {
        "a": {"features": torch.tensor([[0.0, 2.0]]), "logits": torch.tensor([[LN3, 0.0]])},
        "b": {"features": torch.tensor([[4.0, 0.0]]), "logits": torch.tensor([[0.0, LN3]])},
    }
    given = {"logits": torch.zeros(1, 2), "features": torch.zeros(1, 2), "labels": torch.tensor([0])}
    total, sums, _ = losses(given, teachers, torch.tensor([True]))
    assert total.item() == sums["feature_hint"].item() == pytest.approx(0.75 * 1.5 / 2 + 0.25 * 3.5 / 2)


def test_gradient_weights_of_a_hint_are_those_of_its_features() -> None:
    losses = build_losses([LossSpec.model_validate({"type": "feature_hint", "weighting": "gradient"})])
    assert losses.teacher_outputs == {"features": None}
    teachers = {"a": {"features": torch.tensor([[0.5, 0.0]])}, "b": {"features": torch.tensor([[-0.5, 0.0]])}}
    student = torch.zeros(1, 2, requires_grad=True)
    total, _, _ = losses({"features": student}, teachers, torch.tensor([False]))
    total.backward()
    assert student.grad is not None and student.grad.tolist() == [[0.0, 0.0]]  # the two pull apart, evenly


def test_exits_cross_entropy_by_hand() -> None:
    exits = torch.tensor([[[0.0, 0.0]], [[0.0, LN3]]])
    value = exits_cross_entropy(exits, torch.tensor([1])).item()
    assert value == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_exits_distillation_by_hand() -> None:
    exits = torch.tensor([[[0.0, 0.0]], [[0.0, LN3]]], dtype=torch.float64)
    # KL((1/4, 3/4) || (1/2, 1/2)) = 1/4 ln 1/2 + 3/4 ln 3/2, and 0 of the last exit itself
    expected = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2
    assert exits_distillation(exits).item() == pytest.approx(expected)
    # at T = 2 of doubled logits the same, times 4
    assert exits_distillation(2 * exits, temperature=2.0).item() == pytest.approx(4 * expected)
    # the ensemble is (3/8, 5/8)
    of_ensemble = [0.375 * math.log(0.375 / a) + 0.625 * math.log(0.625 / b) for a, b in ((0.5, 0.5), (0.25, 0.75))]
    assert exits_distillation(exits, source="ensemble").item() == pytest.approx(sum(of_ensemble) / 2)


def test_no_gradient_through_the_exits_that_teach() -> None:
    exits = torch.randn(3, 2, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    exits_distillation(exits).sum().backward()
    assert exits.grad is not None and exits.grad[0].abs().min() > 0
    torch.testing.assert_close(exits.grad[-1], torch.zeros(2, 4), rtol=0, atol=1e-6)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    student, *teachers = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    stacked = torch.stack(teachers)
    assert torch.autograd.gradcheck(lambda f: feature_hint(f, stacked, beta=0.7), student)
    assert torch.autograd.gradcheck(lambda f: feature_cosine(f, stacked), student)
    exits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda z: exits_cross_entropy(z, labels, label_smoothing=0.1), exits)
    # The target is a constant in the gradient: hold the last exit and let the others move.
    assert torch.autograd.gradcheck(
        lambda z: exits_distillation(torch.cat([z, exits[1:].detach()]), temperature=2.0),
        exits[:1].detach().requires_grad_(),
    )


def test_gradient_of_the_ensemble_of_exits() -> None:
    """T / E (softmax(z_e / T) - p) for each exit e, the last one's too: p is a constant."""
    generator = torch.Generator().manual_seed(1)
    exits = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    value = exits_distillation(exits, temperature=3.0, source="ensemble").sum()
    (found,) = torch.autograd.grad(value, exits)
    shares = (exits.detach() / 3.0).softmax(-1)
    expected = 3.0 / 3 * (shares - shares.mean(0))
    torch.testing.assert_close(found, expected)
