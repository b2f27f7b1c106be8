"""Dropout's masks on a CPU: distributed as they should be, functions of the seed alone, and torch's own elsewhere."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dtrain.training.bernoulli import BLOCK, FEW, draw, fast_bernoulli

COUNT = 1 << 21


def numbers(count: int, p: float, seed: int) -> np.ndarray:
    return draw(count, p, torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture
def fast() -> Iterator[None]:
    with fast_bernoulli():
        yield


@pytest.mark.parametrize("p", [0.9, 0.5, 1 / 3, 0.75, 1e-3, 0.9985, 200 / 256])
def test_the_share_of_ones_is_within_binomial_bounds(p: float) -> None:
    """Without the second draw, for a byte that does not decide, 0.9 would be 230 / 256, which is 7 deviations below."""
    low, high = stats.binom.interval(1 - 1e-4, COUNT, p)
    assert low <= numbers(COUNT, p, seed=5).sum() <= high
    generator = torch.Generator().manual_seed(6)
    assert low <= sum(int(draw(FEW // 2, p, generator).sum()) for _ in range(2 * COUNT // FEW)) <= high


def test_probabilities_zero_and_one_are_exact(fast: None) -> None:
    values = torch.full((1000,), 7.0)
    assert values.bernoulli_(0.0).sum() == 0
    assert values.bernoulli_(1.0).sum() == 1000


def test_numbers_are_independent_of_each_other_and_of_other_calls() -> None:
    """Neighbours at several distances (bytes of a word, words, blocks), calls and seeds that follow each other."""
    drawn = numbers(COUNT, 0.9, seed=5)
    generator = torch.Generator().manual_seed(5)
    calls = [draw(COUNT, 0.9, generator).numpy() for _ in range(2)]
    assert np.array_equal(calls[0], drawn)
    others = [drawn[shift:] for shift in (1, 2, 7, 8, 64, BLOCK)] + [numbers(COUNT, 0.9, seed=6), calls[1]]
    for other in others:
        table = np.bincount(2 * drawn[: len(other)] + other, minlength=4).reshape(2, 2)
        assert stats.chi2_contingency(table).pvalue > 1e-4
    counts = drawn.reshape(-1, 8).sum(0)
    assert stats.chisquare(counts).pvalue > 1e-4  # by the place of a byte in its word


def test_the_numbers_of_a_seed_stay_the_same() -> None:
    """With others, a run that a newer dtrain or torch continues would change midway; the changelog should say so."""
    assert np.packbits(numbers(48, 0.9, seed=2**62 + 1)).tobytes().hex() == "ffffdffef77f"
    many = hashlib.sha256(numbers(BLOCK + 1000, 0.9, seed=3).tobytes()).hexdigest()
    assert many[:16] == "e530ec5145e027b9"


@pytest.mark.parametrize("shape", [(300, 500), (30, 50)])
def test_numbers_depend_on_the_seed_alone(fast: None, shape: tuple[int, int]) -> None:
    """Not on the number of threads, the dtype, the order in memory, or on whether the generator is torch's default."""

    def drawn(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        torch.manual_seed(11)
        return values.bernoulli_(0.7, generator=generator)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = drawn(torch.empty(shape))
        torch.set_num_threads(2)
        assert torch.equal(drawn(torch.empty(shape)), expected)
    finally:
        torch.set_num_threads(before)
    for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.float64, torch.int64):
        assert torch.equal(drawn(torch.empty(shape, dtype=dtype)).float(), expected), dtype
    turned = torch.empty(shape[::-1]).T
    assert torch.equal(drawn(turned), expected) and not turned.is_contiguous()
    assert torch.equal(drawn(torch.empty(shape), torch.Generator().manual_seed(11)), expected)
    torch.manual_seed(11)
    assert not torch.equal(torch.empty(2, *shape).bernoulli_(0.7)[1], expected)
    assert not torch.equal(torch.empty(shape).bernoulli_(0.7), expected)


def test_what_torch_refuses_is_refused(fast: None) -> None:
    with pytest.raises(RuntimeError, match=r"p to be in \[0, 1\]"):
        torch.empty(3).bernoulli_(1.5)
    assert torch.empty(0, 4).bernoulli_(0.5).shape == (0, 4)


def test_outside_the_region_everything_is_torchs() -> None:
    def drawn() -> Tensor:
        torch.manual_seed(0)
        return torch.empty(1000).bernoulli_(0.5)

    own = drawn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outer = fast_bernoulli()
        with outer:
            ours = drawn()
            with fast_bernoulli():
                assert torch.equal(drawn(), ours)
            assert torch.equal(drawn(), ours)
            with pytest.raises(ZeroDivisionError), fast_bernoulli():
                raise ZeroDivisionError
            assert torch.equal(drawn(), ours)
    assert not torch.equal(ours, own)
    assert torch.equal(drawn(), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_and_its_gradient_are_torchs_formula_with_the_same_mask(fast: None, dtype: torch.dtype) -> None:
    inputs = torch.randn(64, 512, dtype=dtype).requires_grad_()
    torch.manual_seed(4)
    outputs = functional.dropout(inputs, 0.1)
    outputs.backward(torch.full_like(outputs, 2.0))
    torch.manual_seed(4)
    noise = torch.empty(64, 512, dtype=dtype).bernoulli_(0.9) / 0.9
    assert torch.equal(outputs, inputs * noise)
    assert inputs.grad is not None and torch.equal(inputs.grad, 2.0 * noise)
    assert 0.05 < float((outputs == 0).float().mean()) < 0.15


def dropped(inputs: Tensor) -> Tensor:
    return functional.dropout(inputs, 0.4).square()


def attended(inputs: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(inputs, inputs, inputs, dropout_p=0.4)


@pytest.mark.parametrize("function", [dropped, attended])
def test_gradients_of_gradients(fast: None, function: Callable[[Tensor], Tensor]) -> None:
    def seeded(inputs: Tensor) -> Tensor:
        torch.manual_seed(8)
        return function(inputs)

    inputs = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert (seeded(inputs) - function(inputs)).abs().max() > 0  # the masks matter
    assert torch.autograd.gradcheck(seeded, inputs)
    assert torch.autograd.gradgradcheck(seeded, inputs)


def test_activation_checkpointing_draws_the_same_masks_again(fast: None) -> None:
    found = []
    for again in (False, True):
        inputs = torch.linspace(-1, 1, 600).view(20, 30).requires_grad_()
        torch.manual_seed(2)
        outputs = checkpoint(dropped, inputs, use_reentrant=False) if again else dropped(inputs)
        functional.dropout(outputs, 0.5).sum().backward()
        assert inputs.grad is not None
        found.append(inputs.grad)
    assert torch.equal(*found)


def test_masks_within_torchs_modules_are_drawn_here(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, attention and the layers of an LSTM; nothing is drawn in eval mode, nor where nothing is dropped."""
    drawn: list[int] = []

    def counting(count: int, p: float, generator: torch.Generator | None) -> Tensor:
        drawn.append(count)
        return draw(count, p, generator)

    monkeypatch.setattr("dtrain.training.bernoulli.draw", counting)
    inputs = torch.randn(2, 5, 8)
    lstm = nn.LSTM(8, 8, num_layers=3, dropout=0.5, batch_first=True)
    dropout, attention = nn.Dropout(0.1), nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
    for module in (lstm, dropout):
        module(inputs)
    attention(inputs, inputs, inputs, need_weights=False)
    assert drawn == [80, 80, 80, 2 * 2 * 5 * 5]
    for module in (lstm.eval(), dropout.eval(), nn.Dropout(0.0), nn.Dropout(1.0)):
        module(inputs)
    assert len(drawn) == 4
