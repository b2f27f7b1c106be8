"""check: is everything the recipe names there and well-formed? Nothing is trained or written."""

from __future__ import annotations

import contextlib
import os

from pydantic import BaseModel

from dtrain.data.corpus import Corpus
from dtrain.data.external import check_external
from dtrain.data.files import existing_file, resolve_path
from dtrain.data.pretrained import check_pretrained
from dtrain.data.problems import shown
from dtrain.data.summary import cut_in_words, estimated_cuts, info_of, remarks_in_words, rows_in_words
from dtrain.data.tokenizers import check_tokenizers, tokenizer_specs
from dtrain.data.vectors import check_vectors
from dtrain.errors import EXIT_DONE, InputError
from dtrain.hub import not_cached
from dtrain.launch import launch_spec
from dtrain.log import say, warn
from dtrain.plan import Plan
from dtrain.pretraining.corpus import check_corpus
from dtrain.recipe import Recipe, dump_recipe
from dtrain.recipe.models import encoder_of
from dtrain.runfolder import read_json
from dtrain.stages import find_stage, run_names
from dtrain.tasks.corpus import check_sources


def check_inputs(recipe: Recipe) -> Corpus | None:
    """Files, rows, folders and launch settings that the recipe names; raises InputError with every problem.

    Returns:
        The rows, or None where they were prepared already, from the same bytes by the same settings: then they are not
        read again.
    """

    problems: list[str] = []
    try:
        check_tokenizers(recipe)
    except InputError as error:
        problems += error.problems
    problems += check_external(recipe)
    for section in (recipe.teachers, recipe.students):
        for member in section:
            problems += _unfit_model_files(member.name, member.model, recipe.data.max_length)
    try:
        for stage in run_names():
            launch_spec(recipe, stage)
    except InputError as error:
        problems += error.problems
    if recipe.pretrain:
        try:
            check_corpus(recipe, Plan(recipe).corpus_prepared)
        except InputError as error:
            problems += error.problems
        problems += _unfit_model_files(
            "pretrain", recipe.pretrain.model, max(phase.max_length for phase in recipe.pretrain.phases)
        )
    problems += _unusable_places(recipe)
    if recipe.report.splits == ["test"] and not recipe.data.test and not recipe.data.split.test:
        problems.append("report.splits: 'test' is all that is to be reported, and there are no test rows")
    prepared, corpus = False, None
    with contextlib.suppress(OSError, InputError):  # a file that is missing is named below, or was above
        prepared = Plan(recipe).stage_done("prepare")
    try:
        if not prepared:
            corpus = check_sources(recipe.data, recipe.seed)
            problems += [problem for problem in check_external(recipe, corpus.labels) if problem not in problems]
            if not corpus.counts.get("valid"):
                few = f"no validation rows can be cut from {corpus.counts['train']} training rows"
                problems.append(f"data.split: {few}; name data.valid, or cut more")
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    return corpus


def _unusable_places(recipe: Recipe) -> list[str]:
    """Files where the run folder or one of its rooms must be, and a place that cannot be written to."""
    root = Plan(recipe).folder.root
    rooms = ("data", "pretrain", "teachers", "knowledge", "students", "report", "tensorboard", "checkpoints")
    places = [*reversed(root.parents), root, *(root / room for room in rooms)]
    try:
        for place in places:
            if place.exists() and not place.is_dir():
                return [f"output_dir: {place} is a file, not a folder"]
        nearest = next(place for place in (root, *root.parents) if place.is_dir())
        if not os.access(nearest, os.W_OK) or nearest.is_relative_to("/proc"):
            return [f"output_dir: {nearest} cannot be written to"]
    except OSError as error:
        return [f"output_dir: {root}: {error.strerror}"]
    return []


def _unfit_model_files(name: str, spec: BaseModel, max_length: int) -> list[str]:
    """Vectors and pretrained models that are not there, or that training would refuse; `max_length` is in tokens."""
    problems = []
    vectors = getattr(spec, "vectors", None)
    if vectors:
        try:
            path = existing_file(vectors, f"{name}: model.vectors")
        except InputError as error:
            problems += error.problems
        else:
            try:
                check_vectors(path, getattr(spec, "embedding", 0))
            except InputError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
    encoder = encoder_of(spec)
    if encoder is not None:
        key = f"{name}: model.pretrained" if encoder is spec else f"{name}: model.encoder.pretrained"
        problems += check_pretrained(encoder, key, max_length)
    return problems


def run(recipe: Recipe, corpus: Corpus | None, *, store: bool = False, resolved: bool = False) -> int:
    """Say what the recipe comes to: its files, rows, labels and models, and what is worth a second look.

    Args:
        corpus: the rows, where they are not prepared yet.
        store: verify checksums, coverage and values of every knowledge store instead.
        resolved: print the recipe with every default instead.
    """
    plan = Plan(recipe)
    if store:
        verify = find_stage("precompute").load().check_store
        for teacher in plan.needed_teachers():
            verify(teacher, recipe, plan.folder)
            say(f"{plan.folder.knowledge(teacher)}: whole")
        return EXIT_DONE
    info = info_of(corpus) if corpus else read_json(plan.folder.data / "rows" / "data.json")
    if resolved:
        say(dump_recipe(recipe).rstrip())
    else:
        say(f"{recipe.name} -> {plan.folder.root}")
        for line in rows_in_words(info, recipe):
            say(line)
        # Documents of a tagger are read in pieces, and nothing of them is lost.
        cut = None if "types" in info else _cut_rows(corpus, plan, sum(info["rows"].values()))
        if cut:
            say(cut)
        for section in ("teachers", "students"):
            members = [f"{member.name} ({member.model.type})" for member in getattr(recipe, section)]
            say(f"{section}: {shown(members, 10) or 'none'}")
        hub = _hub_models(recipe)
        if hub and (missing := not_cached(hub)):
            say(
                f"no folder here, so downloaded by the first run from the Hugging Face hub: {shown(missing, 10)} (without a "
                "network: name a model's folder, or give `size: mini` in place of `pretrained` for one from random weights)"
            )
    for remark in [*remarks_in_words(info), *_unsaid_norms(recipe)]:
        warn(remark)
    if not resolved:
        say("the recipe can be run; --resolved prints it with every default")
    return EXIT_DONE


def _hub_models(recipe: Recipe) -> list[str]:
    """Names of pretrained models that are no folder: whether the hub has them is not known here."""
    encoders = [encoder_of(member.model) for member in (*recipe.teachers, *recipe.students)]
    if recipe.pretrain:
        encoders.append(encoder_of(recipe.pretrain.model))
    names = [each.pretrained for each in encoders if each is not None and each.pretrained and not each.made_here]
    return list(dict.fromkeys(name for name in names if not resolve_path(name).is_dir()))


def _unsaid_norms(recipe: Recipe) -> list[str]:
    """Sizes of adversarial training that are meant as shares, perhaps, and read as norms."""
    return [
        f"{section}.{member.name}.adversarial: epsilon {spec.epsilon:g} is a norm itself (norm: absolute), since norm is not "
        "given; norm: relative reads it as a share of the norm of a row's embeddings"
        for section in ("teachers", "students")
        for member in getattr(recipe, section)
        if (spec := member.adversarial) is not None and spec.norm == "absolute" and "norm" not in spec.model_fields_set
    ]


def _cut_rows(corpus: Corpus | None, plan: Plan, rows: int) -> str | None:
    """Rows that are longer than `data.max_length`: of prepared ones as counted, else as estimated."""
    recipe = plan.recipe
    if corpus:
        return cut_in_words(estimated_cuts(corpus, recipe), rows, recipe, about="about ")
    encoded = {
        name: read_json(plan.folder.data / "encoded" / name / "encoded.json") for name in tokenizer_specs(recipe)
    }
    return cut_in_words({name: sum(entry["cut"].values()) for name, entry in encoded.items()}, rows, recipe)
