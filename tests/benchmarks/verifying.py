"""What `distill` spends on checking files before it trains: bytes and seconds of sha256, in this checkout and in another one.

    python tests/benchmarks/verifying.py OTHER_CHECKOUT [--students 32] [--size base] [--rows 256]

Two teachers of BERT-base's shape (random weights, one step of training) have their outputs for synthetic rows stored; then
small TextCNNs that each train alone learn from both stores, one epoch. Every sha256 that a process of `distill` computes is
noted with its bytes and its seconds: of whole files (weights, shards), and of what is hashed in memory (weights that were
read, ids of rows). Both checkouts have one process of one thread; files are in the page cache, where they were just written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
LABELS = ("left", "right")
# Imported by every interpreter of the launch before anything else.
NOTES = '''
import hashlib, os, threading, time
_path, _plain, _file, _inside = os.environ["NOTES"], hashlib.sha256, hashlib.file_digest, threading.local()

def _note(kind, size, seconds):
    handle = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{kind} {size} {seconds}\\n".encode())
    os.close(handle)

class _Counting:
    """A sha256 that notes what it was given."""
    def __init__(self, data=b"", **more):
        self._inner, self._size, self._seconds = _plain(**more), 0, 0.0
        self.update(data)
    def update(self, data):
        begin = time.perf_counter()
        self._inner.update(data)
        self._seconds += time.perf_counter() - begin
        self._size += memoryview(data).nbytes
    def hexdigest(self):
        if self._size > 1 << 16:  # not names and settings
            _note("memory", self._size, self._seconds)
        return self._inner.hexdigest()
    def digest(self):
        return self._inner.digest()

def _noted(file, *words, **more):
    begin = time.perf_counter()
    digest = _file(file, *words, **more)
    _note("file", os.fstat(file.fileno()).st_size, time.perf_counter() - begin)
    return digest

hashlib.sha256, hashlib.file_digest = _Counting, _noted
'''


def write_rows(path: Path, count: int) -> None:
    draw = random.Random(1)
    lines = ("".join(draw.choices("甲乙丙丁戊己庚辛壬癸", k=12)) for _ in range(count))
    path.write_text("".join(f"{line}\t{draw.choice(LABELS)}\n" for line in lines), encoding="utf-8")


def recipe(folder: Path, size: str, students: int) -> dict[str, Any]:
    small = {"type": "textcnn", "embedding": 8, "filters": 4, "widths": [2]}
    teacher = {"epochs": 1, "batch_size": 256, "optimizer": {"lr": 1e-5}}
    return {
        "name": "verifying",
        "data": {
            "train": str(folder / "rows.tsv"),
            "header": False,
            "columns": {"text": 0, "label": 1},
            "split": {"valid": 0.1},
        },
        "teachers": [
            {"name": name, "model": {"type": "bert", "size": size}, "seed": seed, **teacher}
            for seed, name in enumerate("ab")
        ],
        "students": [
            {"name": f"s{number}", "model": small, "seed": number, "epochs": 1, "batch_size": 128}
            for number in range(students)
        ],
        "placement": {"fuse": "never"},
        "launch": {"processes": 1},
    }


def measure(checkout: Path, path: Path, output: Path) -> dict[str, float]:
    """Bytes and seconds of sha256 in `distill`, and the seconds of the whole stage."""
    notes = output / "hooks"
    notes.mkdir(parents=True)
    (notes / "sitecustomize.py").write_text(NOTES, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NOTES": str(notes / "log")}
    environment["PYTHONPATH"] = f"{notes}:{checkout}"
    seconds = 0.0
    for stages in ("prepare,finetune,precompute", "distill"):
        (notes / "log").unlink(missing_ok=True)
        command = [sys.executable, "-m", "dtrain", "run", str(path), f"output_dir={output}", "--stages", stages]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"{checkout}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    found = {"whole": seconds, "file bytes": 0.0, "file seconds": 0.0, "memory bytes": 0.0, "memory seconds": 0.0}
    found["files"] = 0.0
    for line in (notes / "log").read_text().splitlines():
        kind, size, took = line.split()
        found[f"{kind} bytes"] += int(size)
        found[f"{kind} seconds"] += float(took)
        found["files"] += kind == "file"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--students", type=int, default=32)
    parser.add_argument("--size", default="base")
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    print("| checkout | files checked | their MB | seconds | in memory, MB | seconds | `distill`, seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_rows(folder / "rows.tsv", options.rows)
        path = folder / "recipe.json"
        path.write_text(json.dumps(recipe(folder, options.size, options.students)))
        for name, side in (("other", options.other.resolve()), ("this", HERE)):
            found = measure(side, path, folder / name)
            cells = (
                f"{found['file bytes'] / 1e6:,.0f} | {found['file seconds']:.2f} | {found['memory bytes'] / 1e6:,.0f}"
            )
            print(
                f"| {name} | {found['files']:.0f} | {cells} | {found['memory seconds']:.2f} | {found['whole']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
