"""A teacher's whole training step on GPUs: tokens/s and model FLOPs utilisation, against transformers' Trainer.

    python tests/benchmarks/teacher_step_speed.py [--precision bf16|fp16] [--size large] [--batch 64] [--length 128]
    accelerate launch --num_processes 8 tests/benchmarks/teacher_step_speed.py ...

Both train the same BERT from scratch on the same synthetic rows, all of one length, with AdamW, clipping at 1 and the
same rows a step; timed are the steps after a warm-up, host and device together. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.engines.choose import build_engine
from dtrain.engines.speed import peak_flops
from dtrain.models import build
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import connect, leave

VOCABULARY, LABELS, WARMUP = 21128, ["a", "b", "c"], 10


def make_model(size: str) -> nn.Module:
    torch.manual_seed(0)
    spec = BertSpec.model_validate({"type": "bert", "size": size})
    return build(spec, vocabulary=VOCABULARY, labels=LABELS, pad_id=0, max_length=512)


def with_dtrain(asked: argparse.Namespace) -> tuple[float, float]:
    """Tokens/s over all ranks, and utilisation."""
    world = connect()
    values = {"name": "t", "model": {"type": "bert", "size": asked.size}, "batch_size": asked.batch * world.size}
    spec = TrainSpec.model_validate({**values, "optimizer": {"lr": 1e-5}})
    engine = build_engine(world, make_model(asked.size), spec, data_parallel=True, precision=asked.precision)
    ids = torch.randint(1, VOCABULARY, (asked.batch, asked.length), device=world.device)
    labels = torch.zeros(asked.batch, dtype=torch.long, device=world.device)
    engine.model.train()

    def step() -> None:
        with engine.synchronise_when(True):
            with engine.autocast():
                logits = engine.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / (asked.batch * world.size)
            engine.backward(loss)
        engine.step(1.0)

    seconds = timed(step, asked.steps)
    tokens = asked.batch * asked.length * world.size * asked.steps
    per_token, per_pair = engine.flops
    peak = peak_flops(world.device, asked.precision)
    flops = tokens * (per_token + per_pair * asked.length)
    return tokens / seconds, flops / seconds / (peak * world.size)


def timed(step: Any, steps: int) -> float:
    for _ in range(WARMUP):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, count: int, length: int) -> None:
        self.ids = torch.randint(1, VOCABULARY, (count, length))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(0)}


def with_trainer(asked: argparse.Namespace) -> float:
    """Tokens/s over all ranks of transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        begin = end = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARMUP, WARMUP + asked.steps):
                torch.cuda.synchronize()
                self.begin, self.end = self.end, time.perf_counter()

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=asked.batch,
            max_steps=WARMUP + asked.steps,
            learning_rate=1e-5,
            max_grad_norm=1.0,
            bf16=asked.precision == "bf16",
            fp16=asked.precision == "fp16",
            optim="adamw_torch_fused",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        rows = Rows((WARMUP + asked.steps) * asked.batch * ranks, asked.length)
        Trainer(make_model(asked.size), settings, train_dataset=rows, callbacks=[clock]).train()
    return asked.batch * asked.length * ranks * asked.steps / (clock.end - clock.begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("bf16", "fp16"), default="bf16")
    parser.add_argument("--size", default="large")
    parser.add_argument("--batch", type=int, default=64, help="rows a rank a step")
    parser.add_argument("--length", type=int, default=128, help="tokens a row")
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("teacher_step_speed.py measures GPUs, and found none")
    tokens, utilisation = with_dtrain(asked)
    torch.cuda.empty_cache()
    trainer = with_trainer(asked)
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        **vars(asked),
        "tokens_per_second": round(tokens),
        "utilisation": round(utilisation, 3),
        "trainer_tokens_per_second": round(trainer),
        "ratio": round(tokens / trainer, 3),
    }
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found))
    leave(0)


if __name__ == "__main__":
    main()
