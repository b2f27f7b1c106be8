"""check: is everything the recipe names there and well-formed? Nothing is trained or written."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from dtrain.data.annotations import strangers
from dtrain.data.class_weights import check_class_weights
from dtrain.data.corpus import Corpus
from dtrain.data.encoders import answers_in_words, check_encoders
from dtrain.data.external import check_external
from dtrain.data.files import existing_file, resolve_path
from dtrain.data.pretrained import check_pretrained
from dtrain.data.problems import shown
from dtrain.data.sides import check_sides, side_counts
from dtrain.data.summary import cut_in_words, estimated_cuts, info_of, remarks_in_words, rows_in_words
from dtrain.data.tokenizers import check_tokenizers, tokenizer_specs
from dtrain.data.vectors import check_vectors
from dtrain.errors import EXIT_DONE, InputError
from dtrain.hub import not_cached
from dtrain.launch import launch_spec, launches_in_words, visible_gpus
from dtrain.log import say, warn
from dtrain.plan import Plan
from dtrain.points.foreground import check_foreground
from dtrain.pretraining.corpus import check_corpus
from dtrain.pretraining.plain_text import plain_text_of
from dtrain.recipe import Recipe, Student, Teacher, dump_recipe
from dtrain.recipe.models import encoder_of
from dtrain.recipe.phases import reads_head
from dtrain.runfolder import is_done, read_json
from dtrain.stages import find_stage, run_names
from dtrain.tasks.corpus import check_sources


def check_inputs(recipe: Recipe) -> dict[str, Corpus]:
    """Check the files, rows, folders and launch settings that the recipe names.

    Returns:
        The rows of each task by its name (empty for an only task). Rows that were prepared already, from the same bytes
        with the same settings, are not read again, and the mapping is empty.

    Raises:
        InputError: with every problem.
    """

    problems: list[str] = []
    try:
        check_tokenizers(recipe)
    except InputError as error:
        problems += error.problems
    views = recipe.views()
    for view in views:
        problems += check_external(view)
    problems += check_encoders(recipe)
    for section in ("teachers", "students"):
        for view in views:
            for member in getattr(view, section):
                found = _unfit_model_files(member.name, member.model, view.data.max_length)
                problems += [view.data.in_own_keys(problem) for problem in found]
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
    if any(phase.chooses for student in recipe.students for phase in student.phases or []):
        problems += find_stage("distill").load().check_phases(recipe)  # imports torch, which other recipes do not need
    problems += _unfit_texts(recipe)
    problems += _unusable_places(recipe)
    for view in views:
        if recipe.report.splits == ["test"] and not view.data.test and not view.data.split.test:
            of = f" of {view.data.key}" if recipe.several else ""
            problems.append(f"report.splits: 'test' is all that is to be reported, and there are no test rows{of}")
    if recipe.knowledge_points is not None and not recipe.several:
        problems += check_foreground(recipe.knowledge_points, recipe.data)
    prepared = False
    with contextlib.suppress(OSError, InputError):  # a missing file was reported above, or is below
        prepared = Plan(recipe).stage_done("prepare")
    corpora: dict[str, Corpus] = {}
    types: dict[str, tuple[list[str], list[str]]] = {}  # types of entities and of annotations by task
    if prepared:
        for view in views:
            rows = read_json(Plan(recipe).folder.of_task(view.task).data / "rows" / "data.json")
            problems += check_sides(rows, view)[0] if view.data.sides else []
            problems += check_class_weights(view, rows["labels"])
            types[view.task] = rows.get("types", []), rows.get("privileged", [])
    else:
        for view in views:
            try:
                corpora[view.task] = corpus = _checked_rows(view, problems)
                types[view.task] = corpus.types, corpus.privileged
            except InputError as error:
                problems += error.problems
    problems += _unfit_annotators(recipe, types)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return corpora


def _unfit_annotators(recipe: Recipe, types: Mapping[str, tuple[list[str], list[str]]]) -> list[str]:
    """Problems of taggers (`annotated_by`) that find types of entities other than those of the annotations they replace.

    Args:
        types: by task, the types of its entities and of its annotations, for tasks whose rows could be read.
    """
    members: dict[str, Teacher | Student] = {teacher.name: teacher for teacher in recipe.teachers}
    members |= {student.name: student for student in recipe.students}
    found: list[str] = []
    for teacher in recipe.teachers:
        if teacher.annotated_by is None:
            continue
        (own,), (theirs,) = recipe.tasks_of(teacher), recipe.tasks_of(members[teacher.annotated_by])
        if own in types and theirs in types:
            problem = strangers(teacher.annotated_by, types[theirs][0], types[own][1])
            found += [f"teachers.{teacher.name}.{problem}"] if problem else []
    return found


def _unread_annotations(recipe: Recipe) -> list[str]:
    """Remarks on annotations that no teacher reads."""
    return [
        f"{view.data.key}.columns.privileged: no teacher reads them; a tagger does with model.privileged: {{size: 32}}"
        for view in recipe.views()
        if view.data.columns.privileged is not None and not any(t.model.reads_privileged for t in view.teachers)
    ]


def _checked_rows(view: Recipe, problems: list[str]) -> Corpus:
    """The rows of one task; problems of the rows as a whole are added to `problems`. Raises InputError."""
    corpus = check_sources(view.data, view.seed)
    problems += [problem for problem in check_external(view, corpus.labels) if problem not in problems]
    problems += check_class_weights(view, corpus.labels)
    if view.data.sides:
        problems += check_sides(side_counts(corpus, view.data.sides), view)[0]
    if not corpus.counts.get("valid"):
        few = f"no validation rows can be cut from {corpus.counts['train']} training rows"
        problems.append(view.data.in_own_keys(f"data.split: {few}; name data.valid, or cut more"))
    return corpus


def _unfit_texts(recipe: Recipe) -> list[str]:
    """Problems of the plain text for students' phases, where it is not prepared yet."""
    problems: list[str] = []
    for student in recipe.students:
        text = plain_text_of(recipe, student)
        if text is None or text.shared:  # the text of pre-training is checked with pre-training
            continue
        prepared = functools.partial(_is_read, recipe, student, text.name)
        try:
            with text.named():
                check_corpus(text.recipe, prepared)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return problems


def _is_read(recipe: Recipe, student: Student, name: str) -> bool:
    plan = Plan(recipe)
    return is_done(plan.folder.data / name, plan.plain_text(student))


def _unusable_places(recipe: Recipe) -> list[str]:
    """Problems of the run folder: a file where it or a subfolder must be, or a place that cannot be written to."""
    root = Plan(recipe).folder.root
    rooms = (
        *("data", "pretrain", "teachers", "knowledge", "students", "phases"),
        *("epochs", "points", "report", "tensorboard", "checkpoints"),
    )
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
    """Problems of a model's files: vectors and pretrained models that are missing, or that training would refuse.

    Args:
        name: of the model, for the messages.
        spec: its section `model`.
        max_length: of its rows, in tokens.
    """
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


def run(recipe: Recipe, corpora: Mapping[str, Corpus], *, store: bool = False, resolved: bool = False) -> int:
    """Print a summary of the recipe (rows, labels, models, launches) with remarks on likely mistakes; returns the exit code.

    Args:
        corpora: the rows by task, where they are not prepared yet (see `check_inputs`).
        store: instead, verify checksums, row ids and values of every knowledge store.
        resolved: instead of the summary, print the recipe with every default.
    """
    plan = Plan(recipe)
    if store:
        verify = find_stage("precompute").load().check_store
        for teacher in plan.needed_teachers():
            verify(teacher, recipe, plan.folder)
            say(f"{plan.folder.knowledge(teacher)}: whole")
        return EXIT_DONE
    views = [(view, _info(view, corpora, plan)) for view in recipe.views()]
    if resolved:
        say(dump_recipe(recipe).rstrip())
    else:
        say(f"{recipe.name} -> {plan.folder.root}")
        for view, info in views:
            _describe_rows(view, info, corpora.get(view.task), plan)
        for section in ("teachers", "students"):
            members = [f"{member.name} ({member.model.type})" for member in getattr(recipe, section)]
            say(f"{section}: {shown(members, 10) or 'none'}")
        for line in (*answers_in_words(recipe), *launches_in_words(recipe)):
            say(line)
        hub = _hub_models(recipe)
        if hub and (missing := not_cached(hub)):
            say(f"downloaded from the Hugging Face hub by the first run: {shown(missing, 10)}")
            say(
                "  (without a network: name a model's folder, or take a model that needs no download, as {type: textcnn})"
            )
    for view, info in views:
        for remark in remarks_in_words(info):
            warn(remark if not recipe.several or view.data.key in remark else f"{view.data.key}: {remark}")
        for remark in check_sides(info, view)[1] if view.data.sides else ():
            warn(remark)
    for remark in (
        *_unsaid_norms(recipe),
        *_untrained_heads(recipe),
        *_unread_annotations(recipe),
        *_too_large(recipe),
    ):
        warn(remark)
    if not resolved:
        say("the recipe can be run; --resolved prints it with every default")
    return EXIT_DONE


def _info(view: Recipe, corpora: Mapping[str, Corpus], plan: Plan) -> dict[str, Any]:
    """What `data.json` says, or will say, of the rows of one task."""
    if view.task in corpora:
        return info_of(corpora[view.task], view.data.sides)
    info: dict[str, Any] = read_json(plan.folder.of_task(view.task).data / "rows" / "data.json")
    return info


def _describe_rows(view: Recipe, info: Mapping[str, Any], corpus: Corpus | None, plan: Plan) -> None:
    """Print a description of the rows of one task."""
    if view.task:
        say(f"{view.data.key}: {view.data.task}")
    for line in rows_in_words(info, view):
        say(line)
    # A tagger's documents are read in pieces, and nothing of them is cut off.
    cut = None if "types" in info else _cut_rows(corpus, view, plan, sum(info["rows"].values()))
    if cut:
        say(cut)


def _hub_models(recipe: Recipe) -> list[str]:
    """Names of pretrained models that are not folders and so must be models of the hub; the hub itself is not asked."""
    encoders = [encoder_of(member.model) for member in (*recipe.teachers, *recipe.students)]
    if recipe.pretrain:
        encoders.append(encoder_of(recipe.pretrain.model))
    names = [each.pretrained for each in encoders if each is not None and each.pretrained and not each.made_here]
    return list(dict.fromkeys(name for name in names if not resolve_path(name).is_dir()))


def _too_large(recipe: Recipe) -> list[str]:
    """Remarks on teachers that will not fit this machine's GPUs."""
    if not recipe.teachers or not visible_gpus():
        return []
    from dtrain.planning import command

    return command.warnings(recipe)


def _unsaid_norms(recipe: Recipe) -> list[str]:
    """Remarks on `adversarial.epsilon` without `norm`: it is read as an absolute norm, but may be meant as relative."""
    return [
        f"{section}.{member.name}.adversarial: epsilon {spec.epsilon:g} is a norm itself (norm: absolute), since norm is not "
        "given; norm: relative reads it as a share of the norm of a row's embeddings"
        for section in ("teachers", "students")
        for member in getattr(recipe, section)
        if (spec := member.adversarial) is not None and spec.norm == "absolute" and "norm" not in spec.model_fields_set
    ]


def _untrained_heads(recipe: Recipe) -> list[str]:
    """Remarks on students whose losses compare only inner layers, so that the classifier keeps its random weights."""
    return [
        f"students.{student.name}.losses: none reads its classifier, which stays as it was drawn, so its answers mean nothing; "
        "add one that does (cross_entropy, soft_targets), or a phase with one"
        for student in recipe.students
        if student.tasks is None
        and student.peers is None
        and any(
            loss.loss.inside or {"features", "token_features"} & set(loss.loss.needs) for loss in student.all_losses
        )
        and not reads_head(student.all_losses)
    ]


def _cut_rows(corpus: Corpus | None, view: Recipe, plan: Plan, rows: int) -> str | None:
    """A line on the rows longer than `data.max_length`: their number if they are prepared, else an estimate."""
    if corpus:
        return cut_in_words(estimated_cuts(corpus, view), rows, view, about="about ")
    place = plan.folder.of_task(view.task).data / "encoded"
    encoded = {name: read_json(place / name / "encoded.json") for name in tokenizer_specs(view)}
    return cut_in_words({name: sum(entry["cut"].values()) for name, entry in encoded.items()}, rows, view)
