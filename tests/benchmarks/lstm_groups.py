"""Forward and backward of a bidirectional LSTM on a CPU: all texts of a batch in one piece, or in groups of similar length.

    PYTHONPATH=. python tests/benchmarks/lstm_groups.py TNEWS_FOLDER [--rounds 6] [--width 512 128] [--group 8]

Lengths are those of titles in the order of the file, one thread, milliseconds of the process's own time, the two in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from dtrain.models import recurrent
from dtrain.models.recurrent import read_both_ways, read_padded


def seconds(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, groups: bool, precision: str) -> float:
    begin = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        states = (read_both_ways if groups else read_padded)(lstm, inputs, lengths)
    states.float().square().mean().backward()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="TNEWS_FOLDER")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--width", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--group", type=int, help="the fewest texts of a group (default: the package's)")
    asked = parser.parse_args()
    if asked.group:
        recurrent.GROUP.update(dict.fromkeys(recurrent.GROUP, asked.group))
    with (asked.folder / "train.json").open(encoding="utf-8") as lines:
        sizes = [len(json.loads(next(lines))["sentence"]) for _ in range(128 * (asked.rounds + 1))]
    print(
        "| width | rows | precision | one piece, ms | groups, ms | ratio (least to most) |\n|---|---|---|---:|---:|---:|"
    )
    for width in asked.width:
        torch.manual_seed(0)
        lstm = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        for rows in (16, 64, 128):
            for precision in ("fp32", "bf16"):
                times = []
                for number in range(asked.rounds + 1):
                    lengths = torch.tensor(sizes[number * rows : (number + 1) * rows])
                    inputs = torch.randn(rows, int(lengths.max()), width, requires_grad=True)
                    times.append([seconds(lstm, inputs, lengths, way, precision) for way in (False, True)])
                ratios = [one / two for one, two in times[1:]]
                both = " | ".join(f"{1000 * statistics.median(way):.0f}" for way in zip(*times[1:], strict=True))
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"| {width} | {rows} | {precision} | {both} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
