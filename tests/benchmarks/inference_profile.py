"""Where a teacher's inference spends its time on a CPU, operator by operator, on one thread: an account of the matmul rate.

    python tests/benchmarks/inference_profile.py DATA [--shape small base] [--precision fp32 bf16] [--rows 400] [--tokens 512]

DATA, shapes and texts are those of `precompute_speed.py`, and so are the weights: made up, cast and laid out as `precompute`
has them. Batches of so many padded tokens are answered twice: in the thread's own seconds, and watched by torch's profiler,
whose times by operator are scaled to the former. The matmul rate is that of [2048, H] x [H, 4 H], in the thread's own
seconds, too, before and after; a part at 100 % of it would be the counted products alone, without padding.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs from other folders, too

import torch
from precompute_speed import CLASSES, CORPORA, SHAPES, encode, read_texts
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification

from dtrain.data.batching import inference_batches
from dtrain.engines.precision import autocast
from dtrain.runtime.allocator import keep_freed_memory
from dtrain.training.inference import cast_products, pack_products

CPU = torch.device("cpu")
PARTS = {
    "products": ("addmm", "mm", "linear", "_linear_pointwise", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "_scaled_dot", "bmm", "softmax"),
    "normalisation": ("native_layer_norm", "layer_norm"),
    "activation": ("gelu",),
    "casts, copies": ("copy_", "_to_copy", "to", "clone", "contiguous", "cat", "fill_", "zero_"),
    "additions": ("add", "add_"),
    "embedding": ("embedding", "index_select", "gather"),
}


def part_of(operator: str) -> str:
    name = operator.removeprefix("aten::").removeprefix("mkldnn::")
    exact = {word: part for part, words in PARTS.items() for word in words}
    if name in exact:
        return exact[name]
    return next((part for word, part in exact.items() if len(word) > 5 and name.startswith(word)), "other")


def matmul_rate(precision: str, hidden: int) -> float:
    """FLOP/s of this thread's own seconds, the best of ten times ten."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, hidden, dtype=dtype), torch.randn(hidden, 4 * hidden, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        begin = time.thread_time()
        for _ in range(10):
            a @ b
        best = min(best, (time.thread_time() - begin) / 10)
    return 2 * 2048 * hidden * 4 * hidden / best


def account(options: argparse.Namespace, corpus: str, shape: str, precision: str) -> tuple[list[str], list[str]]:
    """The cells of a line of each table: rows/s and shares of time, and the products by themselves."""
    hidden, layers, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_labels=CLASSES,  # type: ignore[call-arg]
    )
    model = BertForSequenceClassification(config).eval()
    model = pack_products(cast_products(model, precision, CPU), CPU)  # type: ignore[assignment]
    part = encode(read_texts(options.data / CORPORA[corpus], options.rows))
    batches = [part.collate(rows) for rows in inference_batches(part.lengths, options.tokens)]

    def answer() -> float:
        begin = time.thread_time()
        for batch in batches:
            model(**batch)
        return time.thread_time() - begin

    rate = matmul_rate(precision, hidden)
    with torch.inference_mode(), autocast(precision, CPU):
        answer()
        seconds = min(answer() for _ in range(options.repeats))
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            answer()
    rate = max(rate, matmul_rate(precision, hidden))
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        if event.key.startswith(("aten::", "mkldnn::")):
            spent[part_of(event.key)] += event.self_cpu_time_total  # type: ignore[assignment]
    whole = sum(spent.values())
    lengths = part.lengths.astype(float)
    products = 24 * hidden**2 * lengths.sum() * layers
    flops = products + (4 * hidden * lengths**2).sum() * layers
    padded = sum(batch["input_ids"].numel() for batch in batches) / lengths.sum()
    name = f"{shape}, {precision}, {corpus}"
    parts = [f"{100 * spent[word] / whole:.1f}" for word in (*PARTS, "other")]
    own = padded * products / (seconds * spent["products"] / whole) / rate  # the rate of the products alone
    told = [name, f"{len(part) / seconds:.0f}", f"{rate / 1e9:.0f}", f"{flops / seconds / rate:.0%}"]
    return [*told, f"{padded - 1:.1%}", f"{own:.0%}"], [name, *parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=512, help="padded, of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    found = [
        account(options, corpus, shape, precision)
        for shape in options.shape
        for corpus in options.corpora
        for precision in options.precision
    ]
    print(f"torch {torch.__version__}, batches of {options.tokens} tokens, load average {os.getloadavg()[0]:.1f}\n")
    print("| teacher | rows/s | GFLOP/s of matmul | share of it | padding | the products' own share |")
    print("|---|---:|---:|---:|---:|---:|")
    for line, _ in found:
        print(f"| {' | '.join(line)} |")
    print(f"\n| % of the time | {' | '.join((*PARTS, 'other'))} |\n|---|{'---:|' * (len(PARTS) + 1)}")
    for _, line in found:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
