"""The launch's key-value store under many ranks: `python tests/benchmarks/store_counter.py [--ranks 512] [--seconds 8]`

Ranks are threads with a connection each, in one process beside the server. Measured are the seconds that one question takes
when each rank asks for its next shard every `--every` seconds (0.4: 4,096 rows at 10,000 rows/s), with and without the
signs of life that all give every 5 s (one `add`, and one `multi_get` of every rank's key), and how many questions a second
are answered when all ask without a pause. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore


def client(port: int) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False)


def measured(stores: list[TCPStore], seconds: float, every: float, pulse: float) -> dict[str, float]:
    """`every` 0: without a pause; `pulse` 0: no signs of life."""
    took: list[float] = []
    pulses: list[float] = []
    end = time.perf_counter() + seconds
    keys = [f"pulse/{number}" for number in range(len(stores))]

    def rank(number: int) -> None:
        store, draw, mine, signs = stores[number], random.Random(number), [], []
        beat = time.perf_counter() + draw.random() * pulse
        time.sleep(draw.random() * every)
        while (begin := time.perf_counter()) < end:
            store.add("counter", 1)
            mine.append(time.perf_counter() - begin)
            if pulse and time.perf_counter() > beat:
                begin = time.perf_counter()
                store.add(keys[number], 1)
                store.multi_get(keys)
                signs.append(time.perf_counter() - begin)
                beat += pulse
            if every:
                time.sleep(every * (0.5 + draw.random()))
        took.extend(mine)
        pulses.extend(signs)

    for key in keys:
        stores[0].add(key, 0)
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    found = {"questions_per_second": len(took) / seconds, "median_ms": 1e3 * statistics.median(took)}
    found["p99_ms"] = 1e3 * took[int(0.99 * len(took))]
    if pulses:
        found |= {"signs_of_life": len(pulses), "sign_of_life_median_ms": 1e3 * statistics.median(pulses)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--every", type=float, default=0.4)
    asked = parser.parse_args()
    server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False)
    stores = [client(server.port) for _ in range(asked.ranks)]
    print(
        json.dumps(
            {
                "ranks": asked.ranks,
                "at the rate of shards": measured(stores, asked.seconds, asked.every, 0),
                "with signs of life": measured(stores, asked.seconds, asked.every, 5.0),
                "without a pause": measured(stores, asked.seconds, 0, 0),
            }
        )
    )


if __name__ == "__main__":
    main()
