"""prepare: from source files to rows, tokenizers and encoded rows under `<run>/data/`.

Everything is read and checked before anything is written. The main rank works, the others wait.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import datasets

from dtrain.augment.rows import with_synthetic_rows
from dtrain.data import PreparedData
from dtrain.data.class_weights import check_class_weights
from dtrain.data.corpus import Corpus
from dtrain.data.external import check_external
from dtrain.data.files import resolve_path
from dtrain.data.sides import check_sides, parts_of, side_counts
from dtrain.data.summary import numbers_in_words, remarks_in_words, unknown_in_words
from dtrain.data.tokenizers import check_tokenizers, sides_reading, tasks_reading, tokenizer_specs
from dtrain.data.vocabularies import frame_ids, given_tokenizer
from dtrain.data.write import token_share, write_encoded
from dtrain.errors import InputError, Stopped, counted
from dtrain.log import say, warn
from dtrain.plan import Plan
from dtrain.recipe.models import ExternalSpec
from dtrain.recipe.schema import Recipe
from dtrain.recipe.sides import side_of
from dtrain.runfolder import (
    RunFolder,
    file_fingerprint,
    fingerprint,
    is_done,
    mark_done,
    publish_folder,
    write_json,
)
from dtrain.tasks.corpus import read_corpus
from dtrain.tasks.registry import PREPARING
from dtrain.tasks.rules import rules_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dtrain.runtime.distributed import World
    from dtrain.runtime.stop import StopRequest


def check(recipe: Recipe, world: World) -> None:
    """Load the tokenizers that the recipe names, so that unknown names are refused before anything is written."""
    if not Plan(recipe).stage_done("prepare"):
        world.run_on_main(lambda: _check_given(recipe))


def _check_given(recipe: Recipe) -> None:
    for view in recipe.views():
        with view.data.named():
            specs = tokenizer_specs(view)
            # A model that the recipe itself pre-trains may not be there yet.
            _given_tokenizers(view, [name for name in specs if not getattr(specs[name], "made_here", False)])


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Prepare the recipe's data unless it is there; only what changed is done again.

    Raises:
        InputError: bad sources; nothing is written then.
        Stopped: a stop was requested, between two tokenizers.
    """

    def work() -> None:
        check_tokenizers(recipe)
        tasks = {
            name: TaskRows(of.recipe, folder.of_task(name), of.data, of.tokenizer)
            for name, of in Plan(recipe).tasks.items()
        }
        prepare_tasks(tasks, world.stop)

    world.run_on_main(work)


def prepare(
    recipe: Recipe,
    folder: RunFolder,
    rows_identity: str,
    identity: Callable[[str], str],
    stop: StopRequest | None = None,
) -> None:
    """Prepare a recipe of one task in this process; see `TaskRows`."""
    check_tokenizers(recipe)
    prepare_tasks({recipe.task: TaskRows(recipe, folder, rows_identity, identity)}, stop)


def prepare_tasks(tasks: Mapping[str, TaskRows], stop: StopRequest | None = None) -> None:
    """Prepare all tasks of a recipe in this process.

    Args:
        tasks: by name.
        stop: asked on this rank alone, since the other ranks wait for it.
    """
    started = time.perf_counter()
    datasets.disable_progress_bars()
    # The tokenizers' threads and forked workers do not mix; the workers work in parallel instead.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    waiting = [task for task in tasks.values() if task.wanted]
    if not waiting:
        say("prepare: the data is there already")
        return
    for task in waiting:
        with task.section.named():
            task.look()
    read = [task for task in waiting if not task.rows_there]
    for task in read:  # all input is read, and may be refused, before anything is written
        task.read()
    for task in read:
        task.write_rows()
    for task in waiting:
        with task.section.named():
            task.encode_rows(tasks, stop)
        named = f" {task.section.key}" if len(tasks) > 1 else ""
        say(f"prepare{named}: {'; '.join(task.told)}; {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()


class TaskRows:
    """Prepares the rows of one task: from files to tokens.

    Args:
        recipe: of that task alone.
        rows_identity: the fingerprint of its rows.
        identity: gives the fingerprint of a tokenizer with its encoded rows, by the tokenizer's name.

    Attributes:
        rows_there: whether its rows were written before.
        wanted: whether something is left to do.
        told: what was done, in words.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, rows_identity: str, identity: Callable[[str], str]) -> None:
        self.recipe, self.folder, self.section = recipe, folder, recipe.data
        self.rows_identity, self.identity = rows_identity, identity
        self.specs = tokenizer_specs(recipe)
        self.missing = [name for name in self.specs if not is_done(folder.data / "encoded" / name, identity(name))]
        self.rows_there = is_done(folder.data / "rows", rows_identity)
        self.wanted = bool(self.missing) or not self.rows_there
        self.told: list[str] = []
        self._given: dict[str, PreTrainedTokenizerFast] = {}
        self._corpus: Corpus | None = None

    def look(self) -> None:
        """Load the models and tokenizers that are named, first of all, since they may be bad input."""
        _check_external(self.recipe)
        self._given = _given_tokenizers(self.recipe, self.missing)

    def read(self) -> None:
        """Read all source files; raises InputError."""
        corpus = read_corpus(self.section, self.recipe.seed)
        _check_external(self.recipe, corpus.labels)
        if self.section.sides:
            _check_sides(self.recipe, side_counts(corpus, self.section.sides))
        if self.section.augment is not None:
            with self.section.named():
                corpus = with_synthetic_rows(corpus, self.section, self.recipe.seed)
        self._corpus = corpus

    def write_rows(self) -> None:
        """Publish `rows/`."""
        assert self._corpus is not None
        with publish_folder(self.folder.data / "rows") as aside:
            PREPARING[self.section.task].write(self._corpus, self.section, aside)
            mark_done(aside, self.rows_identity)
        self._corpus = None

    def encode_rows(self, tasks: Mapping[str, TaskRows], stop: StopRequest | None) -> None:
        """Publish each tokenizer that is missing, with the rows as it encodes them.

        Args:
            tasks: all tasks of the recipe, with their rows written: a vocabulary may be counted on several.
        """
        data = PreparedData.open(self.folder)
        if self.rows_there:
            _check_external(self.recipe, data.labels)
            if self.section.sides:
                _check_sides(self.recipe, data.info)
        else:
            _remark(data.info)
        self.told.append(_rows_in_words(data.info))
        for name in self.missing:
            if stop is not None and stop.here():
                what = f"stopped on request ({stop.reason}) before tokenizer {name}"
                raise Stopped(f"prepare: {what}; the same command continues")
            tokenizer = self._given.get(name) or self._counted(name, tasks)
            encoding = _encode(self.recipe, data, name, tokenizer, self.identity(name), given=name in self._given)
            if much := unknown_in_words(name, encoding):
                warn(much)
            cut = sum(encoding["cut"].values()) / sum(len(data.rows(p, side_of(name))) for p in data.parts_read(name))
            # Documents are read in pieces, and nothing of them is cut off.
            lost = "" if "documents" in data.info else f" ({cut:.1%} of rows cut at {self.section.max_length})"
            self.told.append(f"{name} {len(tokenizer):,} tokens{lost}")

    def _counted(self, name: str, tasks: Mapping[str, TaskRows]) -> PreTrainedTokenizerFast:
        """A tokenizer whose vocabulary comes from the training and transfer rows of every task that it reads."""
        spec = self.specs[name]
        assert not isinstance(spec, ExternalSpec)  # which brings its own tokenizer
        of = [tasks[task] for task in tasks_reading(self.recipe, name)]
        # A vocabulary of characters serves only taggers; if other kinds of task are read, too, it is made for their kind.
        kind = next((task for task in of if not rules_of(task.section.task).tags), of[0])
        sides = [("text", "text_b"), *([("target",)] if rules_of(kind.section.task).writes else [])]
        of_sides = sides_reading(self.recipe, name)

        def texts_of(columns: tuple[str, ...]) -> Iterator[list[str]]:
            return itertools.chain.from_iterable(task.texts(columns, side) for task in of for side in of_sides)

        texts, *targets = map(texts_of, sides)  # generators nested in one another would all read the last columns
        return PREPARING[kind.section.task].tokenizer(spec, texts, kind.section, *targets)

    def texts(self, columns: tuple[str, ...], side: str = "") -> Iterator[list[str]]:
        """The normalised texts that vocabularies are counted on, from those of `columns` that rows have, of one side."""
        texts = _training_texts(PreparedData.open(self.folder), columns, side)
        return PREPARING[self.section.task].normalised(texts, self.section)


def _check_external(recipe: Recipe, labels: list[str] | None = None) -> None:
    problems = check_external(recipe, labels)
    if labels is not None:
        problems += check_class_weights(recipe, labels)
    if problems:
        raise InputError(problems)


def _check_sides(recipe: Recipe, info: Mapping[str, Any]) -> None:
    """Raise InputError for members that have no rows to train on with the side they read; print remarks on the others."""
    problems, remarks = check_sides(info, recipe)
    if problems:
        raise InputError(problems)
    for remark in remarks:
        say(f"prepare: {remark}")


# --- tokenizers and what they encode ---------------------------------------------------------------


def _given_tokenizers(recipe: Recipe, names: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    """The pretrained tokenizers, and those of a vocabulary file, among `names`; the recipe is of one task."""
    given = {}
    for name, spec in tokenizer_specs(recipe).items():
        if name in names and spec is not None:
            tokenizer = given_tokenizer(name, spec, recipe.data.max_length, recipe.data.normalize.lower)
            if tokenizer is not None:
                source = spec.folder if isinstance(spec, ExternalSpec) else spec.source
                if source is not None:
                    place = resolve_path(source)
                    PREPARING[recipe.data.task].complete(tokenizer, str(place if place.exists() else source))
                given[name] = tokenizer
    return given


def _training_texts(data: PreparedData, columns: tuple[str, ...], side: str = "") -> Iterator[list[str]]:
    """Texts that vocabularies are counted on, without synthetic rows, whose words `min_count` would count twice."""
    for part in ("train", "transfer"):
        if part in parts_of(data.info, side):
            rows = data.rows(part, side)
            if part == "transfer":
                rows = rows.select(range(len(rows) - data.info.get("made_up", 0)))
            for column in columns:
                if column in rows.column_names:
                    for batch in rows.select_columns([column]).iter(1000):
                        yield batch[column]


def _encode(
    recipe: Recipe, data: PreparedData, name: str, tokenizer: PreTrainedTokenizerFast, identity: str, *, given: bool
) -> dict[str, Any]:
    """Publish a tokenizer, then the parts that it encodes, with a `done.json` for both.

    Args:
        given: whether it was made elsewhere, not from these rows: then the share of unknown tokens is recorded, too.

    Returns:
        The contents of `encoded.json`.
    """
    preparing = PREPARING[recipe.data.task]
    more = preparing.record(tokenizer, tokenizer_specs(recipe)[name])
    with publish_folder(data.tokenizer_path(name)) as aside:
        preparing.save(tokenizer, aside)
    files = sorted(data.tokenizer_path(name).iterdir())
    with publish_folder(data.folder / "encoded" / name) as aside:
        cut = write_encoded(
            preparing.encode(tokenizer, recipe.data),
            data.rows_path(side_of(name)),
            data.parts_read(name),
            recipe.data,
            aside,
        )
        encoding = {
            "rows": data.fingerprint,
            "tokenizer": fingerprint(recipe.data.max_length, [(path.name, file_fingerprint(path)) for path in files]),
            "vocabulary": len(tokenizer),
            "pad_id": tokenizer.pad_token_id,
            "frame": frame_ids(tokenizer),
            "max_length": recipe.data.max_length,
            "cut": cut,
            **({"unknown": token_share(aside, data.parts_read(name), tokenizer.unk_token_id)} if given else {}),
            "specials": preparing.specials(tokenizer, recipe.data),
            **more,
        }
        write_json(aside / "encoded.json", encoding)
        inside = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        mark_done(aside, identity, inside + [f"../../tokenizers/{name}/{path.name}" for path in files])
    return encoding


# --- words for the user ----------------------------------------------------------------------------


def _rows_in_words(info: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {count:,}" for part, count in info["rows"].items())
    if "numbers" in info:
        return f"{parts} rows; {numbers_in_words(info['numbers'])}"
    if rules_of(info["task"]).writes:
        return f"{parts} rows, sources and targets"
    if "types" not in info:
        return f"{parts} rows; {len(info['labels'])} labels"
    whole = sum(info["documents"].values())
    return f"{parts} rows of {counted(whole, 'document')}; {counted(len(info['types']), 'entity type')}, scheme {info['scheme']}"


def _remark(info: dict[str, Any]) -> None:
    for remark in remarks_in_words(info):
        warn(remark)
    for part, count in info["also_in_train"].items():
        if count:
            say(f"prepare: {count:,} of {info['rows'][part]:,} {part} rows have a text that is in training, too")
