"""Bidirectional LSTMs over texts of different lengths: packed on a GPU, padded on a CPU.

cuDNN reads packed sequences fast. On a CPU, torch reads them one token at a time, and oneDNN's LSTM computes padded
texts and their gradients several times faster. So there the backward direction reads each text reversed within its own
length, which puts padding last in both directions. Large batches are read in groups of texts of similar length: in a
batch of 128 titles, half the positions are padding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

POOLINGS = ("final", "max", "mean")
# The fewest texts of a group on a CPU, by the bytes of a number: smaller products lose more time than they save. Groups
# of 32 in float32 made forward and backward 1.08 to 1.21 times as fast at 64 titles, 1.33 to 1.50 at 128; groups of 64
# in bf16 1.14 to 1.31 at 128 (tests/benchmarks/lstm_groups.py).
GROUP = {8: 32, 4: 32, 2: 64}
# Groups are made only where they leave out at least a tenth of the positions, since they are copied out and back.
WORTH = 0.9


class InPlaceOfLSTM(nn.Module):
    """The base of modules that replace a model's LSTM where an export format needs another form (dtrain/export)."""

    def read_both_ways(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """The states of the LSTM; arguments and result as of the function `read_both_ways`."""
        raise NotImplementedError


def read_both_ways(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
    """The states of a bidirectional LSTM (`batch_first`, no dropout between layers) over texts padded on the right.

    Args:
        lstm: of input size I and hidden size H.
        inputs: float [B, L, I]; any finite numbers may stand after a text's end.
        lengths: [B], each at least 1 and at most L.

    Returns:
        [B, L, 2 H], zero after a text's end.
    """
    if isinstance(lstm, InPlaceOfLSTM):
        return lstm.read_both_ways(inputs, lengths)
    lengths = lengths.long()
    if inputs.device.type == "cpu":
        longest = int(lengths.max())
        states = _in_groups(lstm, inputs[:, :longest], lengths)
    else:
        on_host = lengths.cpu()  # the only wait for the device: packing needs each length on the host
        longest = int(on_host.max())
        states = _packed(lstm, inputs, on_host)
    return functional.pad(states, (0, 0, 0, inputs.shape[1] - longest))


def pooled(states: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """One vector per text, [B, 2 H], from the states that `read_both_ways` returns.

    'final' is tanh of the state of each direction at its last token; 'max' and 'mean' are taken over a text's tokens.
    """
    if pooling == "final":
        before, after = states.chunk(2, dim=-1)
        last = before[torch.arange(states.shape[0], device=states.device), lengths.long() - 1]
        return torch.cat([last, after[:, 0]], dim=1).tanh()
    if pooling == "max":
        beyond = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        return states.masked_fill(beyond[..., None], -torch.inf).amax(1)
    return states.sum(1) / lengths[:, None]


def _packed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
    """[B, longest, 2 H] from packed sequences, by cuDNN's kernel; `lengths` [B] are on the CPU.

    Neither `lstm.forward` nor autocast is used. `lstm.forward` makes cuDNN move the weights into one piece of memory:
    the weights that FSDP2 gathers would from then on be stale copies, and the model would silently train on wrong
    weights. Autocast would compute in float16 where bfloat16 was asked for (`aten/src/ATen/cudnn/AutocastRNN.cpp`),
    without the loss scaling that float16 needs. cuDNN's LSTMs do not support bfloat16: they are computed in float32,
    and the states are rounded to bfloat16.
    """
    device, asked = inputs.device.type, inputs.dtype
    if torch.is_autocast_enabled(device) and asked != torch.float64:
        asked = torch.get_autocast_dtype(device)
    dtype = torch.float32 if asked == torch.bfloat16 else asked
    weights = [getattr(lstm, name) for name in weight_names(lstm)]
    with torch.autocast(device, enabled=False):
        # Sorted here because `pack_padded_sequence` would wait for the device to sort back.
        sizes, order = lengths.sort(descending=True)
        there, back = (places.to(inputs.device, non_blocking=True) for places in (order, order.argsort()))
        packed = pack_padded_sequence(inputs.to(dtype).index_select(0, there), sizes, batch_first=True)
        start = inputs.new_zeros(2 * lstm.num_layers, len(lengths), lstm.hidden_size, dtype=dtype)
        with warnings.catch_warnings():
            # Weights that are not in one piece are copied at each call, as FSDP2 gathers them anew at each call.
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
            # has_biases, num_layers, dropout, train, bidirectional
            states = torch.lstm(
                packed.data,
                packed.batch_sizes,
                (start, start),
                [weight.to(dtype) for weight in weights],
                True,
                lstm.num_layers,
                0.0,
                lstm.training,
                True,
            )[0]
        whole, _ = pad_packed_sequence(PackedSequence(states, packed.batch_sizes), batch_first=True)
        return whole.index_select(0, back).to(asked)


def weight_names(lstm: nn.LSTM) -> list[str]:
    """Attributes of a bidirectional LSTM's weights, in the order in which torch's kernels take them."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ways = ("", "_reverse")
    return [f"{kind}_l{layer}{way}" for layer in range(lstm.num_layers) for way in ways for kind in kinds]


def _in_groups(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
    """`read_padded` of one group of texts of similar length after another, where that leaves out much padding.

    As there, [B, L, I] and int64 lengths [B] -> [B, L, 2 H].
    """
    rows, tokens, _ = inputs.shape
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
    order = lengths.argsort(stable=True)
    groups = order.tensor_split(max(1, rows // GROUP[dtype.itemsize]))
    longest = [int(lengths[group[-1]]) for group in groups]
    places = sum(len(group) * most for group, most in zip(groups, longest, strict=True))
    if places > WORTH * rows * tokens:
        return read_padded(lstm, inputs, lengths)
    states = []
    for group, most in zip(groups, longest, strict=True):
        read = read_padded(lstm, inputs.index_select(0, group)[:, :most], lengths[group])
        states.append(functional.pad(read, (0, 0, 0, tokens - most)))
    return torch.cat(states).index_select(0, order.argsort())


OneWay = Callable[[nn.LSTM, Tensor, str], Tensor]


def read_padded(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, one_way: OneWay | None = None) -> Tensor:
    """`read_both_ways` on a CPU, with int64 lengths; Python reads none of their values.

    Args:
        one_way: computes one direction of one layer, [B, L, I] -> [B, L, H]; its last argument is how the names of the
            weights end, as `l0_reverse`.
    """
    one_way = one_way or _one_way
    rows, tokens, _ = inputs.shape
    places = torch.arange(tokens)
    beyond = (places >= lengths[:, None])[..., None]
    # Reverses each text and leaves padding where it is; this permutation is its own inverse.
    turned = torch.where(beyond[..., 0], places, lengths[:, None] - 1 - places) + tokens * torch.arange(rows)[:, None]
    turned = turned.flatten()
    states = inputs
    for layer in range(lstm.num_layers):
        forward = one_way(lstm, states, f"l{layer}")
        backward = one_way(lstm, _Turned.apply(states, turned), f"l{layer}_reverse")
        states = torch.cat([forward, _Turned.apply(backward, turned)], dim=-1)
    return states.masked_fill(beyond, 0.0)


class _Turned(torch.autograd.Function):
    """Permutes the tokens of [B, L, ...] by an order that is its own inverse, and so their gradients by the same."""

    @staticmethod
    def forward(context: Any, tokens: Tensor, order: Tensor) -> Tensor:
        context.order = order
        return tokens.flatten(0, 1).index_select(0, order).view(tokens.shape)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient.flatten(0, 1).index_select(0, context.order).view(gradient.shape), None


def _one_way(lstm: nn.LSTM, inputs: Tensor, name: str) -> Tensor:
    """[B, L, I] -> [B, L, H] by the weights of one direction of one layer.

    In the dtype of autocast or of the inputs; where the CPU has no kernel for that, computed in float32 and rounded.
    """
    weights = [getattr(lstm, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    dtype = inputs.dtype
    if torch.is_autocast_enabled("cpu") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
    if dtype.itemsize == 2 and not _has_kernel(dtype, torch.is_grad_enabled()):
        with torch.autocast("cpu", enabled=False):
            return _lstm(inputs.float(), [weight.float() for weight in weights], lstm.training).to(dtype)
    return _lstm(inputs, weights, lstm.training)


def _lstm(inputs: Tensor, weights: list[Tensor], training: bool) -> Tensor:
    start = inputs.new_zeros(1, inputs.shape[0], weights[1].shape[1])
    # has_biases, num_layers, dropout, train, bidirectional, batch_first
    return torch.lstm(inputs, (start, start), weights, True, 1, 0.0, training, False, True)[0]


@cache
def _has_kernel(dtype: torch.dtype, gradients: bool) -> bool:
    """Whether this CPU runs an LSTM in a 16-bit type, forward and, with `gradients`, backward.

    oneDNN has such kernels for some instruction sets only: bfloat16 from AVX-512 on, float16 with AVX-512 FP16 and
    then for inference alone. Where it has none torch raises "could not create a primitive descriptor", and there is
    no function to ask beforehand, so a tiny LSTM is tried. It draws no random numbers.
    """
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            shapes = [(1, 1, 1), (4, 1), (4, 1), (4,), (4,)]
            inputs, *weights = [torch.zeros(shape, requires_grad=gradients) for shape in shapes]
            with torch.autocast("cpu", dtype):
                states = _lstm(inputs, weights, gradients)
            if gradients:
                states.sum().backward()
    except RuntimeError:
        return False
    return True
