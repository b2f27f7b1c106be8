"""Losses on numbers and on sets of labels: hand-worked values in float64, torch's own functions, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dtrain.losses.label_sets import binary_cross_entropy, label_set_annealing, soft_label_sets
from dtrain.losses.numbers import number_annealing, squared_error
from dtrain.losses.objective import build_losses
from dtrain.losses.outputs import logit_regression
from dtrain.recipe.losses import LossSpec

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4


def f64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_squared_error_by_hand() -> None:
    assert squared_error(f64([[2.5], [-1.0]]), f64([4.0, -1.0])).tolist() == [2.25, 0.0]


def test_a_teachers_number_by_hand() -> None:
    # Of two teachers with 1 and 4, the mean 2.5 is the target.
    assert logit_regression(f64([[2.0]]), f64([[3.5]])).tolist() == [2.25]
    assert logit_regression(f64([[2.0]]), f64([[[1.0]], [[4.0]]])).tolist() == [0.25]


def test_number_annealing_by_hand() -> None:
    # y = 4, the teachers' mean is 2; a quarter of the way to `until` the target is 1/4 * 4 + 3/4 * 2 = 2.5.
    student, numbers, labelled = f64([[1.0], [1.0]]), f64([4.0, 99.0]), torch.tensor([True, False])
    teachers = f64([[[1.0], [1.0]], [[3.0], [3.0]]])
    values = number_annealing(student, numbers, labelled, teachers, 0.125, until=0.5)
    assert values.tolist() == [2.25, 0.75 * 1.0]  # without a number: 3/4 (1 - 2)^2
    ended = number_annealing(student, numbers, labelled, teachers, 0.5, until=0.5)
    assert ended.tolist() == [9.0, 0.0]
    alone = number_annealing(student, numbers, labelled, teachers[0], 0.0)
    assert alone.tolist() == [0.0, 0.0]


def test_binary_cross_entropy_by_hand() -> None:
    # sigmoid = [3/4, 1/2]: of the set {first} -(ln 3/4 + ln 1/2) / 2, of no label -(ln 1/4 + ln 1/2) / 2.
    values = binary_cross_entropy(f64([[LN3, 0.0], [LN3, 0.0]]), f64([[1, 0], [0, 0]]))
    assert values.tolist() == pytest.approx([math.log(8 / 3) / 2, math.log(8) / 2], rel=1e-14)


def test_soft_label_sets_by_hand() -> None:
    # At T = 2 the teacher's 2 ln 3 is a probability of 3/4 and the student's 0 one of 1/2; of the second label both say
    # 1/2. KL = 3/4 ln(3/2) + 1/4 ln(1/2), the mean over two labels half of it, times T^2 = 4.
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    values = soft_label_sets(f64([[0.0, 0.0]]), f64([[2 * LN3, 0.0]]), temperature=2.0)
    assert values.item() == pytest.approx(expected, rel=1e-14)
    # 3/4 and 1/4 have the mean 1/2, of which a student that says 1/2 learns nothing more.
    teachers = f64([[[LN3]], [[-LN3]]])
    assert soft_label_sets(f64([[0.0]]), teachers).item() == pytest.approx(0.0, abs=1e-15)


def test_soft_label_sets_of_sure_teachers_are_the_cross_entropy() -> None:
    student, sets = torch.randn(4, 3, dtype=torch.float64), torch.randint(0, 2, (4, 3)).double()
    sure = (2 * sets - 1) * 1000.0  # the sigmoid is 0 or 1 exactly, and 0 ln 0 is 0
    torch.testing.assert_close(soft_label_sets(student, sure), binary_cross_entropy(student, sets), rtol=1e-12, atol=0)


def test_label_set_annealing_by_hand() -> None:
    # Half of the way the target of y = 1 and a teacher's 1/2 is 3/4; the student says 1/2: ln 2 whatever the target.
    student, labelled = f64([[0.0], [0.0]]), torch.tensor([True, False])
    teacher, sets = f64([[0.0], [0.0]]), f64([[1.0], [1.0]])
    values = label_set_annealing(student, sets, labelled, teacher, 0.5)
    assert values.tolist() == pytest.approx([math.log(2), math.log(2) / 2], rel=1e-14)
    # The student says 3/4: -(3/4 ln 3/4 + 1/4 ln 1/4) with the label, half of -(1/2 ln 3/4 + 1/2 ln 1/4) without.
    values = label_set_annealing(f64([[LN3], [LN3]]), sets, labelled, teacher, 0.5)
    own, taught = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), -(math.log(0.75) + math.log(0.25)) / 2
    assert values.tolist() == pytest.approx([own, taught / 2], rel=1e-14)
    two = torch.stack([teacher + LN3, teacher - LN3])  # the mean of 3/4 and 1/4
    again = label_set_annealing(f64([[LN3], [LN3]]), sets, labelled, two, 0.5)
    torch.testing.assert_close(again, values, rtol=1e-14, atol=0)


def test_against_torch() -> None:
    torch.manual_seed(0)
    logits, sets = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 2, (6, 5)).double()
    expected = functional.binary_cross_entropy_with_logits(logits, sets)
    torch.testing.assert_close(binary_cross_entropy(logits, sets).mean(), expected, rtol=1e-14, atol=0)
    numbers = torch.randn(6, dtype=torch.float64)
    expected = functional.mse_loss(logits[:, 0], numbers)
    torch.testing.assert_close(squared_error(logits[:, :1], numbers).mean(), expected, rtol=1e-14, atol=0)


SETS, LABELLED = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).double(), torch.tensor([True, False])
LOSSES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "squared_error": (1, lambda z: squared_error(z, f64([0.3, -2.0]))),
    "number_annealing": (1, lambda z: number_annealing(z, f64([0.3, 9.0]), LABELLED, f64([[[1.0], [2.0]]] * 2), 0.3)),
    "binary_cross_entropy": (3, lambda z: binary_cross_entropy(z, SETS)),
    "soft_label_sets": (3, lambda z: soft_label_sets(z, f64([[[0.5, -1.0, 2.0]] * 2] * 2), temperature=1.7)),
    "label_set_annealing": (3, lambda z: label_set_annealing(z, SETS, LABELLED, f64([[0.5, -1.0, 2.0]] * 2), 0.3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    width, loss = LOSSES[name]
    torch.manual_seed(1)
    logits = torch.randn(2, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for width, loss in LOSSES.values():
        assert loss(torch.ones(2, width, dtype=dtype)).dtype in (torch.float32, torch.float64)


def test_rows_without_a_number_lack_the_hard_term_and_no_other() -> None:
    specs = [LossSpec(type="squared_error"), LossSpec(type="logit_regression", weight=0.5)]
    known = {"logits": f64([[1.0], [2.0]]), "numbers": f64([3.0, 7.0])}
    total, sums, counts = build_losses(specs)(
        known, {"t": {"logits": f64([[0.0], [0.0]])}}, torch.tensor([True, False])
    )
    assert sums == {"squared_error": 4.0, "logit_regression": 5.0}
    assert counts == {"squared_error": 1, "logit_regression": 2} and total.item() == 4.0 + 0.5 * 5.0
