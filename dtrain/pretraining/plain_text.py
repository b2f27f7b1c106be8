"""The plain text of students' phases: that of the section `corpus` or `pretrain`, as a student's tokenizer reads it.

A text that pre-training has read with the same tokenizer is not read again, but only cut into rows of other lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dtrain.errors import InputError
from dtrain.pretraining.corpus import FOLDER, KEY
from dtrain.recipe.models import PRETRAIN
from dtrain.recipe.pretraining import Phase, Pretrain
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student


@dataclass(frozen=True)
class PlainText:
    """A text as one tokenizer reads it.

    Attributes:
        recipe: a recipe whose section `pretrain` describes the text, with a phase for each length of rows.
        name: the name of its folder under `data/`.
        shared: whether it is the text that pre-training has read, with the same tokenizer.
    """

    recipe: Recipe
    name: str
    shared: bool

    @property
    def spec(self) -> Pretrain:
        assert self.recipe.pretrain is not None
        return self.recipe.pretrain

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Within this context, InputErrors name the section of the recipe that the text is from."""
        try:
            yield
        except InputError as error:
            key = "corpus." if self.recipe.corpus else f"{KEY}."
            problems = (problem.replace("pretrain.model", "the tokenizer that reads it") for problem in error.problems)
            raise InputError([problem.replace(f"{KEY}.", key) for problem in problems]) from error.__cause__


def plain_text_of(recipe: Recipe, student: Student) -> PlainText | None:
    """The plain text that a student's phases read; None if none of them reads any."""
    lengths = {phase.max_length: None for phase in student.phases or [] if phase.on_plain_text and phase.max_length}
    if not lengths:
        return None
    phases = [Phase(max_length=length) for length in lengths]
    own = recipe.pretrain
    # A teacher and a student may have the same name; if both bring a tokenizer, these are identical.
    members = (*recipe.teachers, *recipe.students)
    reader = next(m for m in members if m.name == student.vocabulary and m.brings_tokenizer)
    encoder = reader.model.transformer
    shared = recipe.corpus is None and encoder is not None and encoder.pretrained == PRETRAIN
    if shared and own is not None:
        section = own.model_copy(update={"phases": phases, "next_sentence": False})
        return PlainText(recipe.model_copy(update={"pretrain": section}), FOLDER, True)
    text = recipe.corpus or (own.corpus if own else None)
    assert text is not None
    seed = recipe.seed if own is None or recipe.corpus else own.seed
    section = Pretrain.model_validate({"model": {"type": "bert"}, "corpus": text.model_dump(), "seed": seed})
    section.phases = phases
    return PlainText(recipe.model_copy(update={"pretrain": section}), f"{FOLDER}-{student.tokenizer}", False)
