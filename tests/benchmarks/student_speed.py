"""Rows a second that students train at, in this checkout and in another one, in turn.

    python tests/benchmarks/student_speed.py OTHER_CHECKOUT TNEWS_FOLDER [--rows 3000] [--rounds 3]

TextCNN and BiLSTM of their default sizes, at 16 and 128 rows a step, from scratch and distilled from stored logits of a
TextCNN; one process of one thread. Each round runs both checkouts one after the other; the ratio is taken a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]


def recipe(folder: Path, rows: int) -> dict[str, Any]:
    students = [
        {"name": f"{model}-{batch}-{how}", "model": {"type": model}, "batch_size": batch, "epochs": 1, "losses": losses}
        | ({"teachers": []} if how == "scratch" else {})
        for model in ("textcnn", "bilstm")
        for batch in (16, 128)
        for how, losses in (("scratch", [{"type": "cross_entropy"}]), ("distilled", [{"type": "logit_regression"}]))
    ]
    return {
        "name": "speed",
        "data": {
            "train": str(folder / "train.json"),
            "valid": str(folder / "dev.json"),
            "columns": {"text": "sentence", "label": "label"},
            "format": "jsonl",
            "max_length": 64,
        },
        "teachers": [{"name": "t", "model": {"type": "textcnn"}, "epochs": 1, "batch_size": 128}],
        "students": students,
        "placement": {"fuse": "never"},
        "launch": {"processes": 1},
    }


def measure(checkout: Path, recipe: Path, output: Path) -> dict[str, float]:
    """Rows a second of each student, training steps alone."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    stages = "prepare,finetune,precompute,distill"
    command = [sys.executable, "-m", "dtrain", "run", str(recipe), f"output_dir={output}", "--stages", stages]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    found = sorted((output / "speed" / "students").glob("*/metrics.json"))
    return {file.parent.name: json.loads(file.read_text())["rows_per_second"] for file in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("tnews", type=Path)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part, count in (("train", options.rows), ("dev", 200)):
            lines = (options.tnews / f"{part}.json").read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / f"{part}.json").write_text("".join(lines[:count]), encoding="utf-8")
        path = folder / "recipe.json"
        path.write_text(json.dumps(recipe(folder, options.rows)))
        for number in range(options.rounds):
            sides = (HERE, options.other.resolve())
            this, other = (measure(side, path, folder / f"{number}-{n}") for n, side in enumerate(sides))
            rounds.append((this, other))
            print(f"round {number + 1}: ratios " + ", ".join(f"{k} {this[k] / other[k]:.2f}" for k in this), flush=True)
    print("| student | this, rows/s | other, rows/s | ratio: median (least to most) |\n|---|---|---|---|")
    for name in rounds[0][0]:
        ratios = sorted(this[name] / other[name] for this, other in rounds)
        of_this, of_other = (statistics.median(side[name] for side in sides) for sides in zip(*rounds, strict=True))
        middle = statistics.median(ratios)
        print(f"| {name} | {of_this:.0f} | {of_other:.0f} | {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


if __name__ == "__main__":
    main()
