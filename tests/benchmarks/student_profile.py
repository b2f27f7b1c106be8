"""What a student's training step consists of, for each architecture at 16 and 128 rows, on one thread.

    python tests/benchmarks/student_profile.py TNEWS_FOLDER [--steps 50] [--models bilstm textcnn ...] [--batches 16 128]
                                               [--operators 12]

Students of their default sizes, distilled from stored logits of a TextCNN by their mean squared error, are trained by `dtrain`
itself. After ten steps, so many are timed as they are, in seconds of the process, and as many are watched by torch's profiler.
Its times by operator, each without the operators inside, are added up to the parts of the table. `rest` is what is left of the
watched steps: Python, reading rows, waiting. It is too large, as the profiler itself takes time at each operator.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs from other folders, too

import torch
from torch.profiler import ProfilerActivity, profile

from dtrain.__main__ import main as dtrain
from dtrain.training import loop
from dtrain.training.state import TrainState

MODELS: dict[str, dict[str, Any]] = {
    "bilstm": {"type": "bilstm"},
    "textcnn": {"type": "textcnn"},
    "text_rcnn": {"type": "text_rcnn"},
    "fasttext": {"type": "fasttext"},
    "bert": {"type": "bert", "size": "tiny", "layers": 2, "hidden": 256, "heads": 4, "intermediate": 1024},
}
BEFORE = 10  # steps
PARTS = ("products", "recurrence", "element by element", "copies", "embedding", "optimizer", "norm", "rest")
_PART_OF = {
    "products": (
        "mm",
        "addmm",
        "bmm",
        "linear",
        "convolution",
        "mkldnn_convolution",
        "mkldnn_linear",
        "scaled_dot",
        "flash_attention",
    ),
    "recurrence": ("mkldnn_rnn_layer", "lstm"),
    "embedding": ("embedding", "index_select", "index_add", "index_put", "gather", "scatter"),
    "optimizer": ("_fused_adam",),
    "norm": ("_foreach_norm", "linalg_vector_norm", "_foreach_mul", "stack"),
    "copies": ("copy_", "cat", "clone", "contiguous", "zero_", "fill_", "zeros", "empty", "resize_", "_to_copy", "pad"),
}


def part_of(operator: str) -> str:
    name = operator.removeprefix("aten::").removeprefix("mkldnn::")
    for part, words in _PART_OF.items():
        if any(name == word or name.startswith((word + "_", word)) and len(word) > 3 for word in words):
            return part
    return "element by element"


class Watch:
    """In place of a student's step: counts steps, times some and watches others."""

    def __init__(self, steps: int) -> None:
        self.steps, self.real = steps, loop.train_step
        self.calls: Counter[str] = Counter()
        self.found: dict[str, dict[str, Any]] = {}
        self._begin = (0.0, 0.0)
        self._profile: Any = None

    def __call__(self, state: TrainState) -> None:
        title = state.job.title
        if title.startswith("student"):
            self._before(title.split()[-1], self.calls[title])
            self.calls[title] += 1
        self.real(state)

    def _before(self, name: str, number: int) -> None:
        if number == BEFORE:
            self._begin = (time.process_time(), time.perf_counter())
        elif number == BEFORE + self.steps:
            self.found[name] = {"plain": time.process_time() - self._begin[0]}
            self._profile = profile(activities=[ProfilerActivity.CPU])
            self._profile.start()
            self._begin = (time.process_time(), time.perf_counter())
        elif number == BEFORE + 2 * self.steps:
            whole = time.perf_counter() - self._begin[1]
            self._profile.stop()
            operators = {
                event.key: (event.self_cpu_time_total / 1e6, event.count) for event in self._profile.key_averages()
            }
            self.found[name] |= {"watched": whole, "operators": operators}
            self._profile = None


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Of the watched steps, by part."""
    seconds: Counter[str] = Counter()
    for operator, (own, _) in found["operators"].items():
        if operator.startswith(("aten::", "mkldnn::", "torch::")) or "Backward" in operator:
            seconds[part_of(operator)] += own  # type: ignore[assignment]
    seconds["rest"] = found["watched"] - sum(seconds.values())  # type: ignore[assignment]
    return {part: seconds[part] / found["watched"] for part in PARTS}


def recipe(folder: Path, models: list[str], batches: list[int]) -> dict[str, Any]:
    students = [
        {
            "name": f"{name}-{batch}",
            "model": MODELS[name],
            "batch_size": batch,
            "epochs": 1,
            "losses": [{"type": "logit_regression"}],
        }
        for name in models
        for batch in batches
    ]
    return {
        "name": "profile",
        "output_dir": str(folder / "runs"),
        "data": {
            "train": str(folder / "train.json"),
            "valid": str(folder / "dev.json"),
            "columns": {"text": "sentence", "label": "label"},
            "format": "jsonl",
            "max_length": 64,
        },
        "teachers": [
            {"name": "t", "model": {"type": "textcnn", "embedding": 32, "filters": 16}, "epochs": 1, "batch_size": 512}
        ],
        "students": students,
        "placement": {"fuse": "never"},
        "launch": {"processes": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tnews", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 128])
    parser.add_argument("--operators", type=int, default=0, help="so many of each, the longest first")
    asked = parser.parse_args()
    watch = Watch(asked.steps)
    loop.train_step = watch  # type: ignore[assignment]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # dtrain takes a thread for each core that it may use
    lines = (asked.tnews / "train.json").read_text(encoding="utf-8").splitlines(keepends=True)
    for batch in asked.batches:  # each with as many rows as it needs
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "train.json").write_text(
                "".join(lines[: batch * (BEFORE + 2 * asked.steps + 2)]), encoding="utf-8"
            )
            valid = (asked.tnews / "dev.json").read_text(encoding="utf-8").splitlines(keepends=True)[:100]
            (folder / "dev.json").write_text("".join(valid), encoding="utf-8")
            path = folder / "recipe.json"
            path.write_text(json.dumps(recipe(folder, asked.models, [batch])))
            code = dtrain(["run", str(path), "--here", "--stages", "prepare,finetune,precompute,distill"])
            assert code == 0, code
    print(f"\n{asked.steps} steps, torch {torch.__version__}, load average {os.getloadavg()[0]:.1f}\n")
    print(f"| student, rows a step | ms a step | {' | '.join(f'{part}, %' for part in PARTS)} |")
    print(f"|---|---:|{'---:|' * len(PARTS)}")
    for name in sorted(watch.found, key=lambda n: (list(MODELS).index(n.split("-")[0]), int(n.split("-")[1]))):
        found = watch.found[name]
        row = " | ".join(f"{share:.1%}".removesuffix("%") for share in shares(found).values())
        print(f"| {name.replace('-', ', ')} | {1000 * found['plain'] / asked.steps:.1f} | {row} |")
    for name, found in watch.found.items() if asked.operators else ():
        longest = sorted(found["operators"].items(), key=lambda item: -item[1][0])[: asked.operators]
        print(f"\n{name}:")
        for operator, (own, count) in longest:
            print(f"  {own / found['watched']:6.1%} {count / asked.steps:7.1f} times  {operator}")


if __name__ == "__main__":
    main()
