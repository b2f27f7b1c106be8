"""What N rows take of memory in prepare, precompute and distill: the peak of each process, and what of it is held.

    python tests/benchmarks/memory_of_rows.py FOLDER --rows 250000 1000000 [--task classification] [--workers 1]

Makes synthetic rows (a label and 20 characters, one in ten a text that was there before), a tiny TextCNN as teacher,
trained on 4,000 rows of the same kind, and a recipe that takes it as it is (`from:`). Then runs `dtrain run --stages`
with one process for prepare, precompute and distill in turn, and looks at every process of the launch ten times a second:

    held     RssAnon of /proc/PID/status: the process's own memory, which the kernel cannot drop
    mapped   RssFile and RssShmem: pages of files, which it can drop and read again. As long as nothing else wants the
             memory, they stay, so the figure is of what was read lately and no need
    peak     the largest sum of both at one moment

The launcher checks all rows before it starts anything, so it is a process of its own in the table. distill is stopped
by SIGTERM `--seconds` after its first step; what it holds no longer grows then. Seconds of CPU are of a process (of
prepare with its workers) and hardly depend on what else the machine does; seconds are of the whole launch. Needs Linux,
and in FOLDER about 600 bytes a row of disk. Prints a table for `results/memory.md`; `--keep` leaves the runs where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LABELS = [f"label{number:02d}" for number in range(15)]
TEACHER = {"type": "textcnn", "embedding": 16, "filters": 8, "widths": [2, 3]}
STUDENT = {"type": "textcnn", "embedding": 16, "filters": 8, "widths": [2]}
CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]


def target(task: str, source: random.Random) -> str:
    """What stands in a row's column of labels."""
    if task == "regression":
        return f"{source.random() * 5:.3f}"
    if task == "multi_label":
        return ",".join(sorted(source.sample(LABELS, source.randrange(3))))
    return source.choice(LABELS)


def write_rows(path: Path, rows: int, task: str, seed: int) -> None:
    """A table of rows, a column of labels and one or two of texts; for tagging JSON lines with spans."""
    source = random.Random(seed)
    lately: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            if lately and source.random() < 0.1:
                text = lately[source.randrange(len(lately))]
            else:
                text = "".join(source.choices(CHARACTERS, k=source.randrange(12, 29)))
                lately.append(text)
                if len(lately) > 1000:
                    lately = lately[500:]
            if task == "tagging":
                start = source.randrange(8)
                spans = {source.choice(LABELS): {text[start : start + 3]: [[start, start + 2]]}}
                file.write(json.dumps({"text": text, "label": spans}, ensure_ascii=False) + "\n")
            else:
                second = f"\t{text[::-1]}" if task == "pairs" else ""
                file.write(f"{target(task, source)}\t{text}{second}\n")


def recipe(folder: Path, name: str, task: str, rows: Path, teacher: dict, workers: int) -> Path:
    """A recipe of one teacher and one student; keys of JSON, which YAML reads as well."""
    columns = {"label": 0, "text": 1} | ({"text_b": 2} if task == "pairs" else {})
    # A thousandth for validation: scoring has its own size, and is no matter of this table.
    data = {"task": task, "train": str(rows), "split": {"valid": 0.001, "test": 0}, "workers": workers}
    data |= {} if task == "tagging" else {"header": False, "columns": columns}
    model = STUDENT if task != "tagging" else {"type": "idcnn", "embedding": 16, "filters": 16}
    student = {"name": "student", "model": model, "epochs": 1, "batch_size": 128}
    values = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "launch": {"processes": 1},
        "data": data,
        "teachers": [{"name": "teacher", **teacher}],
        "students": [student],
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def memory(pid: int) -> tuple[int, int] | None:
    """Bytes that a process holds, and that are mapped; None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Rss")}
    return (found["RssAnon"], found["RssFile"] + found["RssShmem"]) if found else None


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has used so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            for thread in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{thread}/children").read_text().split())
        except OSError:
            continue
    return found


class Launch:
    """`dtrain run RECIPE --stages STAGE`, watched until it ends.

    Attributes:
        peaks: by process, the most it held, had mapped, and both at one moment, in bytes.
    """

    def __init__(
        self, path: Path, stage: str, stop_after: float | None = None, checkpoints: Path | None = None
    ) -> None:
        words = [sys.executable, "-m", "dtrain", "run", str(path), "--stages", stage]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        begin = time.perf_counter()
        said = path.with_suffix(".log")
        with said.open("w") as log:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self.peaks: dict[int, list[int]] = {}
        self.cpu: dict[int, float] = {}
        self.steps_from: float | None = None
        stopping = False
        while process.poll() is None:
            for pid in descendants(process.pid):
                now = memory(pid)
                self.cpu[pid] = max(self.cpu.get(pid, 0.0), cpu_seconds(pid))
                if now is not None:
                    peak = self.peaks.setdefault(pid, [0, 0, 0])
                    peak[:] = max(peak[0], now[0]), max(peak[1], now[1]), max(peak[2], sum(now))
            self.output = said.read_text()
            if self.steps_from is None and "parameters" in self.output:
                self.steps_from = time.perf_counter()
            if stop_after and self.steps_from and time.perf_counter() - self.steps_from > stop_after and not stopping:
                process.send_signal(signal.SIGTERM)
                stopping = True
            time.sleep(0.1)
        self.output = said.read_text()
        self.seconds = time.perf_counter() - begin
        self.code = process.returncode
        if self.code not in (0, 75):
            raise SystemExit(f"{' '.join(words)}: exit code {self.code}\n{self.output[-3000:]}")
        launcher = process.pid
        ranks = [pid for pid in self.peaks if pid != launcher]
        self.launcher = self.peaks[launcher]
        self.rank = max((self.peaks[pid] for pid in ranks), key=lambda peak: peak[0], default=[0, 0, 0])
        self.launcher_cpu = self.cpu[launcher]
        self.ranks_cpu = sum(self.cpu[pid] for pid in ranks)


def measure(folder: Path, rows: int, task: str, seconds: float, workers: int, stages: list[str]) -> None:
    small, large = folder / "small.data", folder / f"{task}-{rows}.data"
    suffix = ".jsonl" if task == "tagging" else ".tsv"
    small, large = small.with_suffix(suffix), large.with_suffix(suffix)
    write_rows(small, 4000, task, 1)
    write_rows(large, rows, task, 2)
    model = TEACHER if task != "tagging" else {"type": "idcnn", "embedding": 16, "filters": 16}
    first = recipe(folder, f"small_{task}", task, small, {"model": model, "epochs": 1}, workers)
    if not (folder / "runs" / f"small_{task}" / "teachers" / "teacher" / "done.json").exists():
        for stage in ("prepare", "finetune"):
            Launch(first, stage)
    given = {"from": str(folder / "runs" / f"small_{task}" / "teachers" / "teacher")}
    second = recipe(folder, f"rows{rows}", task, large, given, workers)
    for stage in stages:
        if stage == "precompute":
            Launch(second, "finetune")  # takes the teacher as it is
        launch = Launch(second, stage, seconds if stage == "distill" else None)
        processes = ("launcher", launch.launcher, launch.launcher_cpu), (stage, launch.rank, launch.ranks_cpu)
        for name, peaks, cpu in processes:
            cells = [task, f"{rows:,}", stage, name, *(f"{value / 2**20:,.0f}" for value in peaks)]
            print("|", " | ".join([*cells, f"{cpu:,.1f}", f"{launch.seconds:,.1f}"]), "|", flush=True)
        print(launch.output.strip().splitlines()[-1], file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--task", default="classification")
    parser.add_argument("--seconds", type=float, default=15.0, help="of distill, from its first step on")
    parser.add_argument("--workers", type=int, default=1, help="data.workers")
    parser.add_argument("--stages", nargs="+", default=["prepare", "precompute", "distill"])
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print("| task | rows | stage | process | held, MiB | mapped | peak | CPU seconds | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows in asked.rows:
        measure(asked.folder, rows, asked.task, asked.seconds, asked.workers, asked.stages)
        if not asked.keep:
            shutil.rmtree(asked.folder / "runs" / f"rows{rows}")


if __name__ == "__main__":
    main()
