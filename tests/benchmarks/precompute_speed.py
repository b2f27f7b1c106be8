"""How fast a teacher's outputs are computed and stored, against other ways to have them, on the same rows.

    python tests/benchmarks/precompute_speed.py DATA [--part a b c d e] [--rounds 3] [--rows 512] [--precision bf16]

DATA is a folder with `tnews/train.json` (titles) and `reviews_distill/hotel/train.txt` (reviews of mixed length,
cut at 256). The teacher has the shape of BERT-base and made-up weights: speed does not depend on them. Parts:

    a   store / plain, rows/s                   d   the share of the machine's matmul rate that store reaches
    b   store / trainer, rows/s; / sorted       e   reading a store, by `store_read.py`
    c   two / one, rows/s (CPU)             f   two / store, rows/s (CPU): what ranks cost or bring

Two idle cores take about 20 minutes for all of it with the numbers above: 5 for the titles, 14 for the reviews, one for
part e. Each figure is told on stderr as it is found. Ways:

    plain       what distillation scripts do: batches of 16 in file order, padded, float32, logits to Python lists,
                `Dataset.from_dict`; on every eighth row
    trainer     transformers' `Trainer.predict` at its best here: half precision, the fastest of batches of 16, 32 and
                64 (GPU: 64, 256, 1024)
    sorted      the same, of rows sorted by length beforehand (its own `group_by_length` sorts predictions, too, but
                returns them in an order that it does not tell)
    store       ours: one process, all cores or the GPU
    one, two    (CPU) ours: one process of one thread, two processes of one thread each

`--shape small` is a teacher of 4 layers of 512 in place of BERT-base's. Shards are as large as a recipe has them by default.

One round runs each way in a process of its own, one after another, so that what else the machine does meets all of
them; figures are medians over the rounds, and ratios are medians of the ratio within a round. The share is of the
matmul rate that the same process measures just before and after, at its precision and number of threads:

    FLOPs = tokens x 24 H^2 layers + sum over rows of 4 L^2 H layers     (H = 768 and 12 layers, L = tokens of the row)

Prints tables for `results/precompute_speed.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from dtrain.data import EncodedSplit
from dtrain.engines.precision import autocast
from dtrain.knowledge.format import Identity, new_layout, rows_of_shards
from dtrain.knowledge.writer import StoreWriter
from dtrain.runtime.distributed import World, connect, leave
from dtrain.stages.filling import fill
from dtrain.training.inference import BATCH_TOKENS, CPU_BATCH_TOKENS, cast_products, pack_products

SHAPES = {"base": (768, 12, 12), "small": (512, 4, 8)}  # hidden, layers, heads
CLASSES = 15
MAX_LENGTH = 256
CORPORA = {"titles": "tnews/train.json", "reviews": "reviews_distill/hotel/train.txt"}
# The ways that a part runs; the last one's rows/s are divided by those of each other.
PARTS: dict[str, tuple[str, ...]] = {
    "a": ("plain", "store"),
    "b": ("trainer", "sorted", "store"),
    "c": ("one", "two"),
    "f": ("store", "two"),
    "d": ("store",),
    "e": (),
}
REPOSITORY = Path(__file__).resolve().parents[2]


def read_texts(path: Path, rows: int) -> list[str]:
    """`rows` of a file's texts, evenly spread over it."""
    with path.open(encoding="utf-8") as file:
        lines = file.read().splitlines()
    lines = [lines[i] for i in np.linspace(0, len(lines) - 1, min(rows, len(lines))).astype(int)]
    return [json.loads(line)["sentence"] if line.startswith("{") else line.split("\t")[-1] for line in lines]


def encode(texts: list[str]) -> EncodedSplit:
    """[CLS] characters [SEP], as BERT's Chinese vocabulary cuts them; which ids they get does not matter."""
    encoded = [
        np.array([101, *(1000 + ord(c) % 20000 for c in text[: MAX_LENGTH - 2]), 102], np.int32) for text in texts
    ]
    return EncodedSplit(
        ids=np.arange(len(texts)),
        labels=np.full(len(texts), -1, dtype=np.int64),
        tokens=np.concatenate(encoded),
        types=None,
        offsets=np.cumsum([0, *map(len, encoded)]),
        pad_id=0,
        load_rows=lambda: Dataset.from_dict({"text": texts}),
    )


# --- the ways ------------------------------------------------------------------------------------


def plain(model: BertForSequenceClassification, part: EncodedSplit, device: torch.device) -> float:
    begin = time.perf_counter()
    outputs = []
    with torch.no_grad():
        for start in range(0, len(part), 16):
            batch = part.collate(np.arange(start, min(start + 16, len(part))))
            outputs += model(**{k: v.to(device) for k, v in batch.items()}).logits.tolist()
    Dataset.from_dict({"logits": outputs})
    return time.perf_counter() - begin


def trainer(
    model: BertForSequenceClassification, part: EncodedSplit, device: torch.device, precision: str, ordered: bool
) -> float:
    order = np.argsort(part.lengths, kind="stable") if ordered else np.arange(len(part))
    rows = [{"row": row} for row in order.tolist()]
    seconds = []
    for size in (64, 256, 1024) if device.type == "cuda" else (16, 32, 64):
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_eval_batch_size=size,
                bf16_full_eval=precision == "bf16",
                fp16_full_eval=precision == "fp16",
                use_cpu=device.type == "cpu",
                remove_unused_columns=False,
                disable_tqdm=True,
                report_to=[],
            )
            predictor = Trainer(
                model, arguments, data_collator=lambda found: part.collate(np.array([f["row"] for f in found]))
            )
            begin = time.perf_counter()
            found = predictor.predict(rows).predictions  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - begin)
        assert found.shape == (len(part), CLASSES)  # type: ignore[union-attr]
    return min(seconds)


def store(
    model: BertForSequenceClassification, part: EncodedSplit, world: World, precision: str, options: argparse.Namespace
) -> float:
    layout = new_layout(
        Identity(teacher="a" * 32, tokenizer="b" * 32, data="c" * 32),
        rows=len(part),
        widths={"logits": CLASSES},
        dtype="float16",
        precision=precision,
        batch_tokens=options.batch_tokens or (CPU_BATCH_TOKENS if world.device.type == "cpu" else BATCH_TOKENS),
        shard_rows=rows_of_shards("auto", len(part)),
        unpadded=options.unpadded,
    )
    with tempfile.TemporaryDirectory() as own:
        folder = world.gather_objects(own)[0]
        world.wait_for_all("benchmark")
        begin = time.perf_counter()
        writer = StoreWriter(Path(folder) / "store", layout, part.ids)
        teacher = pack_products(cast_products(model, precision, world.device), world.device)
        fill(writer, teacher, part, world, title="store")
        seconds = time.perf_counter() - begin
        world.wait_for_all("benchmark")
    return seconds


def matmul_rate(device: torch.device, precision: str, threads: int, hidden: int) -> float:
    """FLOP/s of [2048, H] x [H, 4 H], the largest product of the model, on the GPU or by so many threads."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    torch.set_num_threads(threads)
    a = torch.randn(2048, hidden, dtype=dtype, device=device)
    b = torch.randn(hidden, 4 * hidden, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) / 10)
    return 2 * 2048 * hidden * 4 * hidden / best


def run_way(options: argparse.Namespace) -> None:
    """One way in this process; the main rank prints its figures as a line of JSON."""
    if options.way == "one":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    world = connect()
    precision = "fp32" if options.way == "plain" else options.precision
    torch.manual_seed(0)
    hidden, layers, heads = SHAPES[options.shape]
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_labels=CLASSES,  # type: ignore[call-arg]
    )
    model = BertForSequenceClassification(config).eval().to(world.device)
    rows = max(options.rows // 8, 2) if options.way == "plain" else options.rows
    part = encode(read_texts(options.data / CORPORA[options.corpus], rows))
    before = matmul_rate(world.device, precision, world.threads, hidden)
    with torch.inference_mode(), autocast(precision, world.device):  # start-up costs belong to no way
        model(**{k: v.to(world.device) for k, v in part.collate(np.arange(2)).items()})
    if options.way == "plain":
        seconds = plain(model, part, world.device)
    elif options.way in ("trainer", "sorted"):
        seconds = trainer(model, part, world.device, precision, options.way == "sorted")
    else:
        seconds = store(model, part, world, precision, options)
    rate = max(before, matmul_rate(world.device, precision, world.threads, hidden)) * world.size
    lengths = part.lengths.astype(np.float64)
    flops = (24 * hidden**2 * lengths + 4 * hidden * lengths**2).sum() * layers
    if world.is_main:
        figures = {"rows_per_second": len(part) / seconds, "share": flops / seconds / rate, "rate": rate}
        device = torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu"
        print(json.dumps({**figures, "tokens": float(lengths.mean()), "device": device}))
    leave(0)


# --- the process that asks -----------------------------------------------------------------------


def measure(options: argparse.Namespace, way: str, corpus: str) -> dict[str, float]:
    command = [sys.executable]
    if way == "two":
        config = REPOSITORY / "accelerate_configs" / "cpu.yaml"
        launch = ["--config_file", str(config), "--num_processes", "2"]
        command += ["-m", "accelerate.commands.launch", *launch]
    command += [__file__, str(options.data), "--way", way, "--corpus", corpus]
    command += ["--rows", str(options.rows), "--precision", options.precision, "--shape", options.shape]
    if options.batch_tokens:
        command += ["--batch-tokens", str(options.batch_tokens)]
    command += ["--unpadded"] * options.unpadded
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{way}, {corpus}: {done.stderr[-2000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"rows')))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--shape", default="base", choices=list(SHAPES))
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--unpadded", action="store_true")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=list(CORPORA))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(options)
        return
    if torch.cuda.is_available():
        options.part = [part for part in options.part if part not in "cf"]
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {options.precision}, {options.rows} rows, {options.rounds} rounds, ", end="")
    print(f"{len(os.sched_getaffinity(0))} cores, load average before {load:.1f}\n")
    ways = list(dict.fromkeys(way for part in options.part for way in PARTS[part]))
    for corpus in options.corpora if ways else []:
        rounds = []
        for number in range(options.rounds):
            rounds.append({})
            for way in ways:
                begin = time.perf_counter()
                found = rounds[-1][way] = measure(options, way, corpus)
                told = f"{corpus}, round {number + 1} of {options.rounds}, {way}: {found['rows_per_second']:.1f} rows/s"
                print(f"{told} (took {time.perf_counter() - begin:.0f} s)", file=sys.stderr, flush=True)
        report(corpus, rounds, options.part)
    if "e" in options.part:
        print("e: reading", flush=True)
        script = Path(__file__).with_name("store_read.py")
        subprocess.run([sys.executable, str(script)], check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def report(corpus: str, rounds: list[dict[str, dict[str, float]]], parts: list[str]) -> None:
    def middle(figure: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return statistics.median(figure(each) for each in rounds)

    first = next(iter(rounds[0].values()))
    print(f"{corpus}, {first['tokens']:.1f} tokens a row, {first['device']}\n")
    print("| way | rows/s | GFLOP/s of matmul | share of it |\n|---|---|---|---|")
    for way in rounds[0]:
        rows, rate, share = (middle(lambda r, w=way, k=key: r[w][k]) for key in ("rows_per_second", "rate", "share"))  # type: ignore[misc]
        print(f"| {way} | {rows:.1f} | {rate / 1e9:.0f} | {share:.0%} |")
    print()
    for part in parts:
        if part in "abcf":
            *others, ours = PARTS[part]
            for other in others:
                ratio = middle(lambda r, a=ours, b=other: r[a]["rows_per_second"] / r[b]["rows_per_second"])  # type: ignore[misc]
                print(f"{part}: {ours} / {other}: {ratio:.2f}")
        elif part == "d":
            print(f"d: share of the matmul rate: {middle(lambda r: r['store']['share']):.0%}")
    print(flush=True)


if __name__ == "__main__":
    main()
