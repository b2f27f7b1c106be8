"""predict: label or tag new text with a trained model, over all ranks.

a file, stdin or the test rows -> normalised and encoded as in training -> fixed batches over ranks -> lines
"""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dtrain.data import EncodedSplit, PreparedData, tokenizer_name
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError
from dtrain.log import tell
from dtrain.models import load
from dtrain.models.multi_task import for_task
from dtrain.plan import plan_of
from dtrain.predict.blocks import blocks_of, find_answers
from dtrain.predict.choose import choose, of_task
from dtrain.predict.folder import read_folder
from dtrain.predict.texts import prepared_texts, read_texts
from dtrain.recipe import Recipe
from dtrain.recipe.data import Data, Normalization
from dtrain.runfolder import RunFolder, atomic_write
from dtrain.runtime.distributed import World
from dtrain.tasks.answers import Answers, Texts
from dtrain.tasks.registry import ANSWERS
from dtrain.training.workers import Workers


def run(
    recipe: Recipe,
    world: World,
    folder: RunFolder,
    *,
    model: str | None,
    task: str | None = None,
    input: str | None,
    output: str | None,
    form: str,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    quoting: str | None = None,
) -> None:
    """Write the answers to each row of `input`, in its order.

    Args:
        model: the name of a student or teacher; default: the best student by the metric on valid.
        task: of a recipe of several tasks, which to answer; default: the only one of the model.
        input: a file, `-` for stdin; default: the test rows.
        output: a file; default (or `-`): stdout.
        form: of classifiers `jsonl` (id, line, text, label, score, scores), `tsv` (the same without scores), or `clue`
            (id, label, label_desc: a file to hand in); of taggers see `dtrain.tasks.tagging.answers`.
        format, columns, encoding, delimiter, quoting: of the input: see `dtrain.predict.texts.read_texts`.

    Raises:
        InputError: no such model, or it is not trained; no such file, or it is malformed; another task's form.
    """
    plan = of_task(plan_of(recipe), model, task)
    recipe = plan.recipe
    answers = ANSWERS[recipe.data.task]
    target = _settled(world, answers, recipe.data.task, form, format, output)
    kind, name = world.run_on_main(lambda: list(choose(model, plan)))
    member = next(m for k, m in plan.members() if (k, m.name) == (kind, name))
    data = PreparedData.open(folder.of_task(recipe.task))
    place = folder.model(kind, name)
    asked = _Asked(answers, place, recipe.data, data, form, target, recipe.task)
    precision = resolve_precision(member.precision, world.device, f"{kind}.{name}.precision")
    workers = Workers.of(world, precision, recipe.knowledge.batch_tokens)
    as_written = {"encoding": encoding, "delimiter": delimiter, "quoting": quoting}
    if input is not None:
        texts = _share(world, functools.partial(read_texts, recipe.data, input, format, columns or (), as_written))
        tell(f"predict: {kind[:-1]} {name} ({place})")
        asked.answer(texts, None, recipe.data.normalize, recipe.data.max_length, workers)
        return
    if format or columns or any(as_written.values()):
        raise InputError(
            "--format and --columns: are of a file that --input names, as are --encoding, --delimiter and --quoting"
        )
    if "test" not in data.parts:
        raise InputError("--input: the recipe has no test rows; name a file, or - for stdin")
    test = data.part("test", tokenizer_name(member))
    texts = prepared_texts(test)
    tell(f"predict: {kind[:-1]} {name} ({place})")
    # Prepared pieces of documents were joined, and are cut again.
    asked.answer(
        texts, test if test.documents is None else None, recipe.data.normalize, recipe.data.max_length, workers
    )


def run_folder(
    place: Path,
    world: World,
    *,
    model: str | None,
    task: str | None = None,
    input: str | None,
    output: str | None,
    form: str,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    quoting: str | None = None,
) -> None:
    """The same of a model folder alone, whose files say how texts are prepared.

    Raises:
        InputError: as `run`; without `input`, since a model folder holds no rows; with `model`.
    """
    if model is not None:
        raise InputError(f"--model: chooses among the models of a recipe, and {place} is a model folder")
    known = read_folder(place, task, "--task")
    target = _settled(world, known.answers, known.task, form, format, output)
    if input is None:
        raise InputError("--input: a model folder has no rows; name a file, or - for stdin")
    as_written = {"encoding": encoding, "delimiter": delimiter, "quoting": quoting}
    texts = _share(world, functools.partial(read_texts, known.section, input, format, columns or (), as_written))
    tell(f"predict: {place}")
    asked = _Asked(known.answers, place, known.section, known.prepared, form, target, task or "")
    asked.answer(texts, None, known.normalize, known.max_length, Workers.of(world, "fp32"))


@dataclass(frozen=True)
class _Asked:
    """Which model answers, and how and where its answers are written."""

    answers: Answers
    place: Path
    section: Data
    data: PreparedData
    form: str
    target: Path | None
    task: str

    def answer(
        self, texts: Texts, part: EncodedSplit | None, normalize: Normalization, max_length: int, workers: Workers
    ) -> None:
        """Write the answers to `texts`; `part`: they are encoded already."""
        model = for_task(load(self.place), self.task)
        if part is None:
            read = self.answers.reader(self.place, normalize, max_length)
            found = find_answers(self.answers, model, read, blocks_of(texts), workers)
        else:
            found = iter(self.answers.find(model, part, texts, workers))
        if workers.world is not None and not workers.world.is_main:
            deque(found, maxlen=0)  # its share of every block
            return
        lines = self.answers.lines(texts, found, self.form, self.section, self.data)
        if self.target is None:
            _write(lines, sys.stdout)
        else:
            with atomic_write(self.target) as file:
                _write(lines, file)


def _settled(
    world: World, answers: Answers, task: str, form: str, format: str | None, output: str | None
) -> Path | None:
    """Where answers are written, None for stdout, after the options that can be judged without a model."""
    for option, value, allowed in (("form", form, answers.forms), ("format", format, answers.formats)):
        if value is not None and value not in allowed:
            raise InputError(f"--{option}: {value!r} is not for task {task!r} (allowed: {', '.join(allowed)})")
    target = None if output in (None, "-") else Path(str(output)).expanduser()
    if target is not None:
        world.run_on_main(lambda: _check_output(target))
    return target


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

    world.run_on_main(work)
    texts = world.gather_objects(found[0])[0]
    assert texts is not None
    return texts


def _write(lines: Iterator[str], file: TextIO) -> None:
    for line in lines:
        file.write(line + "\n")
    file.flush()
