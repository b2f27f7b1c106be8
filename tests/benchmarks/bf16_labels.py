"""How many labels change when a trained classifier answers in bf16 in place of float32, on real texts.

    PYTHONPATH=. python tests/benchmarks/bf16_labels.py MODEL_FOLDER TEXTS [--rows 2000]

MODEL_FOLDER is one that dtrain wrote (a teacher or a student), TEXTS a file of JSON lines (the first of `sentence` and `text`)
or of tab-separated columns (the last). Rows are spread evenly over the file. CPU seconds are those of all threads.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from dtrain import Predictor


def read(path: Path, rows: int) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, min(rows, len(lines))).astype(int))]
    found = []
    for line in lines:
        row = json.loads(line) if line.startswith("{") else {"text": line.split("\t")[-1]}
        found.append(str(row.get("sentence", row.get("text"))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    texts = read(options.texts, options.rows)
    answers, seconds = {}, {}
    for precision in ("fp32", "bf16"):
        predictor = Predictor(options.model, precision=precision, batch_tokens=512)
        predictor(texts[:2])
        begin = time.process_time()
        answers[precision] = predictor(texts)
        seconds[precision] = time.process_time() - begin
    pairs = list(zip(answers["fp32"], answers["bf16"], strict=True))
    changed = [(a, b) for a, b in pairs if a["label"] != b["label"]]
    moved = [abs(a["scores"][label] - b["scores"][label]) for a, b in pairs for label in a["scores"]]
    tens = 10_000 * len(changed) / len(pairs)
    print(f"{len(pairs)} rows: {len(changed)} labels change, {tens:.1f} in 10,000")
    print(f"probabilities move by {np.mean(moved):.5f} in the mean, {max(moved):.4f} at most; ", end="")
    print(f"CPU seconds fp32 {seconds['fp32']:.1f}, bf16 {seconds['bf16']:.1f}")
    if changed:
        sure = max(a["score"] for a, _ in changed)
        print(f"the surest row whose label changes had a probability of {sure:.3f} in fp32")


if __name__ == "__main__":
    main()
