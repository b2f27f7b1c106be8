"""How fast the knowledge store is read by random row ids, on one core, from the page cache.

    python tests/benchmarks/store_read.py [--rows 1000000] [--classes 15] [--shard-rows 4096]

Prints one JSON object: rows/s of `take` (float16) and `logits` (float32 tensor) for batches of 128 and 4096,
with consecutive ids and with ids in two runs (training and transfer rows), and the time to open the store.
Seconds are CPU time of the one reading thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dtrain.knowledge.format import Identity, new_layout
from dtrain.knowledge.reader import StoreReader
from dtrain.knowledge.writer import StoreWriter

SECONDS = 1.0  # of reading for each number


def write_store(path: Path, ids: np.ndarray, classes: int, shard_rows: int) -> None:
    identity = Identity(teacher="a" * 32, tokenizer="b" * 32, data="c" * 32)
    layout = new_layout(
        identity,
        rows=len(ids),
        widths={"logits": classes},
        dtype="float16",
        precision="fp32",
        batch_tokens=4096,
        shard_rows=shard_rows,
    )
    writer = StoreWriter(path, layout, ids)
    writer.prepare()
    random = torch.Generator().manual_seed(0)
    for number in range(layout.shard_count):
        values = torch.randn(len(layout.shard_range(number)), classes, generator=random)
        writer.write(number, {"logits": values})
    writer.publish()


def rows_per_second(read: Callable[[np.ndarray], object], ids: np.ndarray, batch: int) -> float:
    """Rows read a second in batches drawn at random, the drawing not counted."""
    random = np.random.default_rng(0)
    batches = [random.choice(ids, batch) for _ in range(64)]
    for asked in batches:
        read(asked)
    rows, begin = 0, time.thread_time()
    while (spent := time.thread_time() - begin) < SECONDS:
        for asked in batches:
            read(asked)
        rows += batch * len(batches)
    return rows / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--shard-rows", type=int, default=4096)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = vars(arguments).copy()
    for name, gap in (("consecutive", 0), ("two_runs", 10_000)):
        ids = np.arange(arguments.rows, dtype=np.int64)
        ids[len(ids) // 2 :] += gap
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            write_store(store, ids, arguments.classes, arguments.shard_rows)
            size = sum(path.stat().st_size for path in store.iterdir())
            begin = time.thread_time()
            reader = StoreReader.open(store)
            opened = time.thread_time() - begin
            begin = time.thread_time()
            StoreReader.open(store, checksums=False)
            results[name] = {
                "bytes_per_row": round(size / arguments.rows, 2),
                "open_seconds": round(opened, 3),
                "open_seconds_without_checksums": round(time.thread_time() - begin, 3),
                **{
                    f"{method}_rows_per_second_batch_{batch}": round(
                        rows_per_second(getattr(reader, method), ids, batch)
                    )
                    for method in ("take", "logits")
                    for batch in (128, 4096)
                },
            }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
