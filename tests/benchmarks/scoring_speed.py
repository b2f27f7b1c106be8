"""What scoring rows costs against training on them, in CPU seconds: an evaluation must not be slower than a pass of training.

    PYTHONPATH=.:tests/benchmarks python tests/benchmarks/scoring_speed.py [--rows 320]

One process of one thread. Models and rows are those of ranks_speed.py; a pass makes its steps of 16 rows, with AdamW and
clipping, and scoring answers the same rows as an evaluation during training does.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from ranks_speed import LABELS, model_of, texts
from torch import nn

from dtrain.data import EncodedSplit
from dtrain.engines.choose import build_engine
from dtrain.models import own
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import World, connect, leave
from dtrain.tasks.classification.scoring import evaluate_part
from dtrain.training.workers import Workers

CELLS: list[dict[str, Any]] = [
    {"size": "tiny"},
    {"size": "small"},
    {"model": "bilstm", "width": 512},
    {"model": "textcnn", "width": 300},
]


def measure(world: World, cell: dict[str, Any], rows: int) -> tuple[float, float]:
    """CPU seconds of a pass of training, and of an evaluation."""
    part = texts(rows)
    if "model" in cell:
        part = EncodedSplit(**{**vars(part), "tokens": part.tokens % 3000})
    spec = TrainSpec.model_validate({"name": "t", "model": {"type": "textcnn"}, "optimizer": {"lr": 1e-5}})
    engine = build_engine(world, model_of(cell), spec, data_parallel=False, precision="fp32")
    own.without_mask_checks(engine.module, world.device)
    targets = torch.zeros(16, dtype=torch.long)

    def train() -> None:
        engine.model.train()
        for batch in np.arange(rows).reshape(-1, 16):
            logits = engine.model(**part.collate(batch)).logits
            engine.backward(nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / 16)
            engine.step(1.0)

    def score() -> None:
        evaluate_part(engine.inner, part, Workers(world.device, 1), len(LABELS))

    found = []
    for work in (train, score):
        work()  # the first time allocates
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320, help="a multiple of 16")
    options = parser.parse_args()
    world = connect()
    torch.set_num_threads(1)
    print(f"{options.rows} rows, CPU seconds\n\n| model | training | scoring | share |\n|---|---:|---:|---:|")
    for cell in CELLS:
        training, scoring = measure(world, cell, options.rows)
        name = " ".join(map(str, cell.values()))
        print(f"| {name} | {training:.2f} | {scoring:.2f} | {scoring / training:.0%} |", flush=True)
    leave(0)


if __name__ == "__main__":
    main()
