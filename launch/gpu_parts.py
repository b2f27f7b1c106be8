"""The parts of `gpu_check.sh`, one after another: `python launch/gpu_parts.py FOLDER [PART ...]`.

Each part is a command with a time limit. FOLDER/page.md is written again after each part: a run that dies in the fifth
has the results of four.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

# This file is not part of the package: gpu_check.sh runs it as a script.
ROOT = Path(__file__).resolve().parent.parent
# Whether the script itself is tried without a GPU: on a CPU, or on a simulated device.
TRIED = os.environ.get("DTRAIN_TEST_DEVICE") in ("cpu", "pretended")
PRETENDED = os.environ.get("DTRAIN_TEST_DEVICE") == "pretended"
GPUS = torch.cuda.device_count() if torch.cuda.is_available() and not TRIED else 0
DEVICE = "cpu" if TRIED and not PRETENDED else "cuda"
TEST = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", "-rfE"]
QUICK = ["--quick"] if TRIED else []


@dataclass(frozen=True)
class Part:
    name: str
    what: str
    words: list[str]
    seconds: int
    gpus: int = 1


def parts(out: Path) -> list[Part]:
    """The parts that this machine can run, the most informative first."""
    benchmarks, students = "tests/benchmarks", ["--members", "8", "--steps", "64", "--batches", "128"]
    students += ["--ways", "one after another", "stacked", "streams", "processes"]
    if TRIED:
        students += ["--models", "textcnn"]
    few = ["--layers", "2", "--hidden", "64", "--steps", "2"] if TRIED else ["--layers", "24", "--steps", "5"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    launch += ["--num_processes", str(GPUS), "tests/benchmarks/teacher_step_speed.py"]
    rows = ["--rows", "8", "--shape", "small"] if TRIED else ["--rows", "4096"]
    synthetic = [f"{benchmarks}/precompute_speed.py", str(out / "rows"), "--part", "a", "d", "--corpora", "titles"]
    found = [
        Part("models", "every model and kernel path against the CPU", [*TEST, "tests/gpu/test_models_on_gpu.py"], 60),
        Part("step", "a BERT-large step", ["-m", "tests.gpu.figures", "step", *QUICK], 50),
        Part("runs", "whole runs, gloo on one GPU, ZeRO alone", [*TEST, "tests/gpu/test_one_gpu.py"], 130),
        Part("nezha", "NEZHA against BERT", ["-m", "tests.gpu.figures", "nezha", *QUICK], 35),
        Part("lamb", "LAMB against fused AdamW", [f"{benchmarks}/lamb_speed.py", *few], 40),
        Part(
            "students",
            "8 students one after another, stacked, on streams, as processes",
            [f"{benchmarks}/many_students.py", "--device", DEVICE, *students, *QUICK],
            95,
        ),
        Part("lstm", "an LSTM by precision", ["-m", "tests.gpu.figures", "lstm", *QUICK], 25),
        Part("precompute", "a store against the plain loop", [*synthetic, "--rounds", "1", *rows], 45),
        Part("ranks", "engines, stores and faults over NCCL", [*TEST, "-s", "tests/gpu/test_several_gpus.py"], 480, 2),
        Part("step of all", "a BERT-large step by DDP, against Trainer", launch, 150, 2),
    ]
    return [part for part in found if part.gpus <= max(GPUS, 2 if DEVICE == "cpu" and part.name == "ranks" else 1)]


def run(part: Part, out: Path) -> dict[str, object]:
    """Run a part: its exit code (124: out of time), its seconds, and its output; all of its processes are ended."""
    begin, log = time.monotonic(), out / f"{part.name.replace(' ', '-')}.log"
    with log.open("w", encoding="utf-8") as file:
        words = [sys.executable, *(["-m", "tests.gpu.pretended.start"] if PRETENDED else []), *part.words]
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        limit = part.seconds * (6 if TRIED else 1)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = 124
        finally:  # also if this program is interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    told = log.read_text(encoding="utf-8", errors="replace")
    return {"code": code, "seconds": round(time.monotonic() - begin, 1), **found_in(told)}


def found_in(told: str) -> dict[str, object]:
    """What an output contains: figures (its last line of JSON), counts of tests, and its end."""
    found: dict[str, object] = {}
    for line in told.splitlines():
        if line.startswith("{"):
            try:
                found["figures"] = json.loads(line)
            except json.JSONDecodeError:
                continue
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", told)
    if counts:
        found["tests"] = {name: int(count) for count, name in counts}
    return found | {"end": told[-3000:]}


def versions() -> dict[str, object]:
    """The versions of all that affects results, and the names of the GPUs."""
    found: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if GPUS:
        found["gpus"] = [torch.cuda.get_device_name(number) for number in range(GPUS)]
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["cudnn"] = torch.backends.cudnn.version()
    found |= {name: version(name) for name in ("transformers", "accelerate")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found | {"commit": commit.stdout.strip() or "unknown"}


def make_rows(out: Path) -> None:
    """Write synthetic titles for the benchmark of precomputing, which then needs nothing beside the repository."""
    folder = out / "rows" / "tnews"
    folder.mkdir(parents=True, exist_ok=True)
    letters = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
    number = 12345
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        for row in range(4096):
            text = ""
            for _ in range(8 + row % 24):
                number = (1103515245 * number + 12345) % 2**31
                text += letters[number % len(letters)]
            file.write(json.dumps({"sentence": text, "label": str(100 + row % 15), "label_desc": "x"}) + "\n")


def write_page(out: Path, about: dict[str, object], results: dict[str, dict[str, object]], asked: list[Part]) -> None:
    lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += ["| part | what | seconds | code | tests |", "|---|---|---:|---:|---|"]
    for part in asked:
        result = results.get(part.name)
        tests = ", ".join(f"{n} {name}" for name, n in result.get("tests", {}).items()) if result else ""  # type: ignore[attr-defined]
        told = f"{result['seconds']} | {result['code']} | {tests}" if result else "| not begun |"
        lines.append(f"| {part.name} | {part.what} | {told} |")
    for name, result in results.items():
        if "figures" in result:
            lines += ["", f"## {name}", "", "```json", json.dumps(result["figures"], indent=1), "```"]
        elif "tests" not in result and not result["code"]:
            lines += ["", f"## {name}", "", "```text", str(result["end"]).rstrip(), "```"]
        if result["code"]:
            lines += ["", f"## {name}: how it ended", "", "```text", str(result["end"])[-2500:].rstrip(), "```"]
    (out / "page.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def earlier(out: Path, asked: list[Part]) -> dict[str, dict[str, object]]:
    """The results of an earlier run, by part."""
    files = {part.name: out / f"{part.name.replace(' ', '-')}.json" for part in asked}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def main() -> int:
    out, named = Path(sys.argv[1]), sys.argv[2:]
    if not GPUS and not TRIED:
        print("gpu_check: torch sees no GPU here (DTRAIN_TEST_DEVICE=cpu tries the script itself)", file=sys.stderr)
        return 2
    about, asked = versions(), parts(out)
    unknown = set(named) - {part.name for part in asked}
    if unknown:
        print(
            f"gpu_check: no part {sorted(unknown)} here (there are: {[part.name for part in asked]})", file=sys.stderr
        )
        return 2
    results = earlier(out, asked) if named else {}
    (out / "versions.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    make_rows(out)
    write_page(out, about, results, asked)
    for part in [part for part in asked if part.name in named or not named]:
        print(f"{part.name}: {part.what} (at most {part.seconds} s) ...", flush=True)
        results[part.name] = run(part, out)
        saved = {**asdict(part), **results[part.name]}
        (out / f"{part.name.replace(' ', '-')}.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")
        write_page(out, about, results, asked)
        print(f"  code {results[part.name]['code']}, {results[part.name]['seconds']} s", flush=True)
    print(f"results: {out / 'page.md'}")
    return 1 if any(result["code"] for result in results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
