"""A teacher by its beam, and students from scratch and distilled by words, sequences and both, that write greedily.

    python tests/benchmarks/translation.py DATA OUT
    python tests/benchmarks/translation.py DATA OUT --rows 4000 --test 200 students.*.epochs=4 teachers.teacher.epochs=4

Runs the recipe `translate_en_zh` in OUT on DATA/captions_en_zh (train.tsv, val.tsv, test.tsv), at most `--rows` training
rows and `--test` rows of the other two files. Further words are overrides of the recipe. At the end it prints a row a model:
BLEU and chrF on the test rows, mean and deviation over seeds, greedily and by the beam, and rows a second at batch 64, as
multiples of the teacher's beam, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPE = "translate_en_zh"


def extract(source: Path, target: Path, rows: int | None) -> None:
    """The first lines of a file."""
    lines = source.read_bytes().splitlines(keepends=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(lines[:rows]))


def table(results: dict[str, Any]) -> str:
    """A line a group of seeds."""
    lines = [
        "| model | BLEU, greedy | BLEU, beam | chrF, greedy | rows/s, greedy | rows/s, beam |",
        "|---|---|---|---|---|---|",
    ]
    base = next(group for group in results["groups"] if group["kind"] == "teachers")["rows_per_second_cpu_64_beam"]
    for group in results["groups"]:
        found = group["test"]
        scores = (
            f"{100 * found[key]['mean']:.2f} ± {100 * (found[key]['std'] or 0.0):.2f}"
            for key in ("bleu", "bleu_beam", "chrf")
        )
        rates = (group[f"rows_per_second_cpu_64{way}"] for way in ("", "_beam"))
        lines.append(
            f"| {group['name']} | {' | '.join(scores)} | "
            + " | ".join(f"{r:.1f} ({r / base:.1f}x)" for r in rates)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, help="training rows at most (default: all)")
    parser.add_argument("--test", type=int, help="rows of the validation and test files at most (default: all)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    for name, rows in (("train", asked.rows), ("val", asked.test), ("test", asked.test)):
        file = Path("captions_en_zh") / f"{name}.tsv"
        extract(asked.data / file, asked.out / "data" / file, rows)
    words = [sys.executable, "-m", "dtrain", "run", RECIPE, f"launch.processes={asked.processes}", *asked.overrides]
    subprocess.run(words, cwd=asked.out, check=True)
    print(table(json.loads((asked.out / "runs" / RECIPE / "report/results.json").read_text())))


if __name__ == "__main__":
    main()
