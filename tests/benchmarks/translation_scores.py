"""BLEU and chrF of all models of a translation run on any file of pairs: answers by `dtrain predict`, scores by sacrebleu.

    python tests/benchmarks/translation_scores.py OUT/runs/translate_en_zh DATA/captions_en_zh/test.tsv [--beam 5]

Each model folder answers the first column greedily and by a beam; sacrebleu scores the answers against the second column
with its tokenizer `zh`. No score that dtrain counted itself is read. Prints a row a model, and a mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import sacrebleu


def answers(model: Path, sources: Path, beam: int) -> list[str]:
    """What a model folder writes for each line of a file."""
    words = [sys.executable, "-m", "dtrain", "predict", str(model), "--input", str(sources), "--format", "lines"]
    done = subprocess.run([*words, "--beam", str(beam)], check=True, capture_output=True, text=True)
    return [json.loads(line)["target"] for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--beam", type=int, default=5)
    asked = parser.parse_args()
    pairs = [line.split("\t")[:2] for line in asked.pairs.read_text(encoding="utf-8").splitlines()]
    references = [[target for _, target in pairs]]
    groups: dict[str, list[list[float]]] = defaultdict(list)
    print(
        f"{len(pairs)} pairs\n| model | BLEU, greedy | BLEU, beam of {asked.beam} | chrF, greedy |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "sources.txt"
        sources.write_text("".join(f"{source}\n" for source, _ in pairs), encoding="utf-8")
        for model in sorted([*asked.run.glob("teachers/*"), *asked.run.glob("students/*")]):
            if not (model / "done.json").exists():
                continue
            greedy, wide = (answers(model, sources, beam) for beam in (1, asked.beam))
            scores = [sacrebleu.corpus_bleu(texts, references, tokenize="zh").score for texts in (greedy, wide)]
            scores.append(sacrebleu.corpus_chrf(greedy, references).score)
            groups[re.sub(r"-seed\d+$", "", model.name)].append(scores)
            print(f"| {model.name} | {' | '.join(f'{score:.2f}' for score in scores)} |", flush=True)
    for name, rows in groups.items():
        if len(rows) > 1:
            columns = zip(*rows, strict=True)
            cells = (f"{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}" for column in columns)
            print(f"| **{name}**, {len(rows)} seeds | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
