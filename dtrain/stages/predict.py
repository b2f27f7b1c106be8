"""predict: label or tag new text with a trained model, over all ranks.

a file, stdin or the test rows -> normalised and encoded as in training -> fixed batches over ranks -> lines
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TextIO, TypedDict, Unpack

from dtrain.data import EncodedSplit, PreparedData, tokenizer_name
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError
from dtrain.log import tell
from dtrain.models import load
from dtrain.models.multi_task import for_task
from dtrain.plan import Plan, plan_of
from dtrain.predict.annotate import Annotator
from dtrain.predict.blocks import blocks_of, find_answers
from dtrain.predict.choose import choose, of_task, trained_tagger
from dtrain.predict.folder import read_folder
from dtrain.predict.texts import prepared_texts, read_texts
from dtrain.recipe import Recipe, Student, Teacher
from dtrain.recipe.data import Data, Normalization
from dtrain.runfolder import RunFolder, atomic_write
from dtrain.runtime.distributed import World
from dtrain.tasks.answers import Answers, Texts
from dtrain.tasks.registry import ANSWERS
from dtrain.training.workers import Workers


class Options(TypedDict, total=False):
    """The options of the command line, for a recipe or for a model folder.

    Attributes:
        model: the name of a student or teacher; default: the best student by the metric on valid. Not for a model folder.
        task: for a recipe or a model of several tasks, the one to answer; default: the only one of the model.
        input: a file, or `-` for stdin; default: the recipe's test rows. Required for a model folder.
        output: a file; default (or `-`): stdout.
        privileged: for a teacher that reads annotations: those `given` in the rows (default), or those `predicted` by the
            tagger that the recipe names (`annotated_by`).
        form: for classifiers `jsonl` (id, line, text, label, score, scores), `tsv` (the same without scores), or `clue`
            (id, label, label_desc: a file to submit); for taggers see `dtrain.tasks.tagging.answers`.
        beam, length_penalty: for models that write text, see `dtrain.models.decoding.Decoding`; default: greedy decoding,
            and the recipe's length penalty.
        format, columns, encoding, delimiter, quoting: of the input, see `dtrain.predict.texts.read_texts`.
    """

    model: str | None
    task: str | None
    input: str | None
    output: str | None
    form: Required[str]
    format: str | None
    columns: Sequence[str] | None
    encoding: str | None
    delimiter: str | None
    quoting: str | None
    privileged: str | None
    beam: int | None
    length_penalty: float | None


def run(recipe: Recipe, world: World, folder: RunFolder, **options: Unpack[Options]) -> None:
    """Write the answers to each row of the input, in its order.

    Raises:
        InputError: there is no such model, or it is not trained; there is no such file, or it is malformed; `form` or
            `format` does not fit the task.
    """
    plan = of_task(plan_of(recipe), options.get("model"), options.get("task"))
    recipe = plan.recipe
    answers = ANSWERS[recipe.data.task]
    target = _settled(world, answers, recipe.data.task, options)
    kind, name = world.run_on_main(lambda: list(choose(options.get("model"), plan)))
    member = next(m for k, m in plan.members() if (k, m.name) == (kind, name))
    data = PreparedData.open(folder.of_task(recipe.task))
    place = folder.model(kind, name)
    section = recipe.data if member.reads is None else recipe.data.of_side(member.reads)
    answers = _searching(answers, place, options, recipe.knowledge.length_penalty)
    asked = _Asked(answers, place, section, data, options["form"], target, recipe.task)
    precision = resolve_precision(member.precision, world.device, f"{kind}.{name}.precision")
    workers = Workers.of(world, precision, recipe.knowledge.batch_tokens)
    which = _annotations(name, member.model.reads_privileged, options)
    texts, part = _read(world, _with_ends(section, data), options, privileged=which == "given"), None
    if texts is None:
        if "test" not in data.parts_read(tokenizer_name(member)):
            of_side = f" with {member.reads}, which {name} reads" if member.reads else ""
            raise InputError(f"--input: the recipe has no test rows{of_side}; name a file, or - for stdin")
        part = data.part("test", tokenizer_name(member))
        texts = prepared_texts(part, data.privileged if which == "given" else ())
    tell(f"predict: {kind[:-1]} {name} ({place})")
    if which == "predicted":
        texts = _annotated(texts, member, plan, data.privileged, workers)
    # `texts` has whole documents where the prepared rows are pieces of them; these are cut and encoded anew.
    encoded = None if part is None or part.documents is not None else part
    asked.answer(texts, encoded, recipe.data.normalize, recipe.data.max_length, workers)


def run_folder(place: Path, world: World, **options: Unpack[Options]) -> None:
    """Answer with a model folder alone, whose files say how texts are prepared.

    Raises:
        InputError: as `run`; or `input` is missing, since a model folder has no rows; or `model` is given.
    """
    if options.get("model") is not None:
        raise InputError(f"--model: chooses among the models of a recipe, and {place} is a model folder")
    known = read_folder(place, options.get("task"), "--task")
    target = _settled(world, known.answers, known.task, options)
    answers = _searching(known.answers, place, options)
    if options.get("input") is None:
        raise InputError("--input: a model folder has no rows; name a file, or - for stdin")
    types = known.answers.reads_privileged(place)
    if _annotations(str(place), bool(types), options) == "predicted":
        raise InputError("--privileged: predicted needs the recipe, which names the tagger (annotated_by)")
    texts = _read(world, _with_ends(known.section, known.prepared), options, privileged=bool(types))
    assert texts is not None
    tell(f"predict: {place}")
    asked = _Asked(answers, place, known.section, known.prepared, options["form"], target, options.get("task") or "")
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
        """Write the answers to `texts`; `part` holds them encoded, None: they are encoded here."""
        model = for_task(load(self.place), self.task)
        if part is None:
            read = self.answers.reader(self.place, normalize, max_length)
            found = find_answers(self.answers, model, read, blocks_of(texts), workers)
        else:
            found = iter(self.answers.find(model, part, texts, workers))
        if workers.world is not None and not workers.world.is_main:
            deque(found, maxlen=0)  # computes its share of every block
            return
        lines = self.answers.lines(texts, found, self.form, self.section, self.data)
        if self.target is None:
            _write(lines, sys.stdout)
        elif self.target.exists() and not self.target.is_file():  # a pipe or /dev/null: a file must not take its place
            with self.target.open("w", encoding="utf-8") as file:
                _write(lines, file)
        else:
            with atomic_write(self.target.resolve()) as file:  # replaces the target of a symbolic link, not the link
                _write(lines, file)


def _settled(world: World, answers: Answers, task: str, options: Options) -> Path | None:
    """Check the options that need no model; returns the file for the answers, None for stdout."""
    asked = ("form", options["form"], answers.forms), ("format", options.get("format"), answers.formats)
    for option, value, allowed in asked:
        if value is not None and value not in allowed:
            raise InputError(f"--{option}: {value!r} is not for task {task!r} (allowed: {', '.join(allowed)})")
    output = options.get("output")
    target = None if output in (None, "-") else Path(str(output)).expanduser()
    if target is not None:
        world.run_on_main(lambda: _check_output(target))
    return target


def _searching(answers: Answers, place: Path, options: Options, penalty: float = 1.0) -> Answers:
    """The answers with the decoding settings asked for; `penalty` is the length penalty by default."""
    beam, asked = options.get("beam"), options.get("length_penalty")
    if asked is not None and beam in (None, 1):
        raise InputError("--length-penalty: is of a beam; give --beam, too, of 2 or more")
    if beam is None:
        return answers
    return answers.searching(place, beam, penalty if asked is None else asked, "--beam")


def _check_output(path: Path) -> None:
    """Raise InputError, before any work is done, if no file can be written as `path`."""
    nearest = next(place for place in path.absolute().parents if place.exists())
    if path.is_dir():
        raise InputError(f"--output: {path}: is a folder; name a file in it")
    if not nearest.is_dir():
        raise InputError(f"--output: {path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"--output: {path}: {nearest} cannot be written to")


# --- which rows --------------------------------------------------------------------------------------


def _annotations(name: str, reads: bool, options: Options) -> str | None:
    """Which annotations a model reads, `given` or `predicted`; None if it reads none."""
    asked = options.get("privileged")
    if not reads:
        if asked is not None:
            raise InputError(f"--privileged: {name} reads the text alone; leave it out")
        return None
    return asked or "given"


def _annotated(texts: Texts, member: Teacher | Student, plan: Plan, types: list[str], workers: Workers) -> Texts:
    """The texts with the annotations that the teacher's tagger (`annotated_by`) finds."""
    tagger = getattr(member, "annotated_by", None)
    if tagger is None:
        raise InputError(f"--privileged: predicted needs teachers.{member.name}.annotated_by, which names a tagger")
    _, place = trained_tagger(plan, tagger)
    tell(f"predict: annotations by {tagger} ({place})")
    return Annotator(place, types, workers)(texts)


def _with_ends(section: Data, data: PreparedData) -> Data:
    """The data section with the kind of span ends that was found in the recipe's files: a few new rows may not show it."""
    found = data.info.get("span_end")
    if found is None or section.columns.span_end != "auto":
        return section
    return section.model_copy(update={"columns": section.columns.model_copy(update={"span_end": found})})


def _read(world: World, section: Data, options: Options, *, privileged: bool) -> Texts | None:
    """The rows of the input file on every rank; None if none is named.

    The main rank reads them: it alone has standard input, and an error is reported once.
    """
    name, format, columns = options.get("input"), options.get("format"), options.get("columns") or ()
    as_written = {"encoding": options.get("encoding"), "delimiter": options.get("delimiter")}
    as_written["quoting"] = options.get("quoting")
    if name is None:
        if format or columns or any(as_written.values()):
            raise InputError(
                "--format and --columns: are of a file that --input names, as are --encoding, --delimiter and --quoting"
            )
        return None
    found: list[Texts] = []

    def read() -> None:
        try:
            found.append(read_texts(section, name, format, columns, as_written, privileged=privileged))
        except InputError as error:
            hint = (
                "; the model reads annotations beside the text: give --columns privileged=COLUMN, or --privileged predicted "
                "where the recipe names a tagger (annotated_by)"
            )
            column = repr(section.columns.privileged)
            wrong = "; give --columns text=NAME"  # that hint is about the column of the text
            raise InputError(
                [p.replace(wrong, "") + hint if privileged and column in p else p for p in error.problems]
            ) from None

    world.run_on_main(read)
    texts: Texts = world.gather_objects(found)[0][0]
    return texts


def _write(lines: Iterator[str], file: TextIO) -> None:
    for line in lines:
        file.write(line + "\n")
    file.flush()
