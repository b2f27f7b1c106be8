"""predict: label or tag new text with a trained model, over all ranks.

a file, stdin or the test rows -> normalised and encoded as in training -> fixed batches over ranks -> lines
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from dtrain.data import (
    Normalizer,
    Part,
    PreparedData,
    encode_documents,
    encode_texts,
    inference_batches,
    tokenizer_name,
)
from dtrain.distributed import World
from dtrain.errors import InputError, suggest
from dtrain.models import load
from dtrain.models.folder import quiet_transformers
from dtrain.plan import Plan
from dtrain.predict import labels, spans
from dtrain.predict.texts import Texts, prepared_texts, read_texts
from dtrain.recipe import Recipe, Student, Teacher
from dtrain.recipe.data import Normalization
from dtrain.runfolder import RunFolder, atomic_write, is_done, read_json
from dtrain.training.inference import BATCH_TOKENS, forward_batches
from dtrain.training.precision import resolve_precision

FORMS = {"classification": ("jsonl", "tsv", "clue"), "tagging": ("jsonl", "tsv", "clue", "conll")}


def run(
    recipe: Recipe,
    world: World,
    folder: RunFolder,
    *,
    model: str | None,
    input: str | None,
    output: str | None,
    form: str,
    format: str | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write the answers to each row of `input`, in its order.

    Args:
        model: the name of a student or teacher; default: the best student by the metric on valid.
        input: a file, `-` for stdin; default: the test rows.
        output: a file; default (or `-`): stdout.
        form: of classifiers `jsonl` (id, line, text, label, score, scores), `tsv` (the same without scores), or `clue`
            (id, label, label_desc: a file to hand in); of taggers see `dtrain.predict.spans.lines`.
        format: of the input; columns: `text=NAME` and so on: see `dtrain.predict.texts.read_texts`.

    Raises:
        InputError: no such model, or it is not trained; no such file, or it is malformed; another task's form.
    """
    plan = Plan(recipe)
    tagging = recipe.data.task == "tagging"
    forms = FORMS["tagging" if tagging else "classification"]
    if form not in forms:
        raise InputError(f"--form: {form!r} is not for task {recipe.data.task!r} (allowed: {', '.join(forms)})")
    target = None if output in (None, "-") else Path(str(output)).expanduser()
    if target is not None:
        world.main_first(lambda: _check_output(target))
    kind, name = world.main_first(lambda: list(_choose(model, plan)))
    member = next(m for k, m in plan.members() if (k, m.name) == (kind, name))
    data = PreparedData.open(folder)
    place = folder.model(kind, name)
    if input is None and (format or columns):
        raise InputError("--format and --columns: are of a file that --input names")
    if input is None:
        if "test" not in data.parts:
            raise InputError("--input: the recipe has no test rows; name a file, or - for stdin")
        part = data.part("test", tokenizer_name(member))
        texts = prepared_texts(part)
    else:
        texts = _share(world, functools.partial(read_texts, recipe.data, input, format, columns or ()))
    if input is not None or tagging:  # prepared pieces are joined again and cut again
        part = _encode(place, texts, recipe.data.task, recipe.data.normalize, recipe.data.max_length)
    precision = resolve_precision(member.precision, world.device, f"{kind}.{name}.precision")
    trained, budget = load(place), recipe.knowledge.batch_tokens or BATCH_TOKENS
    if tagging:
        found = spans.tag_texts(trained, part, texts.text, data.types, world, precision, budget)
        lines = spans.lines(texts, found, form, data.scheme)
    else:
        lines = labels.lines(
            texts, labels.all_logits(trained, part, world, precision, budget), data.labels, form, recipe.data
        )
    if world.is_main:
        if target is None:
            _write(lines, sys.stdout)
        else:
            with atomic_write(target) as file:
                _write(lines, file)


def classify(folder: str | Path, texts: list[str], texts_b: list[str] | None = None) -> list[dict[str, Any]]:
    """Label texts with a model folder alone, wherever it was copied to.

    Returns:
        For each text its `label`, the label's probability `score`, and all probabilities `scores` by label.

    Raises:
        InputError: the folder is no model folder, is a tagger's, or does not say how its texts were prepared.
    """
    model, part = _alone(Path(folder), _plain(texts, texts_b), tagging=False)
    batches = inference_batches(part.lengths, 4096)
    answers = forward_batches(
        model, part, batches, device=torch.device("cpu"), precision="fp32", threads=torch.get_num_threads()
    )
    found: list[dict[str, Any]] = [{} for _ in texts]
    for batch, logits in zip(batches, answers, strict=True):
        for row, answer in zip(batch.tolist(), labels.answers(logits, labels.labels_of(model)), strict=True):
            found[row] = answer
    return found


def tag(folder: str | Path, texts: list[str]) -> list[list[dict[str, Any]]]:
    """Find entities with a tagger's model folder alone, wherever it was copied to.

    Returns:
        For each text its entities: `text`, `type`, `start`, `end` (exclusive) and `score`, the least probability of a
        character's tag in it.

    Raises:
        InputError: the folder is no model folder, is a classifier's, or does not say how its texts were prepared.
    """
    model, part = _alone(Path(folder), _plain(texts), tagging=True)
    types = [name.removeprefix("B-") for name in labels.labels_of(model)[1::4]]
    return spans.tag_alone(model, part, texts, types)


def _plain(texts: list[str], texts_b: list[str] | None = None) -> Texts:
    return Texts(list(range(len(texts))), texts, texts_b or [], list(range(1, len(texts) + 1)))


def _alone(place: Path, texts: Texts, *, tagging: bool) -> tuple[nn.Module, Part]:
    """A model folder's model, and texts as it reads them."""
    model = load(place)
    try:
        prepared = read_json(place / "preprocessing.json")
    except OSError:
        raise InputError(
            f"{place / 'preprocessing.json'}: is missing; how the texts were prepared is not known"
        ) from None
    task = prepared.get("task", "classification")
    if (task == "tagging") != tagging:
        raise InputError(f"{place}: is a model for task {task!r}; call {'classify' if tagging else 'tag'}")
    normalize = Normalization.model_validate(prepared["normalize"])
    return model, _encode(place, texts, task, normalize, prepared["max_length"])


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
    raise InputError(f"--model: no model {name!r}{suggest(name, names)} (allowed: {', '.join(names)})")


def _valid_score(entry: tuple[str, Teacher | Student], plan: Plan) -> float:
    kind, member = entry
    metrics = read_json(plan.folder.model(kind, member.name) / "metrics.json")
    return -metrics["loss"] if member.metric == "loss" else metrics[member.metric]


def _check_output(path: Path) -> None:
    """Raise InputError where no file can be written under `path`: seen before the work, not after it."""
    nearest = next(place for place in path.absolute().parents if place.exists())
    if path.is_dir():
        raise InputError(f"--output: {path}: is a folder; name a file in it")
    if not nearest.is_dir():
        raise InputError(f"--output: {path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"--output: {path}: {nearest} cannot be written to")


# --- which rows --------------------------------------------------------------------------------------


def _share(world: World, read: Any) -> Texts:
    """What the main rank reads, on every rank: standard input is there alone, and an error is told once."""
    found: list[Texts | None] = [None]

    def work() -> None:
        found[0] = read()

    world.main_first(work)
    texts = world.gather_objects(found[0])[0]
    assert texts is not None
    return texts


def _encode(model: Path, texts: Texts, task: str, normalize: Normalization, max_length: int) -> Part:
    with quiet_transformers():  # which takes our own model types for an accident
        if task == "tagging":
            return encode_documents(model, texts.text, normalize, max_length)
        normalizer = Normalizer(normalize)
        text, text_b = ([normalizer(text) for text in column] for column in (texts.text, texts.text_b))
        return encode_texts(model, text, text_b if texts.text_b else None, max_length)


def _write(lines: Iterator[str], file: TextIO) -> None:
    for line in lines:
        file.write(line + "\n")
    file.flush()
