"""Adversarial imitation: values and gradients worked out by hand in float64, by finite differences, and cut into batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dtrain.errors import InputError
from dtrain.losses.adversary import Discriminator
from dtrain.losses.imitation import imitation
from dtrain.losses.lasting import lasting_losses
from dtrain.losses.objective import build_losses
from dtrain.losses.registry import find_loss
from dtrain.recipe.losses import LossSpec

DOUBLE = torch.float64
WIDTHS = {"token_features": 3, "teachers.token_features": 3}
MODES = ["alternating", "reversal"]


def by_hand() -> Discriminator:
    one = Discriminator(2, 1).double()
    with torch.no_grad():
        one.hidden.weight.copy_(torch.tensor([[1.0, -0.5]]))
        one.hidden.bias.fill_(0.1)
        one.answer.weight.fill_(2.0)
        one.answer.bias.fill_(-0.3)
    return one


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("mode", MODES)
def test_a_character_by_hand(mode: Any) -> None:
    """D(f) of a student's feature (0.4, 0.2) and a teacher's (-1, 1): h = 2 tanh(x - y/2 + 0.1) - 0.3."""
    one = by_hand()
    own = torch.tensor([[[0.4, 0.2]]], dtype=DOUBLE, requires_grad=True)
    theirs = torch.tensor([[[-1.0, 1.0]]], dtype=DOUBLE)
    value = imitation(one, own, torch.ones(1, 1, dtype=torch.bool), theirs, mode=mode, strength=0.5)
    inner, other = math.tanh(0.4 - 0.1 + 0.1), math.tanh(-1.0 - 0.5 + 0.1)
    h, h_teacher = 2 * inner - 0.3, 2 * other - 0.3
    assert value.item() == pytest.approx(-math.log(sigmoid(h_teacher)) - math.log(1 - sigmoid(h)), abs=1e-14)
    value.sum().backward()
    # d/df of the student's part: of -log D(f) it is -(1 - D) dh/df; reversed, of -log(1 - D(f)), it is -D dh/df.
    slope = 0.5 * (1 - sigmoid(h) if mode == "alternating" else sigmoid(h)) * 2 * (1 - inner**2)
    assert own.grad is not None
    assert own.grad.flatten().tolist() == pytest.approx([-slope, 0.5 * slope], abs=1e-14)
    # d/db of W_h's bias: D(f_s) - (1 - D(f_t)), whatever the student is taught by.
    assert one.answer.bias.grad is not None
    assert one.answer.bias.grad.item() == pytest.approx(sigmoid(h) - (1 - sigmoid(h_teacher)), abs=1e-14)


def plain(one: Discriminator, own: Tensor, mask: Tensor, theirs: Tensor) -> Tensor:
    """The discriminator's loss as it is written in the paper."""
    chance, other = torch.sigmoid(one(own)), torch.sigmoid(one(theirs))
    return ((-other.log() - (1 - chance).log()) * mask).sum(1)


@pytest.mark.parametrize("mode", MODES)
def test_the_discriminators_gradient_is_that_of_its_own_loss(mode: Any) -> None:
    torch.manual_seed(0)
    one, mask = Discriminator(3, 4).double(), torch.tensor([[True, True], [True, False]])
    own, theirs = torch.randn(2, 2, 3, dtype=DOUBLE, requires_grad=True), torch.randn(2, 2, 3, dtype=DOUBLE)
    found = imitation(one, own, mask, theirs, mode=mode)
    wanted = plain(one, own, mask, theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(v.sum(), list(one.parameters()), retain_graph=True) for v in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_of_the_student_it_is_reversed_or_that_of_fooling() -> None:
    torch.manual_seed(1)
    one, mask = Discriminator(3, 4).double(), torch.ones(2, 3, dtype=torch.bool)
    own, theirs = torch.randn(2, 3, 3, dtype=DOUBLE, requires_grad=True), torch.randn(2, 3, 3, dtype=DOUBLE)
    (reversed_,) = torch.autograd.grad(imitation(one, own, mask, theirs, mode="reversal", strength=0.25).sum(), own)
    (of_loss,) = torch.autograd.grad(plain(one, own, mask, theirs).sum(), own)
    torch.testing.assert_close(reversed_, -0.25 * of_loss, rtol=1e-12, atol=1e-14)
    (found,) = torch.autograd.grad(imitation(one, own, mask, theirs, strength=0.25).sum(), own)
    (of_fooling,) = torch.autograd.grad(-0.25 * torch.sigmoid(one(own)).log().sum(), own)
    torch.testing.assert_close(found, of_fooling, rtol=1e-12, atol=1e-14)


def test_gradients_by_finite_differences() -> None:
    """Of the discriminator's weights and the teacher's features; of the student's with the reversal taken back."""
    torch.manual_seed(2)
    one, mask = Discriminator(2, 3).double(), torch.tensor([[True, True, False]])
    names = [name for name, _ in one.named_parameters()]
    weights = [weight.detach().requires_grad_() for weight in one.parameters()]
    own, theirs = (torch.randn(1, 3, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))

    class Held(torch.nn.Module):
        def __init__(self, given: tuple[Tensor, ...]) -> None:
            super().__init__()
            self.given = given

        def forward(self, features: Tensor, fixed: bool = False) -> Tensor:
            return torch.func.functional_call(one, dict(zip(names, self.given, strict=True)), (features, fixed))

    def loss(theirs: Tensor, *given: Tensor) -> Tensor:
        return imitation(Held(given), own.detach(), mask, theirs)

    assert torch.autograd.gradcheck(loss, (theirs, *weights))

    def taken_back(own: Tensor) -> Tensor:  # -1 x (-1) x the gradient is the gradient
        return imitation(one, -1 * (-own).detach() + own - own.detach(), mask, theirs.detach(), mode="reversal")

    (turned,) = torch.autograd.grad(taken_back(own).sum(), own)
    step = 1e-6
    for place in ((0, 0, 0), (0, 1, 1)):
        up, down = own.detach().clone(), own.detach().clone()
        up[place] += step
        down[place] -= step
        slope = (taken_back(up).sum() - taken_back(down).sum()) / (2 * step)
        assert turned[place].item() == pytest.approx(-slope.item(), rel=1e-6)
    assert not turned[0, 2].any()  # padding


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode: Any) -> None:
    torch.manual_seed(3)
    one = Discriminator(3, 4)
    own, theirs = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 2, 3)
    short = imitation(one, own, torch.ones(1, 2, dtype=torch.bool), theirs, mode=mode)
    (gradient,) = torch.autograd.grad(short.sum(), own)
    padded = torch.cat([own.detach(), torch.full((1, 2, 3), 1e4)], dim=1).requires_grad_()
    other = torch.cat([theirs, torch.full((1, 2, 3), -1e4)], dim=1)
    long = imitation(one, padded, torch.tensor([[True, True, False, False]]), other, mode=mode)
    (of_padded,) = torch.autograd.grad(long.sum(), padded)
    torch.testing.assert_close(long, short)
    torch.testing.assert_close(of_padded[:, :2], gradient)
    assert not of_padded[:, 2:].any()


def test_of_several_teachers_the_mean() -> None:
    torch.manual_seed(4)
    one, mask = Discriminator(3, 4).double(), torch.ones(2, 2, dtype=torch.bool)
    own, theirs = torch.randn(2, 2, 3, dtype=DOUBLE), torch.randn(3, 2, 2, 3, dtype=DOUBLE)
    each = torch.stack([imitation(one, own, mask, teacher) for teacher in theirs])
    torch.testing.assert_close(imitation(one, own, mask, theirs), each.mean(0))


def total(spec: dict[str, Any], rows: slice, given: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(5)
    losses = build_losses([LossSpec.model_validate({"type": "imitation", "hidden": 4, **spec})], WIDTHS).double()
    own = given["own"][rows].requires_grad_()
    known = {"token_features": own, "mask": given["mask"][rows]}
    teachers = {"t": {"token_features": given["theirs"][rows]}}
    value, sums, counts = losses(known, teachers, torch.ones(len(own), dtype=torch.bool), given["mask"][rows].sum(1))
    assert int(counts["imitation"]) == int(given["mask"][rows].sum())
    torch.testing.assert_close(sums["imitation"] * spec.get("weight", 1.0), value.detach())
    return value, list(torch.autograd.grad(value, list(losses.parameters())))


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_the_sum_of_its_parts(mode: str) -> None:
    torch.manual_seed(6)
    given = {name: torch.randn(5, 4, 3, dtype=DOUBLE) for name in ("own", "theirs")}
    given["mask"] = torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    spec = {"mode": mode, "weight": 0.5}
    whole, gradients = total(spec, slice(None), given)
    parts = [total(spec, rows, given) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0])
    torch.testing.assert_close(gradients, [a + b for a, b in zip(parts[0][1], parts[1][1], strict=True)])


def test_what_is_registered() -> None:
    loss = find_loss("imitation")
    assert loss.tasks == ["tagging"] and loss.stateful and loss.lasting and not loss.hard
    assert loss.turns is not None
    for parameters, turns in (
        ({}, 1),
        ({"discriminator_steps": 3}, 3),
        ({"mode": "reversal", "discriminator_steps": 3}, 0),
    ):
        assert loss.turns(LossSpec.model_validate({"type": "imitation", **parameters}).parameters()) == turns
    with pytest.raises(InputError, match="the student has 3 features of a character and its teacher 4"):
        build_losses([LossSpec(type="imitation")], {"token_features": 3, "teachers.token_features": 4})
    losses = build_losses([LossSpec(type="tag_likelihood"), LossSpec(type="imitation")], WIDTHS)
    assert list(lasting_losses(losses)) == ["stateful.imitation"]


def test_half_precision_is_computed_in_full() -> None:
    torch.manual_seed(7)
    one, mask = Discriminator(3, 4), torch.ones(1, 2, dtype=torch.bool)
    own, theirs = torch.randn(1, 2, 3).bfloat16(), torch.randn(1, 2, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = imitation(one, own, mask, theirs)
    assert found.dtype == torch.float32
    assert torch.equal(found, imitation(one, own.float(), mask, theirs.float()))
