"""Adversarial imitation of a teacher's features of tokens: values a row [B], each a sum over the row's characters.

The caller divides by the number of characters of the global batch, so the loss is a mean over unpadded characters.
Computed in float32 (float64 stays), under autocast too. Recipes are checked against the signature, for which torch is not
imported (see torch_later.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dtrain.errors import InputError
from dtrain.losses.outputs import full_precision
from dtrain.losses.registry import OF_TEACHERS, register
from dtrain.losses.torch_later import adversary, functional, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Size = Annotated[int, Field(gt=0)]
Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ALTERNATING = "alternating"


def _discriminator(widths: Mapping[str, int], *, hidden: int, **parameters: Any) -> nn.Module:
    own, theirs = widths["token_features"], widths[f"{OF_TEACHERS}token_features"]
    if own != theirs:
        raise InputError(
            f"losses: imitation: the student has {own} features of a character and its teacher {theirs}; one discriminator "
            "reads both (of a tagger they are twice its `lstm`)"
        )
    return adversary.Discriminator(own, hidden)


def _turns(parameters: Mapping[str, Any]) -> int:
    return int(parameters["discriminator_steps"]) if parameters["mode"] == ALTERNATING else 0


@register(
    "token_features",
    "mask",
    "teachers.token_features",
    weights=_discriminator,
    lasting=True,
    turns=_turns,
)
def imitation(
    discriminator: nn.Module,
    student_features: Tensor,
    mask: Tensor,
    teacher_features: Tensor,
    *,
    mode: Literal["alternating", "reversal"] = "alternating",
    strength: Strength = 1.0,
    discriminator_steps: Size = 1,
    hidden: Size = 128,
) -> Tensor:
    """sum_i [-log D(f_t,i) - log(1 - D(f_s,i))], D(f) = sigmoid(W_h tanh(W_x f + b_x) + b_h) (Liu et al. AAAI 2019).

    D learns to tell the teacher's features of a character i from the student's, and the student to be taken for its
    teacher, whose features know more than the text says. Features are what the classifier is a linear map of: both must
    have as many. The value is D's loss, 2 log 2 = 1.386 a character where it cannot tell the two apart. Of several
    teachers, the mean of the first term.

    Args:
        discriminator: D, which gives the logarithm of the odds.
        student_features: float [B, N, F].
        mask: bool [B, N].
        teacher_features: float [B, N, F], or [K, B, N, F] of K teachers.
        mode: alternating: in turn D learns alone, by this value, and the student alone, by -log D(f_s,i) and its other
            losses; reversal: both learn in each step, the student by the gradient of this value with its sign turned round.
        strength: the factor on what reaches the student, beside the loss's weight.
        discriminator_steps: alternating: the steps of D before each step of the student.
        hidden: numbers that D takes the tanh of.

    Returns:
        float [B].
    """
    own, teachers = full_precision(student_features), full_precision(teacher_features)
    real = functional.softplus(-discriminator(teachers))
    if real.dim() == 3:
        real = real.mean(0)
    if mode == ALTERNATING:
        false = functional.softplus(discriminator(own.detach()))
        # Added with its value taken off: the gradient alone, for the student, as the discriminator is held fixed here.
        fooled = strength * functional.softplus(-discriminator(own, fixed=True))
        values = real + false + (fooled - fooled.detach())
    else:
        values = real + functional.softplus(discriminator(adversary.reverse_gradient(own, strength)))
    return torch.where(mask, values, 0.0).sum(-1)
