"""Adversarial imitation of a teacher's features of tokens: one value per row, [B], a sum over the row's characters.

The caller divides by the number of characters of the global batch, so the loss is a mean over unpadded characters.
Computed in float32 (float64 stays), also under autocast. Recipes are checked against the signature without importing
torch (see torch_later.py).
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
    """sum_i [-log D(f_t,i) - log(1 - D(f_s,i))] over a row's characters i (Liu et al. AAAI 2019).

    D(f) = sigmoid(W_h tanh(W_x f + b_x) + b_h) learns to tell the teacher's features of a character i from the
    student's, and the student learns to imitate its teacher, which reads more than the text. Features are the input of
    the linear classifier: both models must have the same number. The value is D's loss, which is 2 log 2 = 1.386 per
    character if it cannot tell the two apart. With several teachers, the first term is the mean over them.

    Args:
        discriminator: D, which gives the logarithm of the odds.
        student_features: float [B, N, F].
        mask: bool [B, N].
        teacher_features: float [B, N, F], or [K, B, N, F] of K teachers.
        mode: alternating: steps that train D alone, by this value, alternate with steps that train the student alone,
            by -log D(f_s,i) and its other losses; reversal: each step trains both, the student by the reversed gradient
            of this value.
        strength: factor on the gradient that reaches the student, beside the loss's weight.
        discriminator_steps: alternating: the steps of D before each step of the student.
        hidden: hidden units of D.

    Returns:
        float [B].
    """
    own, teachers = full_precision(student_features), full_precision(teacher_features)
    real = functional.softplus(-discriminator(teachers))
    if real.dim() == 3:
        real = real.mean(0)
    if mode == ALTERNATING:
        false = functional.softplus(discriminator(own.detach()))
        # Its value is subtracted again: it adds only a gradient, and only for the student, as D is fixed here.
        fooled = strength * functional.softplus(-discriminator(own, fixed=True))
        values = real + false + (fooled - fooled.detach())
    else:
        values = real + functional.softplus(discriminator(adversary.reverse_gradient(own, strength)))
    return torch.where(mask, values, 0.0).sum(-1)
