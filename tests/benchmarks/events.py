"""A teacher with gold and with predicted arguments, taggers of the text alone, and students that imitate: trigger F1.

    python tests/benchmarks/events.py DATA OUT
    python tests/benchmarks/events.py DATA OUT --encoder m3e-small        # a folder of transformers' BERT, in every tagger
    python tests/benchmarks/events.py DATA OUT --epochs 1 --rows 100      # whether it runs

Runs the recipe `events` in OUT on DATA/cec (train, dev and test.jsonl), three seeds of students, at most `--rows` rows of
each file. Further words are overrides of the recipe. At the end it prints a row a model: precision, recall and F1 on the
test rows, mean and deviation over seeds; and what the students have of the gap between text_only and the teacher with
gold arguments.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPE = "events"
FILES = ("train", "dev", "test")
STUDENTS = ("text_only", "marginals", "reversal")  # and imitation, which has phases
SCORES = ("precision", "recall", "f1")


def overrides(encoder: Path | None, epochs: int | None) -> list[str]:
    """Changes of the recipe: a pretrained encoder in each tagger, fewer epochs in each training."""
    found = []
    if encoder is not None:
        bert = json.dumps({"type": "bert", "pretrained": str(encoder.resolve())})
        for member, more in (
            ("teachers.informed", ", privileged: {size: 32}"),
            ("teachers.arguments", ""),
            *((f"students.{name}", "") for name in STUDENTS),
            ("students.imitation", ", classifier: informed"),
        ):
            found.append(f"{member}.model={{type: tagger, encoder: {bert}, lstm: 128, constrain: true{more}}}")
            found.append(f"{member}.optimizer={{lr: 2.0e-3, modules: {{encoder: 0.025}}}}")
    if epochs is not None:
        found += [f"teachers.*.epochs={epochs}", f"students.imitation.phases.*.epochs={epochs}"]
        found += [f"students.{name}.epochs={epochs}" for name in STUDENTS]
    return found


def table(results: dict[str, Any]) -> str:
    """A line a group of seeds, and one more for the teacher with predicted arguments."""
    lines = ["| model | annotations | precision | recall | F1 | of the gap |", "|---|---|---|---|---|---|"]
    groups = {group["name"]: group for group in results["groups"]}
    gold = groups["informed"]["test"]["f1"]["mean"]
    floor = groups["text_only"]["test"]["f1"]["mean"]

    def share(f1: float) -> str:
        return "" if gold == floor else f"{(f1 - floor) / (gold - floor):.0%}"

    for row in results["annotated"]:
        found = row["parts"]["test"]
        shown = " | ".join(f"{100 * found[key]:.2f}" for key in SCORES)
        lines.append(f"| {row['name']} | {row['annotated_by'] or 'gold'} | {shown} | {share(found['f1'])} |")
    for name, group in groups.items():
        if group["kind"] == "students":
            found = group["test"]
            spreads = (f"{100 * found[key]['mean']:.2f} ± {100 * (found[key]['std'] or 0.0):.2f}" for key in SCORES)
            lines.append(f"| {name} | none | {' | '.join(spreads)} | {share(found['f1']['mean'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", type=Path, help="folder of a pretrained BERT (default: vectors of characters)")
    parser.add_argument("--epochs", type=int, help="of every training (default: the recipe's)")
    parser.add_argument("--rows", type=int, help="rows of each file at most (default: all)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    for name in FILES:
        lines = (asked.data / "cec" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        place = asked.out / "data" / "cec" / f"{name}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"".join(lines[: asked.rows]))
    changes = [*overrides(asked.encoder, asked.epochs), *asked.overrides]
    words = [sys.executable, "-m", "dtrain", "run", RECIPE, f"launch.processes={asked.processes}", *changes]
    subprocess.run(words, cwd=asked.out, check=True)
    report = asked.out / "runs" / RECIPE / "report" / "triggers" / "results.json"
    print(table(json.loads(report.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
