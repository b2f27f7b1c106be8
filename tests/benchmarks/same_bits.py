"""Whether this checkout computes what another one does: weights of small runs, bit for bit, and stores byte for byte.

    python tests/benchmarks/same_bits.py OTHER_CHECKOUT [--ranks 1 2] [--only tagger]

Each small recipe (a classifier, a tagger, pairs, pre-training) is run from text to students by both checkouts, on each
number of ranks. SGD and LAMB are compared exactly; AdamW, whose kernel may differ between versions, by the largest
difference of a weight relative to the largest weight of its tensor. Biases of attention's keys are left out of that: they add
the same to all scores of a query, so that their gradient is rounding alone, and LAMB makes steps of it as large as any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

HERE = Path(__file__).parents[2]
UNSEEN = "attention.self.key.bias"
CHARACTERS = "好坏的了是不大小上下新旧快慢"
BERT = {"type": "bert", "size": "tiny", "hidden": 16, "heads": 2, "layers": 2, "vocabulary_size": 150}
SGD = {"type": "sgd", "lr": 0.05}
LAMB = {"type": "lamb", "lr": 0.01}
ADAMW = {"type": "adamw", "lr": 0.003}


def write_data(folder: Path) -> None:
    draw = random.Random(0)

    def text() -> str:
        return "".join(draw.choices(CHARACTERS, k=draw.randint(3, 14)))

    for name, count in (("train", 300), ("valid", 60), ("transfer", 200)):
        rows = [
            {"text": t, "label": "ab"[t.count("好") > t.count("坏")], "b": text()}
            for t in (text() for _ in range(count))
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        tagged = ["".join(f"{c} {'S-X' if c in '好坏' else 'O'}\n" for c in row["text"]) for row in rows]
        (folder / f"{name}.bioes").write_text("\n".join(tagged))
    (folder / "text.txt").write_text("\n".join("。".join(text() for _ in range(4)) for _ in range(200)) + "\n")


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    def data(suffix: str, **more: Any) -> dict[str, Any]:
        files = {part: f"{folder}/{part}.{suffix}" for part in ("train", "valid")}
        return {**files, "vocabulary": {"min_count": 1}, "max_length": 24} | more

    transfer = {"transfer": f"{folder}/transfer.jsonl"}
    cnn = {"type": "textcnn", "embedding": 8, "filters": 8, "widths": [2, 3]}
    lstm = {"type": "bilstm", "embedding": 8, "hidden": 8, "dropout": 0.2}
    # By the loss, as scores of such small runs are often equal, and which of equal ones is kept may differ by version.
    base = {"epochs": 2, "batch_size": 16, "metric": "loss"}
    return {
        "classifier": {
            "data": data("jsonl", **transfer),
            "teachers": [{"name": "t", "model": BERT, "optimizer": LAMB, **base, "accumulation": 2}],
            "students": [
                {"name": "sgd", "model": cnn, "optimizer": SGD, **base},
                {"name": "adamw", "model": lstm, "optimizer": ADAMW, **base},
                {"name": "whole", "model": lstm, "optimizer": SGD, **base, "parallel": "data"},
                {"name": "p1", "model": cnn, "optimizer": SGD, **base, "peers": "x"},
                {"name": "p2", "model": lstm, "optimizer": SGD, **base, "peers": "x"},
                {"name": "noisy", "model": cnn, "optimizer": SGD, **base, "noisy": {"confidence": 0.1}},
            ],
        },
        "pairs": {
            "data": data("jsonl", task="pairs", columns={"text_b": "b"}),
            "teachers": [{"name": "t", "model": BERT, "optimizer": SGD, **base}],
            "students": [
                {"name": "s", "model": {"type": "siamese", "embedding": 8, "hidden": 8}, "optimizer": SGD, **base}
            ],
        },
        "tagger": {
            "data": data("bioes", task="tagging", format="conll"),
            "teachers": [
                {"name": "t", "model": {"type": "tagger", "encoder": BERT, "lstm": 8}, "optimizer": LAMB, **base}
            ],
            "students": [
                {"name": "crf", "model": {"type": "tagger", "embedding": 8, "lstm": 8}, "optimizer": SGD, **base},
                {"name": "cnn", "model": {"type": "idcnn", "embedding": 8, "filters": 8}, "optimizer": SGD, **base},
            ],
        },
        "pretrain": {
            "data": data("jsonl"),
            "pretrain": {
                "model": BERT | {"type": "nezha"},
                "corpus": {"sources": [{"path": f"{folder}/text.txt", "documents": "line"}], "held_out": 0.1},
                "phases": [{"max_length": 16, "epochs": 2, "batch_size": 16, "optimizer": LAMB}],
            },
            "teachers": [{"name": "t", "model": {"type": "nezha", "pretrained": "pretrain"}, "optimizer": SGD, **base}],
            "students": [],
        },
    }


def run(checkout: Path, recipe: Path, ranks: int) -> None:
    command = [sys.executable, "-m", "dtrain", "run", str(recipe), f"launch.processes={ranks}", "report.latency=false"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {recipe}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def products(folder: Path) -> dict[str, Path]:
    """Weights, and the shards of stores, by their place in the run folder."""
    found = [*folder.glob("**/model.safetensors"), *folder.glob("knowledge/*/*.arrow")]
    return {path.relative_to(folder).as_posix(): path for path in found if "checkpoints" not in path.parts}


def compare(one: Path, other: Path) -> str:
    if hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest():
        return "equal bytes"
    if one.suffix != ".safetensors":
        return "DIFFER"
    a, b = load_file(one), load_file(other)
    if a.keys() != b.keys():
        return "DIFFER in names"
    seen = [name for name in a if not name.endswith(UNSEEN)]
    apart = max(float(abs(a[name] - b[name]).max() / max(abs(b[name]).max(), 1e-30)) for name in seen)
    same = "equal weights" if all((a[name] == b[name]).all() for name in a) else "equal weights but for biases of keys"
    return same if apart == 0 else f"apart by {apart:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=["classifier", "pairs", "tagger", "pretrain"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder)
        for name, recipe in recipes(folder).items():
            for ranks in options.ranks if name in options.only else []:
                found = []
                for side, checkout in (("this", HERE), ("other", options.other.resolve())):
                    path = folder / f"{name}-{ranks}-{side}.json"
                    values = {"name": f"{name}-{ranks}", "output_dir": str(folder / side), **recipe}
                    path.write_text(json.dumps(values, ensure_ascii=False))
                    run(checkout, path, ranks)
                    found.append(products(folder / side / f"{name}-{ranks}"))
                for place in sorted(found[0].keys() | found[1].keys()):
                    both = all(place in side for side in found)
                    told = compare(found[0][place], found[1][place]) if both else "ONLY ON ONE SIDE"
                    print(f"{name:12}{ranks} rank(s)  {place:45}{told}", flush=True)


if __name__ == "__main__":
    main()
