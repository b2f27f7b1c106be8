"""Which layers of a student are compared with which of its teacher; recipes are checked by this without torch.

Layers are counted from 1; layer 0 is the output of the embeddings. For a student of n_s layers and a teacher of n_t:

    uniform   (l, l n_t / n_s) for l = 1 .. n_s, rounded to the nearest layer, at least 1
    skip      (l, k l) for l = 1 .. n_s, every k-th layer of the teacher, k = floor(n_t / n_s)
    last      (n_s, n_t) alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

NAMED = ("uniform", "last", "skip")
Pairs = tuple[tuple[int, int], ...]


class EncoderShape(NamedTuple):
    """The shape of a transformer: the width of its states, the number of its layers, and of its heads."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Shapes:
    """What is known of the sizes of a student and, by name, of its teachers.

    Attributes:
        student, teachers: the shapes of their transformers; None, or absent, where there is none.
        outputs: the last dimension of each output of a teacher, by the teacher's name and the output's kind.
    """

    student: EncoderShape | None = None
    teachers: Mapping[str, EncoderShape] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def _checked(value: Any, _: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, str) and value in NAMED:
        return value
    pairs = list(value) if isinstance(value, list | tuple) else []
    whole = all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in pair)
        for pair in pairs
    )
    if not pairs or not whole:
        raise ValueError(f"must be {', '.join(NAMED)}, or pairs of a layer of the student and one of its teacher")
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        raise ValueError("must not name a pair of layers twice")
    return [(int(student), int(teacher)) for student, teacher in pairs]


# the recipe's key `layers`
Layers = Annotated[Literal["uniform", "last", "skip"] | list[tuple[int, int]], WrapValidator(_checked)]


def layer_pairs(layers: str | Sequence[tuple[int, int]], student: int, teacher: int, first: int = 1) -> Pairs:
    """Pairs of layers, of the student and of its teacher.

    Args:
        layers: the recipe's key.
        student: number of layers of the student.
        teacher: number of layers of its teacher.
        first: the first layer that may be compared: 0 for states, 1 for queries, keys, values and scores of attention.

    Raises:
        ValueError: a layer that does not exist, or a `skip` over a teacher with fewer layers than the student.
    """
    if layers == "last":
        return ((student, teacher),)
    if layers == "skip":
        if teacher < student:
            raise ValueError(
                f"skip needs a teacher of as many layers at least (the student has {student}, it {teacher})"
            )
        return tuple((layer, layer * (teacher // student)) for layer in range(1, student + 1))
    if layers == "uniform":
        # The nearest whole number, halves up, in integers: a float's rounding would go to the even one.
        nearest = ((2 * layer * teacher + student) // (2 * student) for layer in range(1, student + 1))
        return tuple((layer, max(1, theirs)) for layer, theirs in enumerate(nearest, start=1))
    if isinstance(layers, str):
        raise ValueError(f"unknown layers {layers!r} (allowed: {', '.join(NAMED)}, or pairs)")
    for whose, count, chosen in (
        ("student", student, [pair[0] for pair in layers]),
        ("teacher", teacher, [pair[1] for pair in layers]),
    ):
        for layer in chosen:
            if not first <= layer <= count:
                raise ValueError(f"the {whose} has no layer {layer} for it (there are {first} to {count})")
    return tuple((own, theirs) for own, theirs in layers)
