"""Pre-training against transformers' Trainer with whole-word masking, and the projection at masked positions.

    python tests/benchmarks/pretrain_speed.py [--model bert|nezha] [--hidden 768] [--layers 12] [--length 128]
                                              [--batch 32] [--accumulation 1] [--steps 20] [--precision fp32|bf16]

Both train the same model from the same weights on the same packed rows, words and batch sizes with torch's AdamW:
the package's own loop (mask, forward, backward, clip, step, logs), and the Trainer with
`DataCollatorForLanguageModeling(whole_word_mask=True)`, the successor of DataCollatorForWholeWordMask, which projects
every position on the vocabulary. They take turns, each time in a process of its own, as a user would start them. On a
CPU one thread works and its own time is taken, so that neither waiting nor other work on the machine counts.
Utilisation is the share of the rate of one large matrix product, measured here, in the same precision. Prints a line
of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from dtrain.data.vocabularies import trained_tokenizer
from dtrain.engines.choose import build_engine
from dtrain.engines.precision import autocast
from dtrain.losses.objective import Objective
from dtrain.models.masked_lm import MaskedLM
from dtrain.models.transformer import build_masked_lm
from dtrain.recipe.architectures.transformers import BertSpec, NezhaSpec
from dtrain.recipe.corpus import MaskingSpec
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import World, connect
from dtrain.runtime.stop import StopRequest
from dtrain.tasks.masked_lm.masking import MASKABLE, WORD_START, Masker
from dtrain.tasks.masked_lm.packing import PackedRows, pack, write_rows
from dtrain.tasks.masked_lm.rows import MaskedRows
from dtrain.tasks.masked_lm.task import MaskedLanguageModel, MaskedLosses
from dtrain.training.feed import Feed
from dtrain.training.job import TrainJob
from dtrain.training.loop import fit

CJK = 0x4E00
WARM_UP = 3  # steps that are not counted
WHO = ("ours", "theirs")


def made_up(options: argparse.Namespace, folder: Path) -> tuple[PreTrainedTokenizerFast, PackedRows]:
    """A tokenizer with `vocabulary` tokens, and packed rows of documents of words of 1 to 3 characters."""
    spec = BertSpec(type="bert", vocabulary_size=options.vocabulary)
    characters = [chr(CJK + n) for n in range(options.vocabulary - 5)]
    tokenizer = trained_tokenizer(spec, [["".join(characters)] * 2], True)
    random = np.random.default_rng(0)
    rows = options.batch * (options.steps + WARM_UP)
    count = (rows + 2) * options.length
    tokens = random.integers(5, len(tokenizer), count).astype(np.int32)
    flags = np.zeros(count, np.uint8)
    flags[_starts(random, count)] = 1
    flags[::100] |= 2
    offsets = np.unique(np.append(np.cumsum(random.integers(20, 400, count // 200)).clip(max=count), [0, count]))
    write_rows(pack([(tokens, flags, offsets)], options.length, 2, 3), options.length, folder / "rows")
    return tokenizer, PackedRows.open(folder / "rows")


def _starts(random: np.random.Generator, count: int) -> np.ndarray:
    places = np.cumsum(random.choice([1, 2, 2, 3], count))
    return places[places < count]


def new_model(options: argparse.Namespace, vocabulary: int) -> Any:
    shape = {"hidden": options.hidden, "layers": options.layers, "heads": max(1, options.hidden // 64), "dropout": 0.1}
    spec = NezhaSpec(type="nezha", **shape) if options.model == "nezha" else BertSpec(type="bert", **shape)
    torch.manual_seed(0)
    return build_masked_lm(spec, vocabulary=vocabulary, pad_id=0, max_length=options.length)


def clock(device: torch.device) -> float:
    """Seconds of the GPU's work, or of this process's thread."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Ours:
    """The package's own loop over `steps` steps."""

    def __init__(self, options: argparse.Namespace, world: World, model: Any, tokenizer: Any, rows: PackedRows) -> None:
        masker = Masker(MaskingSpec(), 0, tokenizer.mask_token_id, np.arange(5, len(tokenizer)))
        self.masked, self.model, self.world, self.rows, self.options = (
            MaskedRows(rows, masker, world, separate=False),
            model,
            world,
            rows,
            options,
        )

    def __call__(self, folder: Path) -> float:
        """Seconds a step."""
        spec = TrainSpec(
            name="ours",
            model=BertSpec(type="bert"),
            seed=0,
            epochs=1,
            batch_size=self.options.batch,
            accumulation=self.options.accumulation,
            optimizer=OptimizerSpec(type="adamw", lr=1e-4),
            schedule=ScheduleSpec(type="linear", warmup=0.1),
            metric="loss",
        )
        task = MaskedLanguageModel(self.masked.masker, separate=False)
        objective = Objective(MaskedLM(self.model), MaskedLosses(), task.outputs)  # type: ignore[arg-type]
        engine = build_engine(self.world, objective, spec, data_parallel=True, precision=self.options.precision)
        ticks: list[float] = []

        def draw(batch: np.ndarray, epoch: int, step: int) -> None:
            ticks.append(clock(self.world.device))
            self.masked.begin_step(batch, epoch, step)

        collate = functools.partial(task.collate, self.masked)
        fit(
            TrainJob(
                title="ours",
                spec=spec,
                engine=engine,
                feed=Feed(self.rows, collate, self.masked.units, device=self.world.device, draw=draw),
                evaluate=lambda _: {"loss": 0.0},
                checkpoints=folder / "checkpoints",
                tensorboard=folder / "tensorboard",
                identity="benchmark",
                stop=StopRequest(self.world, folder),
                headline=lambda _: "",
            )
        )
        return seconds_a_step(ticks, self.options.steps)


class Theirs:
    """transformers' Trainer on the same rows; words are told by offsets that touch."""

    def __init__(self, options: argparse.Namespace, model: Any, tokenizer: Any, rows: PackedRows) -> None:
        self.options, self.model, self.tokenizer = options, model, tokenizer
        tokens, kinds = rows.take(np.arange(len(rows)))
        self.data = [
            {
                "input_ids": t.tolist(),
                "offset_mapping": touching(k),
                "special_tokens_mask": ((k & MASKABLE) == 0).astype(int).tolist(),
            }
            for t, k in zip(tokens, kinds, strict=True)
        ]

    def __call__(self, folder: Path) -> float:
        ticks: list[float] = []
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        class Clock(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                ticks.append(clock(device))

        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=self.options.steps + WARM_UP,
            per_device_train_batch_size=self.options.batch // self.options.accumulation,
            gradient_accumulation_steps=self.options.accumulation,
            learning_rate=1e-4,
            warmup_steps=2,
            bf16=self.options.precision == "bf16",
            use_cpu=device.type == "cpu",
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            optim="adamw_torch",
        )
        collator = DataCollatorForLanguageModeling(self.tokenizer, whole_word_mask=True)
        Trainer(self.model, arguments, collator, self.data, callbacks=[Clock()]).train()
        return seconds_a_step(ticks, self.options.steps)


def touching(kinds: np.ndarray) -> list[tuple[int, int]]:
    """Offsets of a row's tokens: one that continues a word begins where the one in front ends."""
    goes_on = np.append((kinds[1:] & (MASKABLE | WORD_START)) == MASKABLE, False)
    return [(2 * n, 2 * n + 2 if on else 2 * n + 1) for n, on in enumerate(goes_on)]


def seconds_a_step(ticks: list[float], steps: int) -> float:
    taken = np.diff(ticks)[WARM_UP - 1 :]
    return float(np.mean(taken[: steps - 1]))


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of [2048, 768] x [768, 3072], the median of ten."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 768, device=device, dtype=dtype), torch.randn(768, 3072, device=device, dtype=dtype)
    times = []
    for _ in range(13):
        begin = clock(device)
        for _ in range(4):
            a @ b
        times.append((clock(device) - begin) / 4)
    return 2 * 2048 * 768 * 3072 / statistics.median(times[3:])


def step_flops(model: Any, options: argparse.Namespace) -> float:
    """Of forward and backward of a batch: six for each weight and token it meets, and attention."""
    tokens = options.batch * options.length
    layers = sum(p.numel() for p in model.base_model.encoder.parameters() if p.ndim > 1)
    head = model.config.hidden_size * (model.config.vocab_size + model.config.hidden_size)
    pairs = 12 * options.layers * options.hidden * options.length
    return tokens * (6 * layers + pairs + 6 * 0.15 * head)


def projection(options: argparse.Namespace, kind: str, device: torch.device) -> dict[str, float]:
    """Seconds of a forward and backward with the projection at 'masked' or at 'full' positions, and peak GiB."""
    model = MaskedLM(new_model(options, options.vocabulary)).to(device)
    rows = options.batch // options.accumulation
    tokens = torch.randint(5, options.vocabulary, (rows, options.length), device=device)
    chosen = torch.rand(tokens.shape, device=device).flatten() < 0.15
    places = chosen.nonzero().flatten() if kind == "masked" else torch.arange(tokens.numel(), device=device)
    labels = torch.where(chosen, tokens.flatten(), -100)[places]
    times = []
    for _ in range(4):
        begin = clock(device)
        with autocast(options.precision, device):
            scores = model(tokens, places)
            loss = functional.cross_entropy(scores.float(), labels)
        loss.backward()
        model.zero_grad()
        times.append(clock(device) - begin)
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    return {"seconds": round(statistics.median(times[1:]), 4), "peak_gib": round(peak, 3)}


def train(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step of 'ours' or 'theirs', and for 'ours' the operations of a step."""
    world = connect() if options.only == "ours" else None
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, rows = made_up(options, folder)
        model = new_model(options, len(tokenizer))
        if world is None:
            return {"seconds": Theirs(options, model, tokenizer, rows)(folder / "theirs")}
        flops = step_flops(model, options)
        return {"seconds": Ours(options, world, model, tokenizer, rows)(folder / "ours"), "flops": flops}


def alone(kind: str) -> dict[str, float]:
    """What a process of its own prints, with this one's options."""
    command = [sys.executable, *sys.argv, "--only", kind]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("bert", "nezha"), default="bert")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", choices=("masked", "full", "ours", "theirs"), help="only this, and print it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.only:
        projected = options.only in ("masked", "full")
        print(json.dumps(projection(options, options.only, device) if projected else train(options)))
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, 1 thread"
    result: dict[str, Any] = vars(options) | {"device": name}
    result |= {f"projection_{kind}": alone(kind) for kind in ("masked", "full")}
    rounds = [{who: alone(who) for who in WHO} for _ in range(options.rounds)]
    seconds = {who: min(taken[who]["seconds"] for taken in rounds) for who in WHO}
    tokens = options.batch * options.length
    rate = matmul_rate(device, options.precision)
    result |= {f"{who}_tokens_per_second": round(tokens / taken, 1) for who, taken in seconds.items()}
    result["times_faster"] = round(seconds["theirs"] / seconds["ours"], 3)
    result["times_faster_by_round"] = [round(r["theirs"]["seconds"] / r["ours"]["seconds"], 3) for r in rounds]
    result["matmul_tflops"] = round(rate / 1e12, 4)
    result["share_of_matmul_rate"] = round(rounds[0]["ours"]["flops"] / seconds["ours"] / rate, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
