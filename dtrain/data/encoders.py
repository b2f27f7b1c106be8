"""Shapes of transformers, from the recipe or a folder's config.json, and what teachers cost that run beside students.

Needs no torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dtrain.data.files import resolve_path
from dtrain.data.problems import shown
from dtrain.data.tokenizers import TARGET_FILE
from dtrain.losses.layers import EncoderShape
from dtrain.recipe.answers import unlike_layers
from dtrain.recipe.models import Architecture, EncoderSpec, ExternalSpec, encoder_of
from dtrain.recipe.phases import CORPUS
from dtrain.recipe.taught import one_vocabulary

if TYPE_CHECKING:
    from dtrain.recipe.schema import Recipe
    from dtrain.recipe.training import Student, Teacher


def encoder_config(spec: Architecture) -> dict[str, Any] | None:
    """The transformers configuration of a model's encoder; None where it has none, or where that is not known here."""
    encoder = encoder_of(spec)
    if encoder is not None and not encoder.encodes:
        return None  # the layers of an encoder and a decoder are no BERT's
    if encoder is not None and not encoder.pretrained:
        return encoder.config()
    place = spec.folder if isinstance(spec, ExternalSpec) else encoder.source if encoder is not None else None
    if place is None:
        return None
    try:
        config = json.loads((resolve_path(place) / "config.json").read_text(encoding="utf-8"))
        found: dict[str, Any] | None = config.get("encoder") or config
    except (OSError, ValueError, AttributeError):
        return None  # a hub model, or a folder whose problem another check names
    return found if isinstance(found, dict) and "num_hidden_layers" in found else None


def encoder_shape(spec: Architecture) -> EncoderShape | None:
    """Width, layers and heads of a model's transformer; None where there is none, or where they are not known."""
    config = encoder_config(spec)
    if config is None:
        return None
    return EncoderShape(config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"])


def answers_in_words(recipe: Recipe) -> list[str]:
    """A line for each set of teacher outputs that are computed beside students: which students, and at what cost.

    The line also names the outputs of the same teacher that are read from its store.
    """
    teachers = {teacher.name: teacher for teacher in recipe.teachers}
    said: dict[str, list[str]] = {}
    for student in recipe.students:
        reads = student.asks
        for name, kinds in reads.online.items():
            stored = reads.stored.get(name, [])
            line = f"{' and '.join(kinds)} of {name} computed beside it"
            line += f", {' and '.join(stored)} read from its store" if stored else ""
            whose = (
                "once for all that read the same rows" if _is_shared(student, name) else "for each student by itself"
            )
            said.setdefault(line + _cost(student.model, teachers[name].model, whose, recipe), []).append(student.name)
    return [f"answers: {shown(names, 5)}: {line}" for line, names in said.items()]


def _is_shared(student: Student, teacher: str) -> bool:
    """Whether other students may share the teacher's outputs.

    They may not on plain text, which is masked for each student by itself, nor where the student has several tasks.
    """
    on_task = (training for training in student.trainings if training.rows != [CORPUS])
    return student.tasks is None and any(teacher in training.asks.online for training in on_task)


def _cost(student: Architecture, teacher: Architecture, whose: str, recipe: Recipe) -> str:
    own, theirs = encoder_config(student), encoder_config(teacher)
    if own is None or theirs is None:
        return ""
    # A student's step is a forward pass and a backward pass of twice its cost; the teacher has a forward pass alone.
    share = _products(theirs) / (3 * _products(own))
    vocabulary = theirs.get("vocab_size", 0) * theirs["hidden_size"]
    megabytes = 4 * (_products(theirs) + vocabulary) / 2**20
    held = "over all ranks" if recipe.knowledge.sharded else "a rank"
    return f" ({share:.2g} times the computing of a student's step, {whose}; {megabytes:,.1f} MB of weights {held})"


def _products(config: dict[str, Any]) -> int:
    """Multiply-adds of a transformer's linear layers for one token; also the number of weights in their matrices."""
    hidden, between = config["hidden_size"], config.get("intermediate_size") or 4 * config["hidden_size"]
    return int(config["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * between))


def check_encoders(recipe: Recipe) -> list[str]:
    """Problems, a line each, with losses that compare a student's layers with a teacher's, and with copying its layers.

    The shapes of teachers that are given as folders are known from their config.json.
    """
    teachers = {teacher.name: teacher.model for teacher in recipe.teachers}
    problems: list[str] = []
    for student in recipe.students:
        key = f"students.{student.name}"
        for loss in student.all_losses:
            if not loss.loss.inside:
                continue
            teacher = (loss.teachers or [""])[0]
            own, theirs = (encoder_shape(spec) for spec in (student.model, teachers[teacher]))
            if problem := unlike_layers(loss, own, theirs):
                problems.append(f"{key}.losses ({loss.type}){'.' * bool(problem[0])}{problem[0]}: {problem[1]}")
            elif theirs is None and isinstance(teachers[teacher], ExternalSpec):
                problems.append(f"{key}.losses ({loss.type}): {teacher} has no layers of a transformer to compare with")
        encoder = encoder_of(student.model)
        if isinstance(encoder, EncoderSpec) and encoder.init is not None:
            config = encoder_config(teachers[encoder.init.source])
            within = "model" if encoder is student.model else "model.encoder"
            if config is not None and (problem := encoder.init.unlike(encoder.config(), config)):
                problems.append(f"{key}.{within}.{problem[0]}: {problem[1]}")
            elif config is None and isinstance(teachers[encoder.init.source], ExternalSpec):
                problems.append(f"{key}.{within}.init.from: {encoder.init.source} has no layers to copy")
    return problems + _one_vocabulary_for_two(recipe)


def _one_vocabulary_for_two(recipe: Recipe) -> list[str]:
    """Problems with members that share the tokenizer of a model in a folder, which has a vocabulary for each side."""
    members: list[Teacher | Student] = [*recipe.teachers, *recipe.students]
    two = set()
    for owner in members:
        encoder = owner.model.transformer
        place = owner.model.folder if isinstance(owner.model, ExternalSpec) else encoder.source if encoder else None
        if place is not None and (resolve_path(place) / TARGET_FILE).is_file():
            two.add(owner.name)
    problems = []
    for member in members:
        encoder = member.model.transformer
        if encoder is not None and encoder.tokenizer in two and (problem := one_vocabulary(encoder)):
            section = "students" if member in recipe.students else "teachers"
            problems.append(f"{section}.{member.name}.model.type: {problem}")
    return problems
