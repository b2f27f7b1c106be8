"""Held-out loss of runs against the rows that were trained on, from what TensorBoard has been written.

    python tests/benchmarks/loss_curves.py runs/adamw_256 runs/lamb_256 ... [--tag valid/loss] [--part pretrain/phase-1]
                                           [--every 25000]

Prints a Markdown table: a line every so many rows, a column a run. An epoch's last batch is smaller than the others,
which is counted; between two evaluations the value is interpolated, so that runs of different batch sizes stand side
by side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def curve(run: Path, part: str, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows trained on at each evaluation, and the values."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    batch = recipe["pretrain"]["phases"][int(part.rsplit("-", 1)[1]) - 1]["batch_size"]
    rows = json.loads((run / part / "metrics.json").read_text())["training_rows"]
    events = EventAccumulator(str(run / "tensorboard" / part)).Reload().Scalars(tag)
    epochs, steps = np.divmod([event.step for event in events], -(-rows // batch))
    return epochs * rows + steps * batch, np.array([event.value for event in events])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tag", default="valid/loss")
    parser.add_argument("--part", default="pretrain/phase-1")
    parser.add_argument("--every", type=int, default=25_000)
    options = parser.parse_args()
    curves = [curve(run, options.part, options.tag) for run in options.runs]
    print("| rows | " + " | ".join(run.name for run in options.runs) + " |")
    print("|---:|" + "---:|" * len(curves))
    first = max(rows[0] for rows, _ in curves)
    last = max(rows[-1] for rows, _ in curves)
    for place in [*range(options.every * -(-first // options.every), last, options.every), last]:
        values = (f"{np.interp(place, rows, found):.3f}" for rows, found in curves)
        print(f"| {place:,} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
