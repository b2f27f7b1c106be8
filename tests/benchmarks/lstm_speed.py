"""Training steps of a bidirectional LSTM on a CPU: padded texts (models/recurrent.py) against packed sequences.

    python tests/benchmarks/lstm_speed.py [--rounds 5]

Forward and backward, one thread, own CPU time, the two in turn; of texts whose lengths differ as little as in batches
sorted by length. Prints a line of JSON a shape: seconds packed over seconds padded, median of the rounds (with padded
in bf16 under autocast, too), and the largest differences of states and of gradients relative to the largest gradient.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dtrain.models.recurrent import read_both_ways

SHAPES = ((32, 30, 256, 128), (64, 100, 256, 128), (128, 24, 256, 256), (16, 40, 100, 128))  # B, L, I, H
STEPS = 4
SHORTEST = 0.85  # of the longest text


def compared(shape: tuple[int, int, int, int], rounds: int) -> dict[str, object]:
    rows, tokens, width, hidden = shape
    torch.manual_seed(0)
    lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
    inputs = torch.randn(rows, tokens, width, requires_grad=True)
    lengths = torch.randint(int(SHORTEST * tokens), tokens + 1, (rows,))
    lengths[0] = tokens
    factor = torch.randn(rows, tokens, 2 * hidden)

    def packed() -> Tensor:
        sequence = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(lstm(sequence)[0], batch_first=True)[0]

    def padded() -> Tensor:
        return read_both_ways(lstm, inputs, lengths)

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return padded().float()

    def gradients(forward: Callable[[], Tensor]) -> Tensor:
        found = torch.autograd.grad((forward() * factor).sum(), [inputs, *lstm.parameters()])
        return torch.cat([gradient.flatten() for gradient in found])

    def seconds(forward: Callable[[], Tensor]) -> float:
        begin = time.process_time()
        for _ in range(STEPS):
            gradients(forward)
        return (time.process_time() - begin) / STEPS

    expected, found = gradients(packed), gradients(padded)
    ways = {"packed": packed, "padded": padded, "bf16": in_bf16}
    for way in ways.values():
        seconds(way)
    times = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds)]
    return {
        "shape": shape,
        "milliseconds_packed": round(1000 * statistics.median(each["packed"] for each in times), 1),
        "packed_over_padded": round(statistics.median(each["packed"] / each["padded"] for each in times), 2),
        "packed_over_bf16": round(statistics.median(each["packed"] / each["bf16"] for each in times), 2),
        "states_differ": float((packed() - padded()).detach().abs().max()),
        "gradients_differ": float((expected - found).abs().max() / expected.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in SHAPES:
        print(json.dumps(compared(shape, options.rounds)))


if __name__ == "__main__":
    main()
