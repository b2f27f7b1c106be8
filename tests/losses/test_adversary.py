"""The discriminator and the reversed gradient: worked out by hand, in float64, and under autocast."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from dtrain.losses.adversary import Discriminator, reverse_gradient

DOUBLE = torch.float64


def test_the_gradient_is_turned_round_and_the_values_stay() -> None:
    values = torch.tensor([1.0, -2.0, 1e-30], dtype=DOUBLE, requires_grad=True)
    turned = reverse_gradient(values, 0.25)
    assert torch.equal(turned, values)
    (turned**2).sum().backward()  # d/dv v^2 = 2 v
    assert values.grad is not None
    assert values.grad.tolist() == [-0.5, 1.0, -0.25 * 2e-30]


def test_of_a_function_of_both_the_reversed_part_alone_changes_its_sign() -> None:
    one, other = (torch.randn(3, 4, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    plain = torch.autograd.grad((one * other).sin().sum(), (one, other))
    mixed = torch.autograd.grad((reverse_gradient(one, 2.0) * other).sin().sum(), (one, other))
    assert torch.equal(mixed[0], -2.0 * plain[0]) and torch.equal(mixed[1], plain[1])


def test_reversed_twice_it_is_plain_again() -> None:
    """By factors 0.5 and 2: gradcheck compares with finite differences, which know of no reversal."""
    values = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: reverse_gradient(reverse_gradient(v, 0.5), 2.0).exp(), values)
    assert torch.autograd.gradgradcheck(lambda v: reverse_gradient(reverse_gradient(v, 0.5), 2.0).exp(), values)


def test_it_goes_through_torch_func() -> None:
    """A loss that weighs its teachers by gradients is differentiated by torch.func."""
    values = torch.randn(5, 3)
    found = torch.func.vmap(torch.func.grad(lambda row: reverse_gradient(row, 3.0).sum()))(values)
    assert torch.equal(found, torch.full_like(values, -3.0))


def test_a_discriminator_worked_out_by_hand() -> None:
    one = Discriminator(2, 1).double()
    with torch.no_grad():
        one.hidden.weight.copy_(torch.tensor([[0.5, -1.0]]))
        one.hidden.bias.fill_(0.25)
        one.answer.weight.fill_(2.0)
        one.answer.bias.fill_(-0.5)
    found = one(torch.tensor([[1.0, 0.5], [0.0, 0.0]], dtype=DOUBLE))
    assert found.tolist() == pytest.approx([2 * math.tanh(0.25) - 0.5, 2 * math.tanh(0.25) - 0.5], abs=1e-15)
    assert one(torch.tensor([[3.0, 0.0]], dtype=DOUBLE)).item() == pytest.approx(2 * math.tanh(1.75) - 0.5, abs=1e-15)


def test_gradients_of_a_discriminator() -> None:
    one = Discriminator(3, 4).double()
    features = torch.randn(2, 5, 3, dtype=DOUBLE, requires_grad=True)
    weights = [weight.detach().requires_grad_() for weight in one.parameters()]
    names = [name for name, _ in one.named_parameters()]

    def loss(features: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        answers = torch.func.functional_call(one, dict(zip(names, weights, strict=True)), (features,))
        return functional.softplus(answers).sum()

    assert torch.autograd.gradcheck(loss, (features, *weights))


def test_weights_learn_to_tell_apart_what_the_features_learn_to_hide() -> None:
    """One backward pass: the weights' gradient is the plain one, that of the features -0.1 times it."""
    one, features = Discriminator(3, 4).double(), torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    plain = torch.autograd.grad(functional.softplus(one(features)).sum(), [features, *one.parameters()])
    found = torch.autograd.grad(
        functional.softplus(one(reverse_gradient(features, 0.1))).sum(), [features, *one.parameters()]
    )
    torch.testing.assert_close(found[0], -0.1 * plain[0], rtol=1e-15, atol=0)
    assert all(map(torch.equal, found[1:], plain[1:]))


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_it_computes_in_full_under_autocast_and_with_weights_in_16_bits(kept: torch.dtype) -> None:
    one, features = Discriminator(8, 4).to(kept), torch.randn(5, 8, dtype=torch.bfloat16)
    weights = {name: weight.float() for name, weight in one.state_dict().items()}
    whole = Discriminator(8, 4)
    whole.load_state_dict(weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = one(features)
    assert found.dtype == torch.float32
    assert torch.equal(found, whole(features.float()))
