"""LSTMs in the form that exporters can follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.recurrent import InPlaceOfLSTM, read_padded

# torch's gates i, f, g, o in ONNX's order i, o, f, c.
ORDER = (0, 3, 1, 2)


class OnnxLSTM(InPlaceOfLSTM):
    """One ONNX node `LSTM` for each layer, which is told the length of each text.

    So padding is never read, and both directions begin at an end of the text. torch's exporter would turn a layer into a loop
    over tokens, or into one for texts of a fixed length.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.hidden, self.layers = lstm.hidden_size, lstm.num_layers
        for layer in range(lstm.num_layers):
            biases = torch.cat([_both_ways(lstm, f"bias_{kind}_l{layer}") for kind in ("ih", "hh")], dim=1)
            self._add(f"inputs_{layer}", _both_ways(lstm, f"weight_ih_l{layer}"))
            self._add(f"states_{layer}", _both_ways(lstm, f"weight_hh_l{layer}"))
            self._add(f"biases_{layer}", biases)

    def read_both_ways(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        states = inputs.transpose(0, 1)
        for layer in range(self.layers):
            weights = [self.get_parameter(f"{kind}_{layer}") for kind in ("inputs", "states", "biases")]
            found = torch.onnx.ops.symbolic(
                "LSTM",
                (states, *weights, lengths.int()),
                {"hidden_size": self.hidden, "direction": "bidirectional"},
                dtype=torch.float32,
                shape=(states.shape[0], 2, states.shape[1], self.hidden),
            )
            states = found.transpose(1, 2).flatten(2)
        return states.transpose(0, 1)

    def _add(self, name: str, weight: Tensor) -> None:
        self.register_parameter(name, nn.Parameter(weight, requires_grad=False))


class PaddedLSTM(InPlaceOfLSTM):
    """The same computation as on a CPU here, in a form that a program of torch.export can hold.

    Such a program cannot depend on a tensor's values, so it does not look for the longest text. torch would unroll
    `torch.lstm` over as many tokens as the example has, so oneDNN's operator, which `torch.lstm` calls on a CPU, is called
    directly.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def read_both_ways(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        return read_padded(self.lstm, inputs, lengths.long(), _one_way)


def _one_way(lstm: nn.LSTM, inputs: Tensor, name: str) -> Tensor:
    weights = [getattr(lstm, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    start = inputs.new_zeros(1, inputs.shape[0], lstm.hidden_size)
    # reverse, sizes of packed batches, mode (2: LSTM), hidden size, layers, biases, both ways, batch first, training
    how: tuple[Any, ...] = (False, [], 2, lstm.hidden_size, 1, True, False, False, False)
    found = torch.ops.aten.mkldnn_rnn_layer(inputs.transpose(0, 1).contiguous(), *weights, start, start, *how)
    states: Tensor = found[0].transpose(0, 1)
    return states


def _both_ways(lstm: nn.LSTM, name: str) -> Tensor:
    """A weight of both directions, [2, 4 H, ...], gates in ONNX's order."""
    found = []
    for suffix in ("", "_reverse"):
        gates = getattr(lstm, name + suffix).detach().float().chunk(4)
        found.append(torch.cat([gates[place] for place in ORDER]))
    return torch.stack(found)
