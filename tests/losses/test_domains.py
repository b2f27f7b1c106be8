"""The adversary of two kinds of text: worked out by hand, its reversed gradient, and its balance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dtrain.errors import InputError
from dtrain.losses.adversary import Balanced
from dtrain.losses.objective import LossSum, build_losses
from dtrain.recipe.losses import LossSpec

DOUBLE = torch.float64
WIDTHS = {"features": 3, "training_rows": 10, "paired_rows": 8, "labelled_rows": 5}
FEATURES = torch.tensor([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0], [0.5, 0.5, 0.5]], dtype=DOUBLE)
PARALLEL = torch.tensor([True, False, True])
LABELLED = torch.tensor([False, True, True])


def built(**changed: object) -> tuple[LossSum, Balanced]:
    losses = build_losses([LossSpec.model_validate({"type": "domain_adversary", "hidden": 2, **changed})], WIDTHS)
    one = losses.stateful["domain_adversary"]
    assert isinstance(one, Balanced)
    one.double()
    with torch.no_grad():
        one.hidden.weight.copy_(torch.tensor([[1.0, 0.0, -2.0], [0.5, 0.25, 0.0]], dtype=DOUBLE))
        one.hidden.bias.copy_(torch.tensor([0.1, -0.1], dtype=DOUBLE))
        one.answer.weight.copy_(torch.tensor([[2.0, -1.0]]))
        one.answer.bias.fill_(0.25)
    return losses, one


def total(losses: LossSum, features: Tensor, rows: slice = slice(None)) -> Tensor:
    given = {"features": features[rows], "parallel": PARALLEL[rows]}
    return losses(given, {}, LABELLED[rows])[0]


def answer(row: Tensor) -> float:
    """D of one row, in plain numbers."""
    first = math.tanh(row[0] - 2 * row[2] + 0.1)
    second = math.tanh(0.5 * row[0] + 0.25 * row[1] - 0.1)
    return 2 * first - second + 0.25


@pytest.mark.parametrize(("between", "ones", "of_kind"), [("pairs", PARALLEL, (2, 8)), ("labels", LABELLED, (5, 5))])
@pytest.mark.parametrize("balanced", [True, False])
def test_worked_out_by_hand(between: str, ones: Tensor, of_kind: tuple[int, int], balanced: bool) -> None:
    losses, _ = built(between=between, balanced=balanced)
    expected = 0.0
    for row, one in zip(FEATURES, ones.tolist(), strict=True):
        probability = 1 / (1 + math.exp(-answer(row)))  # of kind 1
        weight = 10 / (2 * of_kind[one]) if balanced else 1.0
        expected -= weight * math.log(probability if one else 1 - probability)
    assert total(losses, FEATURES).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_the_features_is_turned_round_and_that_of_the_discriminator_is_not() -> None:
    losses, one = built(strength=0.25, weight=3.0)
    features = FEATURES.clone().requires_grad_()
    found = torch.autograd.grad(total(losses, features), [features, *one.parameters()])

    def plain(features: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in one.named_parameters()]
        answers = torch.func.functional_call(one, dict(zip(names, weights, strict=True)), (features,))
        values = functional.binary_cross_entropy_with_logits(answers, PARALLEL.double(), reduction="none")
        return 3.0 * (values * torch.tensor([10 / 16, 10 / 4, 10 / 16])).sum()

    weights = [weight.detach().requires_grad_() for weight in one.parameters()]
    assert torch.autograd.gradcheck(plain, (features, *weights))  # what is compared with is right
    expected = torch.autograd.grad(plain(features, *weights), [features, *weights])
    torch.testing.assert_close(found[0], -0.25 * expected[0], rtol=1e-12, atol=1e-14)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_batch_is_the_sum_of_its_pieces() -> None:
    losses, one = built()
    whole = torch.autograd.grad(total(losses, FEATURES), list(one.parameters()))
    pieces = total(losses, FEATURES, slice(0, 1)) + total(losses, FEATURES, slice(1, 3))
    for mine, theirs in zip(torch.autograd.grad(pieces, list(one.parameters())), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_float32(kept: torch.dtype) -> None:
    losses, one = built()
    one.to(kept)
    with torch.autocast("cpu", torch.bfloat16):
        found = total(losses, FEATURES.to(torch.bfloat16))
    assert found.dtype == torch.float32
    one.float()
    assert torch.equal(found, total(losses, FEATURES.to(torch.bfloat16).float()))


@pytest.mark.parametrize("changed", [{"paired_rows": 0}, {"paired_rows": 10}])
def test_one_kind_alone_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(InputError, match="all 10 rows are of one kind"):
        build_losses([LossSpec(type="domain_adversary")], WIDTHS | changed)
    with pytest.raises(InputError, match="has not"):
        build_losses([LossSpec(type="domain_adversary")], {name: n for name, n in WIDTHS.items() if name != "features"})
