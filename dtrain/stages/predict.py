"""predict: label new text with a trained model, over all ranks.

a file, stdin or the test rows -> normalised and encoded as in training -> fixed batches over ranks -> lines
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn

from dtrain.data import Normalizer, Part, PreparedData, encode_texts, inference_batches, tokenizer_name
from dtrain.data.files import Source, find_sources, resolve_path
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.data.sources import read_rows
from dtrain.distributed import World
from dtrain.errors import InputError
from dtrain.models import load
from dtrain.models.folder import quiet_transformers
from dtrain.plan import Plan
from dtrain.recipe import Recipe, Student, Teacher
from dtrain.recipe.schema import Data, Normalization
from dtrain.runfolder import RunFolder, atomic_write, is_done, read_json
from dtrain.training.engine import resolve_precision
from dtrain.training.inference import forward_batches

STDIN = "/dev/stdin"


@dataclass(frozen=True)
class Texts:
    """What is to be labelled: an id and a text (or two) a row."""

    ids: list[str | int]
    text: list[str]
    text_b: list[str]  # pairs only, else empty


def run(
    recipe: Recipe,
    world: World,
    folder: RunFolder,
    *,
    model: str | None,
    input: str | None,
    output: str | None,
    form: str,
) -> None:
    """Write one line for each row of `input`, in its order.

    Args:
        model: the name of a student or teacher; default: the best student by the metric on valid.
        input: a file of the recipe's format or of plain lines, `-` for plain lines from stdin; default: the test rows.
        output: a file; default (or `-`): stdout.
        form: `jsonl` (id, text, label, score, scores), `tsv` (the same without scores), or `clue` (id, label,
            label_desc: a file to hand in).

    Raises:
        InputError: no such model, or it is not trained; no such file, or it is malformed.
    """
    plan = Plan(recipe)
    kind, name = world.main_first(lambda: list(_choose(model, plan)))
    member = next(m for k, m in plan.members() if (k, m.name) == (kind, name))
    data = PreparedData.open(folder)
    place = folder.model(kind, name)
    if input is None:
        if "test" not in data.parts:
            raise InputError("--input: the recipe has no test rows; name a file, or - for lines from stdin")
        part = data.part("test", tokenizer_name(member))
        texts = _prepared_texts(part)
    else:
        texts = _share(world, functools.partial(read_texts, recipe.data, STDIN if input == "-" else input))
        part = _encode(place, texts, recipe.data.normalize, recipe.data.max_length)
    precision = resolve_precision(member.precision, world.device, f"{kind}.{name}.precision")
    logits = _logits(load(place), part, world, precision, recipe.knowledge.batch_tokens)
    if world.is_main:
        lines = _lines(texts, logits, data.labels, form, recipe.data)
        if output in (None, "-"):
            _write(lines, sys.stdout)
        else:
            with atomic_write(Path(str(output))) as file:
                _write(lines, file)


def classify(folder: str | Path, texts: list[str], texts_b: list[str] | None = None) -> list[dict[str, Any]]:
    """Label texts with a model folder alone, wherever it was copied to.

    Returns:
        For each text its `label`, the label's probability `score`, and all probabilities `scores` by label.

    Raises:
        InputError: the folder is no model folder, or does not say how its texts were prepared.
    """
    place = Path(folder)
    model = load(place)
    try:
        prepared = read_json(place / "preprocessing.json")
    except OSError:
        raise InputError(
            f"{place / 'preprocessing.json'}: is missing; how the texts were prepared is not known"
        ) from None
    rows = Texts(list(range(len(texts))), texts, texts_b or [])
    part = _encode(place, rows, Normalization.model_validate(prepared["normalize"]), prepared["max_length"])
    batches = inference_batches(part.lengths, 4096)
    answers = forward_batches(
        model, part, batches, device=torch.device("cpu"), precision="fp32", threads=torch.get_num_threads()
    )
    found: list[dict[str, Any]] = [{} for _ in texts]
    for batch, logits in zip(batches, answers, strict=True):
        for row, answer in zip(batch.tolist(), _answers(logits, _labels(model)), strict=True):
            found[row] = answer
    return found


# --- which model -------------------------------------------------------------------------------------


def _choose(name: str | None, plan: Plan) -> tuple[str, str]:
    """Kind and name of the model that was asked for, or of the best one."""
    trained = [
        (kind, member)
        for kind, member in plan.members()
        if is_done(plan.folder.model(kind, member.name), plan.model(kind, member.name))
    ]
    if name is None:
        students = [(kind, member) for kind, member in trained if kind == "students"]
        if not trained:
            raise InputError("--model: no model of this recipe is trained yet; `dtrain run` trains them")
        best = max(students or trained, key=lambda entry: _valid_score(entry, plan))
        return best[0], best[1].name
    for kind, member in plan.members():
        if member.name == name:
            if (kind, member) in trained:
                return kind, name
            raise InputError(f"--model: {name}: not trained yet for this recipe ({plan.folder.model(kind, name)})")
    names = [member.name for _, member in plan.members()]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"--model: no model {name!r}{hint} (allowed: {', '.join(names)})")


def _valid_score(entry: tuple[str, Teacher | Student], plan: Plan) -> float:
    kind, member = entry
    metrics = read_json(plan.folder.model(kind, member.name) / "metrics.json")
    return -metrics["loss"] if member.metric == "loss" else metrics[member.metric]


# --- which rows --------------------------------------------------------------------------------------


def read_texts(data: Data, name: str) -> Texts:
    """The rows of a file, read as the recipe's unlabelled files are: labels are neither needed nor looked at.

    A row's id is the user's where the file has the recipe's id column, else its position from 0.

    Raises:
        InputError: naming file and line, or the column.
    """
    columns = data.columns
    alone = {"train": [], "valid": [], "test": [], "transfer": [name]}
    try:
        source = Source("transfer", name, "lines") if name == STDIN else find_sources(data.model_copy(update=alone))[0]
        problems = Problems()
        if columns.id is not None and not _has_column(data, source, columns.id):
            columns = columns.model_copy(update={"id": None})
        read = read_rows(data.model_copy(update={"columns": columns}), [source], [name], problems)
        problems.raise_if_any()
    except InputError as error:
        told = [p.replace("data.transfer: ", "--input: ").replace(STDIN, "-") for p in error.problems]
        raise InputError(told) from None
    rows = read["transfer"]
    return Texts(_ids(rows.key, list(rows.file), list(rows.line)), rows.text, rows.text_b)


def _has_column(data: Data, source: Source, column: str | int) -> bool:
    if source.format == "lines" or resolve_path(source.name).is_dir():
        return False
    first = next(iter(read_records(source, data.header, data.columns.text, Problems())), None)
    return first is not None and column in first[1]


def _prepared_texts(part: Part) -> Texts:
    """The test rows as they were prepared (normalised)."""
    rows = part.rows()
    ids = _ids(rows["key"], rows["file"], rows["line"])
    return Texts(ids, list(rows["text"]), list(rows["text_b"]) if "text_b" in rows.column_names else [])


def _ids(keys: Any, files: Any, lines: Any) -> list[str | int]:
    """The user's ids (whole numbers as such), or positions where the key is only the place in a file."""
    ids: list[str | int] = []
    for position, (key, file, line) in enumerate(zip(keys, files, lines, strict=True)):
        if key == f"{file}:{line}":
            ids.append(position)
        else:
            ids.append(int(key) if key.isascii() and key.isdigit() and str(int(key)) == key else key)
    return ids


def _share(world: World, read: Any) -> Texts:
    """What the main rank reads, on every rank: standard input is there alone, and an error is told once."""
    found: list[Texts | None] = [None]

    def work() -> None:
        found[0] = read()

    world.main_first(work)
    texts = world.gather_objects(found[0])[0]
    assert texts is not None
    return texts


# --- the model on the rows ---------------------------------------------------------------------------


def _encode(model: Path, texts: Texts, normalize: Normalization, max_length: int) -> Part:
    normalizer = Normalizer(normalize)
    text, text_b = ([normalizer(text) for text in column] for column in (texts.text, texts.text_b))
    with quiet_transformers():  # which takes our own model types for an accident
        return encode_texts(model, text, text_b if texts.text_b else None, max_length)


def _logits(model: nn.Module, part: Part, world: World, precision: str, batch_tokens: int) -> torch.Tensor:
    """float32 [N, C] on the CPU of every rank; each rank computes every size-th of the fixed batches."""
    batches = inference_batches(part.lengths, batch_tokens)
    mine = batches[world.rank :: world.size]
    logits = torch.zeros(len(part), len(_labels(model)))
    answers = forward_batches(model, part, mine, device=world.device, precision=precision, threads=world.threads)
    for rows, answer in zip(mine, answers, strict=True):
        logits[torch.from_numpy(rows)] = answer.cpu()
    return world.sum(logits)  # every other rank adds an exact zero


def _labels(model: nn.Module) -> list[str]:
    config: Any = model.config
    names = config["id2label"] if isinstance(config, dict) else config.id2label
    return [names[key] for key in sorted(names, key=int)]


def _answers(logits: torch.Tensor, labels: list[str]) -> Iterator[dict[str, Any]]:
    for shares in torch.softmax(logits.double().cpu(), dim=1).numpy():
        best = int(np.argmax(shares))
        scores = {label: round(float(share), 6) for label, share in zip(labels, shares, strict=True)}
        yield {"label": labels[best], "score": scores[labels[best]], "scores": scores}


# --- lines -------------------------------------------------------------------------------------------


def _lines(texts: Texts, logits: torch.Tensor, labels: list[str], form: str, data: Data) -> Iterator[str]:
    answers = _answers(logits, labels)
    if form == "clue":
        descriptions = label_descriptions(data)
        for key, answer in zip(texts.ids, answers, strict=True):
            line = {"id": key, "label": answer["label"]}
            if answer["label"] in descriptions:
                line["label_desc"] = descriptions[answer["label"]]
            yield json.dumps(line, ensure_ascii=False)
        return
    pairs = bool(texts.text_b)
    if form == "tsv":
        yield "\t".join(["id", "label", "score", "text", *(["text_b"] if pairs else [])])
    for number, (key, answer) in enumerate(zip(texts.ids, answers, strict=True)):
        row = {"text": texts.text[number]} | ({"text_b": texts.text_b[number]} if pairs else {})
        if form == "tsv":
            cells = [str(key), answer["label"], f"{answer['score']:.6f}", *row.values()]
            # A tab inside a text would shift the columns.
            yield "\t".join(" ".join(cell.split()) for cell in cells)
        else:
            yield json.dumps({"id": key, **row, **answer}, ensure_ascii=False)


def _write(lines: Iterator[str], file: TextIO) -> None:
    for line in lines:
        file.write(line + "\n")
    file.flush()


def label_descriptions(data: Data) -> dict[str, str]:
    """`label_desc` by label, as CLUE's files have it: from the label file, else from a training file; or none."""
    files = [(name, data.columns.label) for name in data.train]
    if isinstance(data.labels, str):
        files.insert(0, (data.labels, "label"))
    for name, column in files:
        if resolve_path(name).suffix.lower() in (".json", ".jsonl"):
            found = _descriptions(Source("train", name, "jsonl"), column)
            if found:
                return found
    return {}


def _descriptions(source: Source, column: str | int) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for _, record in read_records(source, True, column, Problems()):
            if "label_desc" not in record:
                break
            found.setdefault(str(record[column]), str(record["label_desc"]))
    except (OSError, KeyError):
        return {}  # the sources may have changed or gone since the data was prepared
    return found
