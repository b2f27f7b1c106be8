"""Seconds of a training step and of an answer, IDCNN-CRF against BiLSTM-CRF with their default shapes, on a CPU.

    python tests/benchmarks/tagger_speed.py [threads]

An IDCNN has 2.4 times the multiply-adds of the BiLSTM a character (13 convolutions of 128 x 128 x 3 against two
directions of 4 x 128 x 256), which a CPU does one after another either way: its layers as one product of unfolded
characters, or as one product a tap, took as long as Conv1d (0.9 to 1.3 times).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter

from dtrain.models import build
from dtrain.recipe.models import ModelSpec

TAGS = ["O", *(f"{part}-{kind}" for kind in "ABC" for part in "BIES")]
SHAPES = ((1, 48), (16, 48), (64, 48), (16, 128))  # rows, characters


def make(kind: str) -> Any:
    torch.manual_seed(0)
    spec: Any = TypeAdapter(ModelSpec).validate_python({"type": kind})
    return build(spec, vocabulary=3000, labels=TAGS, pad_id=0, max_length=128)


def batch(rows: int, characters: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    lengths = torch.randint(characters // 2, characters + 1, (rows,), generator=random)
    lengths[0] = characters
    mask = (torch.arange(characters) < lengths[:, None]).long()
    ids = torch.randint(1, 3000, mask.shape, generator=random) * mask
    return {"input_ids": ids, "attention_mask": mask}


def train(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    model.zero_grad()
    model(**inputs, tags=inputs["attention_mask"] - 1).nll.sum().backward()


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    found = model(**inputs)
    model.decode(found.logits, found.mask)


def fastest(work: Callable[[], None], times: int = 10) -> float:
    best = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    models = {kind: make(kind) for kind in ("idcnn", "tagger")}
    for rows, characters in SHAPES:
        inputs = batch(rows, characters)
        for name, work in (("step", train), ("answer", answer)):
            taken = {kind: fastest(partial(work, model, inputs)) for kind, model in models.items()}
            print(
                f"{rows:3} x {characters:3} {name:6} idcnn {1e3 * taken['idcnn']:7.1f} ms, "
                f"bilstm {1e3 * taken['tagger']:7.1f} ms, ratio {taken['idcnn'] / taken['tagger']:.2f}"
            )


if __name__ == "__main__":
    main()
