"""NEZHA here, in transformers 4.57.6, and BERT with fused attention: time and peak memory, in turn.

    python tests/benchmarks/nezha_speed.py --old-python VENV/bin/python [--quick] [--device cuda --dtype bfloat16]

VENV holds torch and transformers 4.57.6 (`tests/models/nezha/make_golden.py VENV` makes one). Each of the three runs
in a process of its own, all with the same torch. One round is one call of each, one after the other, so that what
else the machine does meets all three; the figures are medians over the rounds of the ratio within a round. Prints a
table for `results/nezha_speed.md`.

Memory is the peak during a call, above what the process held before the model was built: weights included, and the
relative tables that 4.57 keeps in every layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENS = {32: 512, 64: 1024, 128: 1024, 512: 1024}  # of a batch, by length
CONTENDERS = ("dtrain", "transformers 4.57", "BERT sdpa")


# --- a contender's own process ---------------------------------------------------------------------------------


def build(contender: str, layers: int) -> Any:
    shape = {"vocab_size": 21128, "num_hidden_layers": layers}
    if contender == "dtrain":
        from dtrain.models.nezha import NezhaConfig, NezhaModel

        return NezhaModel(NezhaConfig(**shape))
    if contender == "BERT sdpa":
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig(**shape, attn_implementation="sdpa"))
    from transformers.models.deprecated.nezha import NezhaConfig, NezhaModel

    return NezhaModel(NezhaConfig(**shape))


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Memory:
    """Peak bytes since `reset`: of the GPU's allocator, or of the process (Linux)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = self.now()

    def now(self) -> int:
        import torch

        return torch.cuda.memory_allocated() if self.device == "cuda" else status("VmRSS")

    def reset(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS

    def peak(self) -> int:
        import torch

        found = torch.cuda.max_memory_allocated() if self.device == "cuda" else status("VmHWM")
        return found - self.before


def serve(options: argparse.Namespace) -> None:
    """Answer each line {"length", "mode"} on stdin with {"seconds", "peak"} on stdout."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    memory = Memory(options.device)
    model = build(options.serve, options.layers).to(options.device)
    dtype = getattr(torch, options.dtype)
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        train = task["mode"] == "forward+backward"
        model.train(train)
        length = task["length"]
        ids = torch.randint(1, 21128, (TOKENS[length] // length, length), device=options.device)
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        memory.reset()
        start = time.perf_counter()
        with torch.set_grad_enabled(train), torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
            output = model(ids, attention_mask=mask).last_hidden_state
        if train:
            output.float().square().mean().backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = memory.peak()
        model.zero_grad()
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


# --- the process that asks -------------------------------------------------------------------------------------


class Contender:
    def __init__(self, name: str, python: str, options: argparse.Namespace) -> None:
        shared = ["--threads", str(options.threads), "--layers", str(options.layers)]
        command = [python, __file__, "--serve", name, *shared, "--device", options.device, "--dtype", options.dtype]
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": str(options.threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.versions = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("{"):
            if not line:
                raise SystemExit(f"{self.process.args} ended")
        return json.loads(line)

    def run(self, length: int, mode: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"length": length, "mode": mode}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(options: argparse.Namespace) -> None:
    print(f"{options.device}, {options.dtype}, {options.layers} layers of base size, {options.threads} threads")
    print("\n| length | mode | ms here | 4.57 / here | BERT / here | peak MiB here | 4.57 / here | BERT / here |")
    print("|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        for mode in ("forward", "forward+backward"):
            # new processes for each line: a peak then holds nothing of the line before
            pythons = {name: options.old_python if "4.57" in name else sys.executable for name in CONTENDERS}
            contenders = [Contender(name, python, options) for name, python in pythons.items()]
            for contender in contenders:
                contender.run(length, mode)
            rounds = [[contender.run(length, mode) for contender in contenders] for _ in range(options.rounds)]
            for contender in contenders:
                contender.stop()
            cells = [f"{1000 * statistics.median(here['seconds'] for here, *_ in rounds):.0f}"]
            for other in (1, 2):
                cells.append(f"{statistics.median(r[other]['seconds'] / r[0]['seconds'] for r in rounds):.2f}")
            cells.append(f"{statistics.median(here['peak'] for here, *_ in rounds) / 2**20:.0f}")
            for other in (1, 2):
                cells.append(f"{statistics.median(r[other]['peak'] / r[0]['peak'] for r in rounds):.2f}")
            print(f"| {length} | {mode} | {' | '.join(cells)} |", flush=True)
    print("\n" + "; ".join(f"{c.process.args[3]}: {c.versions}" for c in contenders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old-python", help="the interpreter of the environment with transformers 4.57.6")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quick", action="store_true", help="2 layers, 7 rounds")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.layers, options.rounds = 2, 7
    if options.serve:
        serve(options)
    elif options.old_python is None:
        parser.error("--old-python is needed")
    else:
        measure(options)


if __name__ == "__main__":
    main()
