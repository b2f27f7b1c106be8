"""What checkpoints cost a BERT-base-shaped teacher, and how long until a stopped run makes its first step.

    python tests/benchmarks/checkpoint_cost.py [--every 100] [--steps 12] [--batch 16] [--length 32] [--rounds 3]

Steps without a checkpoint and steps beside one that is being written are timed in turn in one process. Printed:

    wait    seconds that training stands still for one checkpoint (its tensors are copied)
    write   seconds until it is whole on the disk, beside the steps that follow
    slower  seconds that those steps lose to it in all
    share   (wait + slower) of `every` steps' time with one checkpoint
    at once the same share if training waited until it is written
    resume  from the checkpoint's files to the end of the first step, in a process that has imported everything
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dtrain.engines.choose import build_engine
from dtrain.engines.engine import Engine
from dtrain.models import build
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.recipe.training import Teacher
from dtrain.runtime.distributed import World, connect
from dtrain.training.checkpoint import Checkpoints

CLASSES, VOCABULARY = 15, 21128


def make_engine(world: World) -> Engine:
    torch.manual_seed(0)
    values = {"name": "base", "model": {"type": "bert", "size": "base"}, "seed": 0, "batch_size": 16}
    spec = Teacher.model_validate(values)
    assert isinstance(spec.model, BertSpec)
    model = build(spec.model, vocabulary=VOCABULARY, labels=[str(c) for c in range(CLASSES)], pad_id=0)
    return build_engine(world, model, spec, data_parallel=False, precision="bf16")


def step(engine: Engine, batch: int, length: int) -> float:
    begin = time.perf_counter()
    tokens = torch.randint(1, VOCABULARY, (batch, length), device=engine.world.device)
    labels = torch.randint(CLASSES, (batch,), device=engine.world.device)
    with engine.autocast():
        logits = engine.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
    engine.backward(loss)
    engine.step(1.0)
    if engine.world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
    options = parser.parse_args()
    world = connect()
    engine = make_engine(world)
    shape = (options.batch, options.length)
    step(engine, *shape)
    shares, at_once = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = Checkpoints(Path(folder), "benchmark")
        for number in range(options.rounds):
            plain = statistics.median(step(engine, *shape) for _ in range(options.steps))
            begin = time.perf_counter()
            tensors = engine.state()
            checkpoints.save(number + 1, {}, tensors, engine.weights())
            wait = time.perf_counter() - begin
            beside = 0.0
            while checkpoints.busy:
                beside += step(engine, *shape) - plain
            write = time.perf_counter() - begin - wait
            checkpoints.wait()
            whole = options.every * plain
            shares.append((wait + beside) / (whole + wait + beside))
            began = time.perf_counter()
            checkpoints.save(number + 1, {}, tensors, engine.weights())
            checkpoints.wait()
            alone = time.perf_counter() - began
            at_once.append(alone / (whole + alone))
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / len(checkpoints.steps())
            print(
                f"step {plain:.2f} s; wait {wait:.2f} s, write {write:.1f} s, slower {beside:.2f} s, "
                f"share {shares[-1]:.2%}, at once {at_once[-1]:.2%}; {size / 1e9:.2f} GB",
                flush=True,
            )
        checkpoints.close()
        other = make_engine(world)
        begin = time.perf_counter()
        found = Checkpoints(Path(folder), "benchmark").newest()
        assert found is not None
        other.load_state(found[1])
        loaded = time.perf_counter() - begin
        first = step(other, *shape)
    print(f"resume {loaded + first:.1f} s (read and checked {loaded:.1f} s, first step {first:.1f} s)")
    print(
        f"every {options.every} steps: share {statistics.median(shares):.2%} (at once {statistics.median(at_once):.2%}); "
        f"{world.device.type}, {os.cpu_count()} cores, batch {options.batch} x {options.length}, bf16, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
