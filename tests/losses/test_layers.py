"""Which layers are compared, and what losses on them get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtrain.errors import InputError
from dtrain.losses import registry
from dtrain.losses.layers import EncoderShape, Shapes, layer_pairs
from dtrain.losses.objective import build_losses
from dtrain.recipe.losses import LossSpec

STUDENT, TEACHER = EncoderShape(4, 2, 2), EncoderShape(6, 4, 3)
SHAPES = Shapes(STUDENT, {"t": TEACHER})


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT's g(m) = 3m
        ("uniform", 3, 4, [(1, 1), (2, 3), (3, 4)]),  # 1.33, 2.67, 4
        ("uniform", 4, 2, [(1, 1), (2, 1), (3, 2), (4, 2)]),  # 0.5, 1, 1.5, 2: halves up
        ("uniform", 4, 1, [(1, 1), (2, 1), (3, 1), (4, 1)]),
        ("skip", 5, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("last", 3, 12, [(3, 12)]),
        ([[0, 0], [2, 9]], 3, 12, [(0, 0), (2, 9)]),
    ],
)
def test_pairs(layers: Any, student: int, teacher: int, expected: list[tuple[int, int]]) -> None:
    spec = LossSpec.model_validate({"type": "hidden_mse", "layers": layers})
    assert list(layer_pairs(spec.parameters()["layers"], student, teacher, first=0)) == expected


@pytest.mark.parametrize(
    ("layers", "first", "message"),
    [
        ([(3, 4)], 0, "the student has no layer 3 for it (there are 0 to 2)"),
        ([(1, 5)], 0, "the teacher has no layer 5 for it (there are 0 to 4)"),
        ([(0, 1)], 1, "the student has no layer 0 for it (there are 1 to 2)"),
    ],
)
def test_layers_that_do_not_exist(layers: Any, first: int, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        layer_pairs(layers, 2, 4, first)
    assert str(raised.value) == message
    with pytest.raises(ValueError, match="skip needs a teacher of as many layers"):
        layer_pairs("skip", 3, 2)


@pytest.mark.parametrize("layers", ["middle", [], [1, 2], [[1]], [[1, -1]], [[1, 2], [1, 2]], [[True, 1]], 3])
def test_a_recipe_says_layers_in_these_ways_only(layers: Any) -> None:
    with pytest.raises(ValueError, match="layers: must (be uniform, last, skip, or pairs|not name a pair)"):
        LossSpec.model_validate({"type": "hidden_mse", "layers": layers})


def sum_of(*terms: dict[str, Any], shapes: Shapes = SHAPES) -> Any:
    torch.manual_seed(0)
    return build_losses([LossSpec.model_validate(term) for term in terms], {}, shapes)


def states(layers: int, width: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"hidden_states/{l}": torch.randn(3, 5, width, generator=random) for l in range(layers + 1)}  # noqa: E741


def test_hidden_mse_by_hand() -> None:
    """Pair by pair through a map of its own, a mean over a row's tokens; a tagger's rows count by their characters."""
    losses = sum_of({"type": "hidden_mse", "layers": [[1, 2], [2, 4]]})
    own, theirs = states(2, 4, 1), states(4, 6, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    units = torch.tensor([3, 1, 4])
    total, sums, counts = losses({**own, "token_mask": mask}, {"t": theirs}, torch.zeros(3).bool(), units)
    maps = losses.stateful["hidden_mse"].maps
    expected = 0.0
    for row in range(3):
        for (s, t), one in zip([(1, 2), (2, 4)], maps, strict=True):
            for token in range(int(mask[row].sum())):
                apart = one.weight @ own[f"hidden_states/{s}"][row, token] - theirs[f"hidden_states/{t}"][row, token]
                expected += int(units[row]) * float(apart.detach().square().mean()) / 2 / int(mask[row].sum())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5) == float(sums["hidden_mse"])
    assert int(counts["hidden_mse"]) == 8


def test_equal_widths_have_a_map_when_asked() -> None:
    same = Shapes(STUDENT, {"t": EncoderShape(4, 4, 3)})
    assert not sum_of({"type": "hidden_mse"}, shapes=same).stateful
    asked = sum_of({"type": "hidden_mse", "map": "always"}, shapes=same).stateful["hidden_mse"]
    assert [tuple(one.weight.shape) for one in asked.maps] == [(4, 4)] * 2


def test_what_is_asked_of_whom() -> None:
    losses = sum_of({"type": "hidden_mse", "layers": "last", "teachers": ["t"]}, {"type": "soft_targets"})
    assert losses.needs == {"hidden_states/2", "token_mask", "logits"}
    assert losses.outputs_of("t") == ["hidden_states/4", "logits"] and losses.outputs_of("u") == ["logits"]


def test_what_the_classifier_gives_takes_part_with_a_gradient_of_zero() -> None:
    losses = sum_of({"type": "hidden_mse"})
    logits = torch.tensor([[1.0, float("inf")]] * 3, requires_grad=True)
    mask = torch.ones(3, 5, dtype=torch.bool)
    given = {**states(2, 4, 1), "token_mask": mask, "logits": logits}
    total, _, _ = losses(given, {"t": states(4, 6, 2)}, torch.zeros(3).bool())
    total.backward()
    assert logits.grad is not None and not logits.grad.any() and total.isfinite()


def test_one_with_weights_of_its_own_is_called_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    seen: list[Any] = []

    def weights(widths: dict[str, int], *, scale: float) -> nn.Module:
        seen.append((dict(widths), scale))
        return nn.Linear(widths["hidden_states"], widths["teachers.hidden_states"])

    @registry.register(
        "hidden_states", "teachers.hidden_states", "token_mask", layers="last", weights=weights, equal_heads=True
    )
    def regressed(own: nn.Module, student: Any, teacher: Any, mask: Tensor, *, scale: float = 2.0) -> Tensor:
        return scale * (own(student[0]) - teacher[0]).square().mean((1, 2))

    heads = Shapes(STUDENT, {"t": EncoderShape(6, 4, 2)})
    losses = sum_of({"type": "regressed", "scale": 3}, shapes=heads)
    assert seen[0][1] == 3.0 and seen[0][0]["teachers.layers"] == 4 and seen[0][0]["pairs"] == 1
    mask = torch.ones(3, 5, dtype=torch.bool)
    total, _, _ = losses({**states(2, 4, 1), "token_mask": mask}, {"t": states(4, 6, 2)}, torch.zeros(3).bool())
    total.backward()
    assert all(p.grad is not None for p in losses.stateful["regressed"].parameters())
    with pytest.raises(
        InputError,
        match=r"losses\.regressed: compares head by head, and the student has 2 attention heads, its teacher 3",
    ):
        sum_of({"type": "regressed"})


@pytest.mark.parametrize(
    ("term", "shapes", "message"),
    [
        ({}, Shapes(None, {"t": TEACHER}), r"losses\.hidden_mse: the student has no transformer"),
        ({"teachers": ["u"]}, SHAPES, r"losses\.hidden_mse: its teacher u has no transformer"),
        ({}, Shapes(STUDENT, {"t": TEACHER, "u": TEACHER}), r"teachers: compares with the layers of one teacher, found 2"),
        ({"layers": [[1, 7]]}, SHAPES, r"losses\.hidden_mse: layers: the teacher has no layer 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(term: dict[str, Any], shapes: Shapes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sum_of({"type": "hidden_mse", **term}, shapes=shapes)
