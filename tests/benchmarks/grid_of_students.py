"""24 students on TNEWS in one run, against each of them trained alone, one command after another.

    python tests/benchmarks/grid_of_students.py DATA [--every 1] [--output results.json]

DATA is the folder of CLUE's TNEWS files. Both ways start from the same prepared data; each single command takes all
cores. How far the best validation scores of both ways lie apart is printed. The grid's report is left in
`./runs/grid/report`. With `--every 4` every fourth is trained alone, and the time of all is four times theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = """\
name: grid
data:
  train: {data}/train.json
  valid: {data}/dev.json
  columns: {{text: sentence, label: label}}
  max_length: 64
students:
  - name: cnn
    model: {{type: textcnn, embedding: 128, filters: 64}}
    teachers: []
    epochs: 1
    batch_size: 128
    optimizer: {{lr: 0.001}}
    grid: {{optimizer.lr: [0.001, 0.002], model.dropout: [0.3, 0.5], seed: [1, 2, 3]}}
  - name: lstm
    model: {{type: bilstm, embedding: 128, hidden: 64}}
    teachers: []
    epochs: 1
    batch_size: 128
    grid: {{optimizer.lr: [0.001, 0.002], model.dropout: [0.3, 0.5], seed: [1, 2, 3]}}
report: {{latency: false}}
"""
STUDENTS = 24


def timed(folder: Path, *words: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dtrain", *words], cwd=folder, env=environment)
    if done.returncode:
        raise SystemExit(f"dtrain {' '.join(words)}: exit code {done.returncode}")
    return time.perf_counter() - begin


def scores(run: Path) -> dict[str, float]:
    found = {}
    for path in sorted((run / "students").glob("*/metrics.json")):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.yaml").write_text(RECIPE.format(data=options.data.resolve()), encoding="utf-8")
        timed(folder, "run", "grid.yaml", "--stages", "prepare")
        shutil.copytree(folder / "runs", folder / "single")
        together = timed(folder, "run", "grid.yaml", "--stages", "distill")
        timed(folder, "run", "grid.yaml", "--stages", "evaluate,report")
        shutil.copytree(folder / "runs" / "grid" / "report", Path("runs/grid/report"), dirs_exist_ok=True)
        alone = 0.0
        single = ["run", "grid.yaml", "output_dir=single", "launch.processes=1", "--stages", "distill"]
        for number in range(0, STUDENTS, options.every):
            alone += options.every * timed(folder, *single, "--group", f"{number}/{STUDENTS}")
        found, expected = scores(folder / "runs" / "grid"), scores(folder / "single" / "grid")
    assert len(found) == STUDENTS and found.keys() >= expected.keys()
    apart = max(abs(found[name] - expected[name]) for name in expected)
    print(
        f"{STUDENTS} students: {together:.0f} s in one run, {alone:.0f} s one command after another: {alone / together:.2f}x"
    )
    print(
        f"accuracy {min(found.values()):.4f} to {max(found.values()):.4f}; the two ways differ by at most {apart:.4f}"
    )
    if options.output:
        figures = {"together": together, "alone": alone, "scores": found, "scores_alone": expected}
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
