"""Answers a second of `Predictor`, `dtrain predict`, transformers' pipeline and exported models, in turn in one process.

    python -m tests.benchmarks.export_speed stream FOLDER --rows 1000000    memory and speed of Predictor.stream
    python -m tests.benchmarks.export_speed pipeline FOLDER --rows 600      against pipeline("text-classification")
    python -m tests.benchmarks.export_speed exported FOLDER --rows 2000     against exports of the same model
    python -m tests.benchmarks.export_speed sizes FOLDER                    TextCNN against BERT-CNN, of random weights
    python -m tests.benchmarks.export_speed int8 FOLDER --texts FILE        what int8 costs of accuracy, on labelled rows

FOLDER is a model folder; `sizes` makes its own there. One thread everywhere, but for `dtrain predict`, which uses what it
is given (OMP_NUM_THREADS=1). The texts are the sample's headlines, or with `--texts FILE` the last column of a tab-separated
file, whose first column holds the labels that `int8` compares with. `exported` also tries torchao's int8 where torchao is installed. Figures: results/export.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import psutil
import torch
import transformers

from dtrain import Predictor
from dtrain.data.preprocessing import write_preprocessing
from dtrain.data.vocabularies import student_tokenizer, trained_tokenizer
from dtrain.export.folder import Wish, export_model
from dtrain.export.quantize import OPERATORS, quantize
from dtrain.export.session import script_of
from dtrain.models import build, parameter_count, save_model
from dtrain.recipe.data import Data, Vocabulary
from dtrain.recipe.models import Architecture, of_type

SAMPLE = Path(__file__).parent.parent.parent / "dtrain" / "recipes" / "samples" / "transfer.jsonl"
REPEATS = 3
SPEED_ROWS = 200  # whose time is taken


FILE: list[Path] = []  # in place of the sample


def texts() -> list[str]:
    for file in FILE:
        return [line.split("\t")[-1] for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["text"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def many(count: int) -> Iterator[str]:
    """`count` texts from a generator, none of them kept."""
    known = texts()
    return (f"{text}{number % 97}" for number, text in zip(range(count), itertools.cycle(known), strict=False))


def in_turn(ways: dict[str, Callable[[], object]], rows: int) -> None:
    """Rows a second of each, the median of the repeats, each way once a repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(REPEATS):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    first = None
    for name, values in seconds.items():
        rate = rows / statistics.median(values)
        first = first or rate
        print(f"{name:36} {rate:10,.0f} rows/s   {rate / first:5.2f} x", flush=True)


def stream(folder: Path, rows: int) -> None:
    predictor, process = Predictor(folder), psutil.Process()
    begin, marks = time.perf_counter(), {}
    for number, _ in enumerate(predictor.stream(many(rows)), 1):
        if number in (10_000, 100_000, rows // 2, rows):
            marks[number] = process.memory_info().rss / 2**20
    seconds = time.perf_counter() - begin
    print(f"Predictor.stream: {rows:,} rows, {rows / seconds:,.0f} rows/s")
    print("memory in MiB after rows:", ", ".join(f"{number:,}: {size:,.0f}" for number, size in marks.items()))
    few = min(rows, 100_000)
    with tempfile.TemporaryDirectory() as place:
        lines, answers = Path(place) / "rows.jsonl", Path(place) / "answers.jsonl"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in many(few)), encoding="utf-8")
        begin = time.perf_counter()
        command = ["predict", str(folder), "--input", str(lines), "--columns", "text=text", "--output", str(answers)]
        subprocess.run([sys.executable, "-m", "dtrain", *command], check=True)
        print(f"dtrain predict, its start included: {few:,} rows, {few / (time.perf_counter() - begin):,.0f} rows/s")
    begin = time.perf_counter()
    list(predictor.stream(many(few)))
    print(f"Predictor.stream, as many: {few / (time.perf_counter() - begin):,.0f} rows/s")


def pipeline(folder: Path, rows: int) -> None:
    predictor, known = Predictor(folder), texts()[:rows]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ways: dict[str, Callable[[], object]] = {}
    for size in (1, 16, 64):
        pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
        ways[f"pipeline, batch_size {size}"] = lambda pipe=pipe, size=size: pipe(
            known, batch_size=size, top_k=None, truncation=True, max_length=predictor.max_length
        )
    half = Predictor(folder, precision="bf16")
    in_turn(ways | {"Predictor": lambda: predictor(known), "Predictor, bf16": lambda: half(known)}, len(known))


def exported(folder: Path, rows: int) -> None:
    predictor, known = Predictor(folder), texts()[:rows]
    ways: dict[str, Callable[[], object]] = {"Predictor": lambda: predictor(known)}
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        small = copy.copy(predictor)
        small.model = copy.deepcopy(predictor.model)
        quantize_(small.model, Int8DynamicActivationInt8WeightConfig())
        ways["torchao, int8"] = lambda: small(known)
    with tempfile.TemporaryDirectory() as place:
        for name, int8 in (("onnx", False), ("onnx, int8", True)):
            final = Path(place) / ("int8" if int8 else "float")
            export_model(Wish(folder, "model", "onnx", int8), final)
            model = script_of(final).Model()
            ways[name] = lambda model=model: model(known)
            size = sum(path.stat().st_size for path in final.glob("*.onnx"))
            print(f"{name}: {size / 1e6:.2f} MB; torch: {(folder / 'model.safetensors').stat().st_size / 1e6:.2f} MB")
        in_turn(ways, len(known))


def int8(folder: Path, rows: int) -> None:
    """Accuracy, answers that differ from the model's, size and speed: float, int8, int8 of convolutions, too."""
    labels, known = zip(*labelled()[:rows], strict=True)
    predictor = Predictor(folder)
    ways: dict[str, Callable[[list[str]], list[dict]]] = {"Predictor": predictor}
    file_sizes = {"Predictor": (folder / "model.safetensors").stat().st_size}
    with tempfile.TemporaryDirectory() as place:
        for name, operators in {"onnx": (), "int8": OPERATORS, "int8, convolutions": (*OPERATORS, "Conv")}.items():
            final = Path(place) / name
            export_model(Wish(folder, "model", "onnx"), final)
            if "Conv" in operators and not has_convolutions(final / "graph.onnx"):
                continue
            if operators:
                quantize(final / "graph.onnx", operators)
            ways[name] = script_of(final).Model()
            file_sizes[name] = (final / "graph.onnx").stat().st_size
        first: list[str] = []
        for name, way in ways.items():
            answers = [answer["label"] for answer in way(list(known))]
            first = first or answers
            right = sum(a == b for a, b in zip(answers, labels, strict=True)) / len(labels)
            flips = sum(a != b for a, b in zip(answers, first, strict=True))
            print(
                f"{name:20} {file_sizes[name] / 1e6:6.2f} MB   accuracy {right:.4f}   {flips} of {len(labels)} differ",
                flush=True,
            )
        few = list(known[:SPEED_ROWS])
        in_turn({name: lambda way=way: way(few) for name, way in ways.items()}, len(few))


def has_convolutions(path: Path) -> bool:
    return any(node.op_type == "Conv" for node in onnx.load(path).graph.node)


def labelled() -> list[tuple[str, str]]:
    """Label and text of each row of the files."""
    lines = [line for file in FILE for line in file.read_text(encoding="utf-8").splitlines()]
    return [(line.split("\t")[0], line.split("\t")[-1]) for line in lines]


def sizes(root: Path, rows: int) -> None:
    base = {"type": "bert", "size": "base", "vocabulary_size": 8000}
    published = {"teacher": {"type": "bert_cnn", "encoder": base}, "student": {"type": "textcnn"}}
    for name, section in published.items():
        place = root / name
        made(place, section)
        print(f"--- {name}: {json.dumps(section)}")
        exported(place, max(32, rows // 20) if name == "teacher" else rows)


def made(folder: Path, section: dict) -> None:
    """A model folder of random weights, which are as large and as fast as trained ones."""
    spec = of_type(section, Architecture).model_validate(section)
    lines, tokens = [text.lower() for text in texts()], folder.with_name(f"{folder.name}-tokenizer")
    encoder = spec.transformer
    tokenizer = trained_tokenizer(encoder, [lines], True) if encoder else student_tokenizer(Vocabulary(), [lines])
    tokenizer.save_pretrained(tokens)
    labels = [str(number) for number in range(10)]
    size, pad = len(tokenizer), tokenizer.pad_token_id
    model = build(spec, vocabulary=size, labels=labels, pad_id=pad, tokenizer_path=tokens, max_length=32)
    save_model(model, folder, tokens, "a card")
    write_preprocessing(folder, Data.model_validate({"train": "train.jsonl", "max_length": 32}), {})
    print(f"{folder.name}: {parameter_count(model):,} parameters")


WAYS = {"stream": stream, "pipeline": pipeline, "exported": exported, "sizes": sizes, "int8": int8}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(WAYS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--texts", type=Path, action="append")
    asked = parser.parse_args()
    FILE += asked.texts or []
    torch.set_num_threads(1)
    WAYS[asked.what](asked.folder, asked.rows)
