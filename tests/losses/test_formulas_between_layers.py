"""Formulas on hidden states, attention and relations: numbers worked out by hand, loops, gradients, and padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dtrain.losses import over_rows, over_tokens, relations, states

LENGTHS = (1, 2, 4, 5)  # of the rows; the longest fills the batch
B, N, H = len(LENGTHS), 5, 6
MASK = torch.arange(N)[None, :] < torch.tensor(LENGTHS)[:, None]

Formula = Callable[..., Tensor]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STATES = [drawn(B, N, H, seed=seed) for seed in range(4)]
OTHER_WIDTH = [drawn(B, N, 8, seed=seed) for seed in (4, 5)]
SCORES = [drawn(B, 3, N, N, seed=seed) for seed in (6, 7)]
SPREAD = torch.linspace(-1, 2, H, dtype=torch.float64)

# By name: the formula of (student's, teacher's, mask), and its inputs.
FORMULAS: dict[str, tuple[Formula, list[Tensor], list[Tensor]]] = {
    "squared_difference": (lambda s, t, m: states.squared_difference(*s, *t, m), STATES[:1], STATES[1:2]),
    "angle": (lambda s, t, m: states.angle(*s, *t, m), STATES[:1], STATES[1:2]),
    "hint": (lambda s, t, m: states.hint(*s, *t, m), STATES[:1], STATES[1:2]),
    "gaussian": (
        lambda s, t, m: states.gaussian(s[0], SPREAD.to(torch.promote_types(s[0].dtype, torch.float32)), t[0], m, 1e-3),
        STATES[:1],
        STATES[1:2],
    ),
    "scores_difference": (lambda s, t, m: relations.scores_difference(*s, *t, m), SCORES[:1], SCORES[1:]),
    "attention_divergence": (lambda s, t, m: relations.attention_divergence(*s, *t, m), SCORES[:1], SCORES[1:]),
    "relation_divergence": (
        lambda s, t, m: relations.relation_divergence(*s, *t, m, 2),
        STATES[:1],
        OTHER_WIDTH[:1],
    ),
    "activation_maps": (lambda s, t, m: relations.activation_maps(*s, *t, m, 2.0), STATES[:1], OTHER_WIDTH[:1]),
    "activation_maps_4": (lambda s, t, m: relations.activation_maps(*s, *t, m, 4.0), STATES[:1], OTHER_WIDTH[:1]),
    "gradient_difference": (lambda s, t, m: relations.gradient_difference(*s, *t, m), STATES[:1], STATES[1:2]),
    "flow_difference": (lambda s, t, m: relations.flow_difference(*s, *t, m), STATES[:2], STATES[2:]),
}


def value(name: str) -> Tensor:
    formula, student, teacher = FORMULAS[name]
    return formula(student, teacher, MASK)


def plain(tensor: Tensor) -> list:
    return tensor.tolist()


# --- loops, which know of nothing but lists ----------------------------------------------------------------


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def product(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def norm(x: list[float]) -> float:
    return math.sqrt(product(x, x))


def by_loops(name: str, row: int) -> float:
    """The value of one row, from its unpadded tokens alone."""
    tokens = range(LENGTHS[row])
    _, student, teacher = FORMULAS[name]
    s = [plain(one[row]) for one in student]
    t = [plain(one[row]) for one in teacher]
    n = len(tokens)
    if name == "squared_difference":
        return sum((s[0][i][c] - t[0][i][c]) ** 2 / H for i in tokens for c in range(H)) / n
    if name == "angle":
        return sum(1 - product(s[0][i], t[0][i]) / (norm(s[0][i]) * norm(t[0][i])) for i in tokens) / n
    if name == "hint":
        return sum((s[0][i][c] - t[0][i][c]) ** 2 for i in tokens for c in range(H)) / 2 / n
    if name == "gaussian":
        variances = [math.log(1 + math.exp(alpha)) + 1e-3 for alpha in plain(SPREAD)]
        terms = [
            math.log(math.sqrt(variances[c])) + (t[0][i][c] - s[0][i][c]) ** 2 / (2 * variances[c])
            for i in tokens
            for c in range(H)
        ]
        return sum(terms) / n
    if name == "scores_difference":
        pairs = [(s[0][a][i][j] - t[0][a][i][j]) ** 2 for a in range(3) for i in tokens for j in tokens]
        return sum(pairs) / len(pairs)
    if name == "attention_divergence":
        found = [
            divergence(softmax(t[0][a][i][:n]), softmax(s[0][a][i][:n]))  #
            for a in range(3)
            for i in tokens
        ]
        return sum(found) / len(found)
    if name == "relation_divergence":

        def related(vectors: list[list[float]], head: int, i: int) -> list[float]:
            width = len(vectors[0]) // 2
            cut = [vector[head * width : (head + 1) * width] for vector in vectors]
            return softmax([product(cut[i], cut[j]) / math.sqrt(width) for j in tokens])

        found = [divergence(related(t[0], a, i), related(s[0], a, i)) for a in range(2) for i in tokens]
        return sum(found) / len(found)
    if name.startswith("activation_maps"):
        power = 4 if name.endswith("4") else 2

        def normed(vectors: list[list[float]]) -> list[float]:
            sums = [sum(abs(x) ** power for x in vectors[i]) for i in tokens]
            return [one / norm(sums) for one in sums]

        return norm([a - b for a, b in zip(normed(s[0]), normed(t[0]), strict=True)])
    if name == "gradient_difference":
        return norm([s[0][i][c] - t[0][i][c] for i in tokens for c in range(H)])
    assert name == "flow_difference"

    def flow(of: list[list[list[float]]], a: int, b: int) -> float:
        return sum(of[0][i][a] * of[1][i][b] for i in tokens) / n

    return sum((flow(t, a, b) - flow(s, a, b)) ** 2 for a in range(H) for b in range(H)) / H**2


@pytest.mark.parametrize("name", FORMULAS)
def test_against_loops(name: str) -> None:
    expected = [by_loops(name, row) for row in range(B)]
    torch.testing.assert_close(value(name), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients(name: str) -> None:
    formula, student, teacher = FORMULAS[name]
    moved = [one.clone().requires_grad_() for one in student]
    assert torch.autograd.gradcheck(lambda *s: formula(list(s), teacher, MASK), moved)


def test_gradients_of_a_spread() -> None:
    moved = SPREAD.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda spread: states.gaussian(STATES[0], spread, STATES[1], MASK, 1e-3), moved)


@pytest.mark.parametrize("name", FORMULAS)
def test_padding_changes_nothing(name: str) -> None:
    """Neither what stands there, up to numbers like a mask's own, nor how much of it there is."""
    formula, student, teacher = FORMULAS[name]

    def spoiled(one: Tensor) -> Tensor:
        wider = functional.pad(one, (0, 3, 0, 3) if one.dim() == 4 else (0, 0, 0, 3))
        mask = functional.pad(MASK, (0, 3))
        kept = mask[:, None, :, None] & mask[:, None, None, :] if one.dim() == 4 else mask[:, :, None]
        return wider.masked_fill(~kept, -1e4)

    wide = functional.pad(MASK, (0, 3))
    moved = [one.clone().requires_grad_() for one in student]
    again = [one.clone().requires_grad_() for one in student]
    first = formula(moved, teacher, MASK)
    second = formula([spoiled(one) for one in again], [spoiled(one) for one in teacher], wide)
    torch.testing.assert_close(second, first, rtol=1e-12, atol=1e-13)
    first.sum().backward()
    second.sum().backward()
    for one, other in zip(moved, again, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-11, atol=1e-13)
        padded = ~(MASK[:, :, None] if one.dim() == 3 else MASK[:, None, :, None] & MASK[:, None, None, :])
        assert not other.grad.masked_select(padded).any()


@pytest.mark.parametrize("name", FORMULAS)
def test_a_teacher_teaches_itself_nothing(name: str) -> None:
    if name == "gaussian":
        pytest.skip("a likelihood: its least value is not 0")
    formula, student, _ = FORMULAS[name]
    found = formula(student, student, MASK)
    torch.testing.assert_close(found, torch.zeros(B, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_in_full_precision_under_autocast(name: str) -> None:
    """The same numbers as without autocast, and half-precision inputs are computed with in float32."""
    formula, student, teacher = FORMULAS[name]
    halves = [[one.to(torch.bfloat16) for one in side] for side in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        found = formula(*halves, MASK)
    assert found.dtype == torch.float32
    wanted = formula(*[[one.double() for one in side] for side in halves], MASK)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_finite_where_nothing_differs() -> None:
    """The norms of the two kinds of attention transfer have no derivative at 0; theirs is taken as 0."""
    for name in ("activation_maps", "gradient_difference"):
        formula, student, _ = FORMULAS[name]
        moved = [one.clone().requires_grad_() for one in student]
        formula(moved, student, MASK).sum().backward()
        assert moved[0].grad is not None and not moved[0].grad.any()


def test_maps_that_differ_by_rounding_are_equal() -> None:
    single = [STATES[0].float().requires_grad_()]
    found = relations.activation_maps(single[0], STATES[0].float() * 3.1, MASK, 2.0)
    assert found.tolist() == [0.0] * B
    found.sum().backward()
    assert single[0].grad is not None and not single[0].grad.any()


def test_a_row_without_tokens_counts_nothing() -> None:
    empty = torch.zeros_like(MASK)
    for name in ("squared_difference", "attention_divergence", "flow_difference", "scores_difference"):
        formula, student, teacher = FORMULAS[name]
        assert formula(student, teacher, empty).tolist() == [0.0] * B


# --- by hand -------------------------------------------------------------------------------------------------


def one(*numbers: list[float]) -> Tensor:
    """One row of states."""
    return torch.tensor([numbers], dtype=torch.float64)


BOTH = torch.tensor([[True, True]])


def test_states_by_hand() -> None:
    student, teacher = one([1.0, 2.0], [0.0, 3.0]), one([1.0, 0.0], [4.0, 3.0])
    assert states.squared_difference(student, teacher, BOTH).item() == (4 / 2 + 16 / 2) / 2
    assert states.hint(student, teacher, BOTH).item() == (4 / 2 + 16 / 2) / 2  # of two channels the same number
    assert states.angle(student, teacher, BOTH).item() == pytest.approx((1 - 1 / math.sqrt(5) + 1 - 0.6) / 2)
    # softplus(0) = ln 2; with a floor of 1 - ln 2 every variance is 1, and its logarithm 0
    unit = states.gaussian(student, torch.zeros(2, dtype=torch.float64), teacher, BOTH, 1 - math.log(2))
    assert unit.item() == pytest.approx((4 / 2 + 16 / 2) / 2)


def test_attention_by_hand() -> None:
    ln3 = math.log(3)
    student = torch.tensor([[[[0.0, 0.0], [0.0, ln3]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[0.0, ln3], [0.0, ln3]]]], dtype=torch.float64)
    assert relations.scores_difference(student, teacher, BOTH).item() == pytest.approx(ln3**2 / 4)
    expected = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2  # KL((1/4, 3/4) || (1/2, 1/2)), and 0
    assert relations.attention_divergence(student, teacher, BOTH).item() == pytest.approx(expected)
    first = torch.tensor([[True, False]])  # a token that sees nothing but itself
    assert relations.attention_divergence(student, teacher, first).item() == 0


def test_relations_by_hand() -> None:
    """One head of width 1: products x_i x_j; the teacher's (0, ln 3) relates its second token by (1, 3) for ln 3."""
    root = math.sqrt(math.log(3))
    found = relations.relation_divergence(one([0.0], [0.0]), one([0.0], [root]), BOTH, 1)
    assert found.item() == pytest.approx((0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2)


def test_transfer_by_hand() -> None:
    # Q is (9 + 16, 0) = (25, 0) of the student, and (0, 4) of the teacher: unit vectors at right angles
    student, teacher = one([3.0, 4.0], [0.0, 0.0]), one([0.0, 0.0], [2.0, 0.0])
    assert relations.activation_maps(student, teacher, BOTH, 2.0).item() == pytest.approx(math.sqrt(2))
    assert relations.gradient_difference(student, teacher, BOTH).item() == pytest.approx(math.sqrt(9 + 16 + 4))
    # G of the student is [3; 4] [1] / 2 = (1.5, 2), that of the teacher (0, 0) + (2, 0) 5 / 2 = (5, 0)
    found = relations.flow_difference(student, one([1.0], [7.0]), teacher, one([9.0], [5.0]), BOTH)
    assert found.item() == pytest.approx(((5 - 1.5) ** 2 + 2**2) / 2)


# --- pairs of rows -------------------------------------------------------------------------------------------


def test_pooled_rows() -> None:
    found = over_rows.pooled(STATES[0], MASK)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[row], STATES[0][row, :length].mean(0))


def alone(*counted: bool) -> over_rows.AllRows:
    return over_rows.AllRows(torch.tensor(counted), lambda rows: rows)


def test_similarities_by_hand() -> None:
    """Rows at right angles give the unit matrix; two that are the same, 1/sqrt(2) everywhere."""
    apart = torch.eye(2, dtype=torch.float64)
    alike = torch.ones(2, 3, dtype=torch.float64)
    values = over_rows.similarity_difference(apart, alike, alone(True, True))
    difference = (1 - math.sqrt(0.5)) ** 2 + 0.5
    assert values.tolist() == pytest.approx([difference / 2] * 2)
    assert values.sum().item() / 2 == pytest.approx(2 * difference / 4)  # ||G_t - G_s||^2 / 2^2


def test_rows_that_do_not_count_change_nothing() -> None:
    student, teacher = drawn(4, 3, seed=1), drawn(4, 5, seed=2)
    found = over_rows.similarity_difference(student, teacher, alone(True, True, True, False))
    fewer = over_rows.similarity_difference(student[:3], teacher[:3], alone(True, True, True))
    torch.testing.assert_close(found[:3], fewer)


def test_gradients_of_similarities() -> None:
    moved, teacher = drawn(4, 3, seed=1).requires_grad_(), drawn(4, 5, seed=2)
    counted = alone(True, True, False, True)
    assert torch.autograd.gradcheck(lambda rows: over_rows.similarity_difference(rows, teacher, counted), moved)
    hidden = STATES[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: over_rows.pooled(one, MASK), hidden)


def test_means_by_hand() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert over_tokens.mean_over_tokens(torch.tensor([[3.0, 9.0], [1.0, 2.0]]), mask).tolist() == [3.0, 1.5]
    values = torch.tensor([[[[5.0, 9.0], [9.0, 9.0]]], [[[1.0, 2.0], [3.0, 6.0]]]])
    assert over_tokens.mean_over_pairs(values, mask).tolist() == [5.0, 3.0]
