"""How fast a teacher's outputs are computed and stored, against the plain way, on the same rows.

    python tests/benchmarks/precompute_speed.py TEXTS [--rows 512] [--max-length 256] [--precision bf16]
    accelerate launch --multi_gpu --num_processes 2 tests/benchmarks/precompute_speed.py TEXTS --store-only

TEXTS is a file of one text a line, JSON lines (`sentence` or `text`), or `label<TAB>text`. The teacher has the shape
of BERT-base and made-up weights: speed does not depend on them. The plain way is what distillation scripts do:
batches of 16 in file order, padded, float32, logits to Python lists, `Dataset.from_dict`.
Prints one JSON object with rows/s, padding, and for the stored way the share of the machine's matmul rate:

    FLOPs = tokens x 24 H^2 layers + sum over rows of 4 L^2 H layers     (H = 768, L = tokens of the row, 12 layers)
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

from dtrain.data import Part
from dtrain.distributed import World, connect, leave
from dtrain.knowledge import Identity, StoreWriter, new_layout
from dtrain.stages.precompute import fill
from dtrain.training.engine import autocast, resolve_precision
from dtrain.training.inference import cast_products

HIDDEN, LAYERS, CLASSES = 768, 12, 15


def read_texts(path: Path, rows: int) -> list[str]:
    texts = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("{"):
                values = json.loads(line)
                texts.append(values.get("sentence") or values["text"])
            else:
                texts.append(line.rstrip("\n").split("\t")[-1])
            if len(texts) == rows:
                break
    return texts


def encode(texts: list[str], max_length: int) -> Part:
    """[CLS] characters [SEP], as BERT's Chinese vocabulary cuts them; which ids they get does not matter."""
    encoded = [
        np.array([101, *(1000 + ord(c) % 20000 for c in text[: max_length - 2]), 102], np.int32) for text in texts
    ]
    return Part(
        ids=np.arange(len(texts)),
        labels=np.full(len(texts), -1, dtype=np.int64),
        tokens=np.concatenate(encoded),
        types=None,
        offsets=np.cumsum([0, *map(len, encoded)]),
        pad_id=0,
        load_rows=lambda: Dataset.from_dict({"text": texts}),
    )


def plain_way(model: torch.nn.Module, part: Part, device: torch.device) -> tuple[float, float]:
    """Seconds and padding share."""
    begin = time.perf_counter()
    outputs, padded = [], 0
    with torch.no_grad():
        for start in range(0, len(part), 16):
            batch = part.collate(np.arange(start, min(start + 16, len(part))))
            padded += batch["input_ids"].numel()
            outputs += model(**{k: v.to(device) for k, v in batch.items()}).logits.tolist()
    Dataset.from_dict({"logits": outputs})
    return time.perf_counter() - begin, 1 - int(part.lengths.sum()) / padded


def stored_way(
    model: torch.nn.Module, part: Part, world: World, precision: str, batch_tokens: int, shard_rows: int
) -> float:
    identity = Identity(teacher="a" * 32, tokenizer="b" * 32, data="c" * 32)
    layout = new_layout(
        identity,
        rows=len(part),
        classes=CLASSES,
        dtype="float16",
        precision=precision,
        batch_tokens=batch_tokens,
        shard_rows=shard_rows,
    )
    with tempfile.TemporaryDirectory() as own:
        folder = world.gather_objects(own)[0]
        world.wait_for_all("benchmark")
        begin = time.perf_counter()
        store = StoreWriter(Path(folder) / "store", layout, part.ids)
        fill(store, cast_products(model, precision, world.device), part, world, title="stored way")
        seconds = time.perf_counter() - begin
        world.wait_for_all("benchmark")
    return seconds


def matmul_rate(world: World, precision: str) -> float:
    """FLOP/s of [2048, H] x [H, 4 H], the largest product of the model, by all of this rank's threads."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = torch.randn(2048, HIDDEN, dtype=dtype, device=world.device)
    b = torch.randn(HIDDEN, 4 * HIDDEN, dtype=dtype, device=world.device)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) / 10)
    return 2 * 2048 * HIDDEN * 4 * HIDDEN / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--store-only", action="store_true")
    arguments = parser.parse_args()
    world = connect()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=CLASSES)).eval().to(world.device)
    part = encode(read_texts(arguments.texts, arguments.rows), arguments.max_length)
    precision = resolve_precision(arguments.precision, world.device, "precision")

    results: dict[str, object] = {
        "texts": arguments.texts.name,
        "rows": len(part),
        "tokens_per_row": round(float(part.lengths.mean()), 1),
        "ranks": world.size,
        "threads_per_rank": world.threads,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "precision": precision,
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }
    with torch.inference_mode(), autocast(precision, world.device):  # start-up costs belong to neither
        model(**{k: v.to(world.device) for k, v in part.collate(np.arange(2)).items()})
    if not arguments.store_only:
        seconds, padding = plain_way(model, part, world.device)
        results["plain_rows_per_second"] = round(len(part) / seconds, 2)
        results["plain_padding"] = round(padding, 4)
    seconds = stored_way(model, part, world, precision, arguments.batch_tokens, arguments.shard_rows)
    results["stored_rows_per_second"] = round(len(part) / seconds, 2)
    if not arguments.store_only:
        results["ratio"] = round(results["stored_rows_per_second"] / results["plain_rows_per_second"], 2)  # type: ignore[operator]
    lengths = part.lengths.astype(np.float64)
    flops = (24 * HIDDEN**2 * lengths + 4 * HIDDEN * lengths**2).sum() * LAYERS
    results["share_of_matmul_rate"] = round(flops / seconds / (matmul_rate(world, precision) * world.size), 3)
    if world.is_main:
        print(json.dumps(results, indent=2))
    leave(0)


if __name__ == "__main__":
    main()
