"""Bidirectional LSTMs over padded texts against torch's own over packed ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


@pytest.mark.gpu
def test_equals_the_cpu_on_a_gpu() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
    inputs, lengths = torch.randn(5, 9, 8), torch.tensor([9, 1, 4, 7, 9])
    states = read_both_ways(lstm, inputs, lengths)
    on_gpu = read_both_ways(lstm.cuda(), inputs.cuda(), lengths.cuda())
    torch.testing.assert_close(on_gpu.cpu(), states, rtol=1e-3, atol=1e-3)
