"""Held-out loss of runs against the rows that were trained on, from what TensorBoard has been written.

    python tests/benchmarks/loss_curves.py runs/adamw_256 runs/lamb_256 ... [--tag valid/loss] [--part pretrain/phase-1]

Prints a Markdown table: a line for each number of rows at which any run was evaluated, a column a run. Rows are steps
times the batch size in the run's resolved recipe, so that runs of different batch sizes stand side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def curve(run: Path, part: str, tag: str) -> dict[int, float]:
    """Values by the rows trained on."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    phase = recipe["pretrain"]["phases"][int(part.rsplit("-", 1)[1]) - 1]
    events = EventAccumulator(str(run / "tensorboard" / part))
    events.Reload()
    return {event.step * phase["batch_size"]: event.value for event in events.Scalars(tag)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tag", default="valid/loss")
    parser.add_argument("--part", default="pretrain/phase-1")
    options = parser.parse_args()
    curves = [curve(run, options.part, options.tag) for run in options.runs]
    print("| rows | " + " | ".join(run.name for run in options.runs) + " |")
    print("|---:|" + "---:|" * len(curves))
    for rows in sorted(set().union(*curves)):
        values = (f"{found[rows]:.3f}" if rows in found else "" for found in curves)
        print(f"| {rows:,} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
