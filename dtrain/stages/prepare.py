"""prepare: from source files to rows, tokenizers and encoded rows under `<run>/data/`.

Everything is read and checked before anything is written. The main rank works, the others wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import datasets

from dtrain.augment.rows import with_synthetic_rows
from dtrain.data import PreparedData
from dtrain.data.external import check_external
from dtrain.data.summary import remarks_in_words
from dtrain.data.tokenizers import check_tokenizers, tokenizer_specs
from dtrain.data.vocabularies import frame_ids, given_tokenizer
from dtrain.data.write import write_encoded
from dtrain.errors import InputError, Stopped, counted
from dtrain.log import say, warn
from dtrain.plan import Plan
from dtrain.recipe.models import ExternalSpec
from dtrain.recipe.schema import Recipe
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dtrain.runtime.distributed import World
    from dtrain.runtime.stop import StopRequest


def check(recipe: Recipe, world: World) -> None:
    """Load the given tokenizers: what is no model of the hub, either, is told before anything is written."""
    if not Plan(recipe).stage_done("prepare"):
        world.run_on_main(lambda: _check_given(recipe))


def _check_given(recipe: Recipe) -> None:
    _given_tokenizers(recipe, [*tokenizer_specs(recipe)])


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Prepare the recipe's data unless it is there; only what changed is done again.

    Raises InputError for bad sources, before anything is written, and Stopped between two tokenizers, if asked to.
    """
    plan = Plan(recipe)
    world.run_on_main(lambda: prepare(recipe, folder, plan.data, plan.tokenizer, world.stop))


def prepare(
    recipe: Recipe,
    folder: RunFolder,
    rows_identity: str,
    identity: Callable[[str], str],
    stop: StopRequest | None = None,
) -> None:
    """The work of one process.

    Args:
        rows_identity: fingerprint of the rows that the recipe asks for.
        identity: gives the fingerprint of a tokenizer with its encoded rows, by the tokenizer's name.
        stop: heard on this rank alone, since the others wait for it.
    """
    started = time.perf_counter()
    datasets.disable_progress_bars()
    # The tokenizers' threads and forked workers do not mix; the workers are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    check_tokenizers(recipe)
    specs = tokenizer_specs(recipe)
    missing = [name for name in specs if not is_done(folder.data / "encoded" / name, identity(name))]
    rows_there = is_done(folder.data / "rows", rows_identity)
    if rows_there and not missing:
        say("prepare: the data is there already")
        return
    _check_external(recipe)
    given = _given_tokenizers(recipe, missing)
    if not rows_there:
        corpus = read_corpus(recipe.data, recipe.seed)
        _check_external(recipe, corpus.labels)
        if recipe.data.augment is not None:
            corpus = with_synthetic_rows(corpus, recipe.data, recipe.seed)
        with publish_folder(folder.data / "rows") as aside:
            PREPARING[recipe.data.task].write(corpus, recipe.data, aside)
            mark_done(aside, rows_identity)
    data = PreparedData.open(folder)
    if rows_there:
        _check_external(recipe, data.labels)
    else:
        _remark(data.info)
    told = [_rows_in_words(data.info)]
    for name in missing:
        if stop is not None and stop.here():
            what = f"stopped on request ({stop.reason}) before tokenizer {name}"
            raise Stopped(f"prepare: {what}; the same command continues")
        tokenizer = given.get(name) or _counted_tokenizer(recipe, data, name)
        encoding = _encode(recipe, data, name, tokenizer, identity(name))
        cut = sum(encoding["cut"].values()) / sum(data.info["rows"].values())
        # Documents are read in pieces, and nothing of them is cut off.
        lost = "" if "documents" in data.info else f" ({cut:.1%} of rows cut at {recipe.data.max_length})"
        told.append(f"{name} {len(tokenizer):,} tokens{lost}")
    say(f"prepare: {'; '.join(told)}; {time.perf_counter() - started:.1f} s")


def _check_external(recipe: Recipe, labels: list[str] | None = None) -> None:
    problems = check_external(recipe, labels)
    if problems:
        raise InputError(problems)


# --- tokenizers and what they encode ---------------------------------------------------------------


def _given_tokenizers(recipe: Recipe, names: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    """Pretrained tokenizers and those of a vocabulary file; loaded first, since they may be bad input."""
    given = {}
    for name, spec in tokenizer_specs(recipe).items():
        if name in names and spec is not None:
            tokenizer = given_tokenizer(name, spec, recipe.data.max_length, recipe.data.normalize.lower)
            if tokenizer is not None:
                given[name] = tokenizer
    return given


def _counted_tokenizer(recipe: Recipe, data: PreparedData, name: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary comes from the training and transfer rows."""
    spec = tokenizer_specs(recipe)[name]
    assert not isinstance(spec, ExternalSpec)  # which brings its own
    return PREPARING[recipe.data.task].tokenizer(spec, _training_texts(data), recipe.data)


def _training_texts(data: PreparedData) -> Iterator[list[str]]:
    """Texts that vocabularies are counted on. Synthetic rows repeat training words, which `min_count` counts once."""
    for part in ("train", "transfer"):
        if part in data.parts:
            rows = data.rows(part)
            if part == "transfer":
                rows = rows.select(range(len(rows) - data.info.get("made_up", 0)))
            for column in ("text", "text_b"):
                if column in rows.column_names:
                    for batch in rows.select_columns([column]).iter(1000):
                        yield batch[column]


def _encode(
    recipe: Recipe, data: PreparedData, name: str, tokenizer: PreTrainedTokenizerFast, identity: str
) -> dict[str, Any]:
    """Publish a tokenizer, then the parts that it encodes, with a record that vouches for both."""
    with publish_folder(data.tokenizer_path(name)) as aside:
        tokenizer.save_pretrained(aside)
    files = sorted(data.tokenizer_path(name).iterdir())
    preparing = PREPARING[recipe.data.task]
    with publish_folder(data.folder / "encoded" / name) as aside:
        cut = write_encoded(
            preparing.encode(tokenizer, recipe.data), data.folder / "rows", data.parts, recipe.data, aside
        )
        encoding = {
            "rows": data.fingerprint,
            "tokenizer": fingerprint(recipe.data.max_length, [(path.name, file_fingerprint(path)) for path in files]),
            "vocabulary": len(tokenizer),
            "pad_id": tokenizer.pad_token_id,
            "frame": frame_ids(tokenizer),
            "max_length": recipe.data.max_length,
            "cut": cut,
            "specials": preparing.specials(tokenizer, recipe.data),
        }
        write_json(aside / "encoded.json", encoding)
        inside = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        mark_done(aside, identity, inside + [f"../../tokenizers/{name}/{path.name}" for path in files])
    return encoding


# --- words for the user ----------------------------------------------------------------------------


def _rows_in_words(info: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {count:,}" for part, count in info["rows"].items())
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
