"""Bidirectional LSTMs over padded texts against torch's own over packed ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dtrain.models import recurrent
from dtrain.models.recurrent import pooled, read_both_ways


def packed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """States [B, L, 2 H] and the final ones of the last layer [B, 2 H], as torch's packed sequences give them."""
    sequence = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    states, (final, _) = lstm(sequence)
    states, _ = pad_packed_sequence(states, batch_first=True, total_length=inputs.shape[1])
    return states, torch.cat([final[-2], final[-1]], dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    layers=st.integers(1, 3),
    extra=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_states_and_gradients_are_those_of_packed_sequences(
    dtype: torch.dtype, tolerance: float, lengths: list[int], layers: int, extra: int, seed: int
) -> None:
    torch.manual_seed(seed)
    lstm = nn.LSTM(7, 5, layers, batch_first=True, bidirectional=True, dtype=dtype)
    inputs = torch.randn(len(lengths), max(lengths) + extra, 7, dtype=dtype, requires_grad=True)
    weights = [inputs, *lstm.parameters()]
    sizes = torch.tensor(lengths)
    expected, _ = packed(lstm, inputs, sizes)
    factor = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * factor).sum(), weights)

    states = read_both_ways(lstm, inputs, sizes)
    gradients = torch.autograd.grad((states * factor).sum(), weights)
    torch.testing.assert_close(states, expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layers", [1, 2])
def test_groups_of_like_length_are_read_as_one(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(7, 5, layers, batch_first=True, bidirectional=True, dtype=torch.float64)
    sizes = torch.tensor([3, 12, 1, 2, 11, 3, 5])
    inputs = torch.randn(7, 14, 7, dtype=torch.float64, requires_grad=True)
    weights = [inputs, *lstm.parameters()]
    factor = torch.randn(7, 14, 10, dtype=torch.float64)
    read: list[tuple[int, int]] = []
    real = recurrent.read_padded

    def counted(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
        read.append((inputs.shape[0], inputs.shape[1]))
        return real(lstm, inputs, lengths)

    monkeypatch.setattr(recurrent, "read_padded", counted)
    found = []
    for group in (32, 2):
        monkeypatch.setitem(recurrent.GROUP, 8, group)
        states = read_both_ways(lstm, inputs, sizes)
        found.append((states, torch.autograd.grad((states * factor).sum(), weights)))
    assert read == [(7, 12), (3, 3), (2, 5), (2, 12)]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    read.clear()
    read_both_ways(lstm, inputs, torch.full((7,), 9))
    assert read == [(7, 9)]  # nothing would be left out


def test_nothing_behind_a_texts_end_matters() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)
    inputs, lengths = torch.randn(3, 6, 4), torch.tensor([2, 6, 1])
    behind = torch.arange(6) >= lengths[:, None]
    states = read_both_ways(lstm, inputs, lengths)
    other = read_both_ways(lstm, inputs.masked_fill(behind[..., None], 1e6), lengths)
    assert torch.equal(other, states)
    assert not states[behind].any() and states[~behind].all()


def test_pooling_final_is_tanh_of_the_final_states() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)
    inputs, lengths = torch.randn(3, 6, 4), torch.tensor([2, 5, 1])
    states, final = packed(lstm, inputs, lengths)
    torch.testing.assert_close(pooled(states, lengths, "final"), final.tanh())
    torch.testing.assert_close(pooled(states, lengths, "mean")[1], states[1, :5].mean(0))
    torch.testing.assert_close(pooled(states, lengths, "max")[1], states[1, :5].amax(0))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Texts are packed, as they are on a GPU; the dtypes that the kernel is asked for."""
    monkeypatch.setattr(recurrent, "read_padded", recurrent._packed)
    kernel, dtypes = torch.lstm, []

    def counted(
        data: Tensor, sizes: Tensor, start: tuple[Tensor, Tensor], weights: list[Tensor], *rest: object
    ) -> object:
        assert {data.dtype} == {tensor.dtype for tensor in (*start, *weights)}
        assert not torch.is_autocast_enabled("cpu")
        dtypes.append(data.dtype)
        return kernel(data, sizes, start, weights, *rest)

    monkeypatch.setattr(torch, "lstm", counted)
    return dtypes


@pytest.mark.parametrize("layers", [1, 2])
def test_packed_texts_have_the_states_and_gradients_of_padded_ones(as_on_a_gpu: list[torch.dtype], layers: int) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 3, layers, batch_first=True, bidirectional=True, dtype=torch.float64)
    inputs, lengths = torch.randn(4, 8, 4, dtype=torch.float64, requires_grad=True), torch.tensor([2, 7, 1, 4])
    weights = [inputs, *lstm.parameters()]
    states = read_both_ways(lstm, inputs, lengths)
    assert states.shape == (4, 8, 6)
    expected, _ = packed(lstm, inputs, lengths)
    torch.testing.assert_close(states, expected)
    factor = torch.randn_like(states)
    mine, theirs = (torch.autograd.grad((found * factor).sum(), weights) for found in (states, expected))
    torch.testing.assert_close(mine, theirs)
    assert as_on_a_gpu[0] == torch.float64


@pytest.mark.parametrize(("asked", "computed"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)])
@pytest.mark.parametrize("by", ["autocast", "weights"])
def test_bfloat16_is_not_computed_in_float16_on_a_gpu(
    as_on_a_gpu: list[torch.dtype], asked: torch.dtype, computed: torch.dtype, by: str
) -> None:
    """cuDNN has no bfloat16 for LSTMs, and autocast there takes float16 for it, which needs a loss scale."""
    lstm = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
    inputs, lengths = torch.randn(2, 5, 4), torch.tensor([5, 2])
    if by == "weights":  # a model that ZeRO keeps in 16 bits
        lstm, inputs = lstm.to(asked), inputs.to(asked)
    with torch.autocast("cpu", asked, enabled=by == "autocast"):
        states = read_both_ways(lstm, inputs, lengths)
    assert as_on_a_gpu == [computed]
    assert states.dtype == asked


@pytest.mark.gpu
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16])
def test_autocast_on_a_gpu_computes_near_float32(asked: torch.dtype) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True).cuda()
    inputs, lengths = torch.randn(5, 9, 8, device="cuda"), torch.tensor([9, 1, 4, 7, 9], device="cuda")
    exact = read_both_ways(lstm, inputs, lengths)
    with torch.autocast("cuda", asked):
        states = read_both_ways(lstm, inputs, lengths)
    assert states.dtype == asked
    # One rounding of the result where the recurrence is float32; float16 rounds at each step, to 11 bits.
    torch.testing.assert_close(states.float(), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.gpu
def test_equals_the_cpu_on_a_gpu() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
    inputs, lengths = torch.randn(5, 9, 8), torch.tensor([9, 1, 4, 7, 9])
    states = read_both_ways(lstm, inputs, lengths)
    on_gpu = read_both_ways(lstm.cuda(), inputs.cuda(), lengths.cuda())
    torch.testing.assert_close(on_gpu.cpu(), states, rtol=1e-3, atol=1e-3)
