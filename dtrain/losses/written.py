"""Losses on an encoder-decoder's scores of targets: one value per row, [B], a sum over the tokens of its target.

The caller divides by the number of target tokens of the global batch, so every loss is a mean over tokens. Computed in
float32 (float64 stays), also under autocast. Recipes are checked against the signatures without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.losses.outputs import Smoothing, divergence, full_precision
from dtrain.losses.registry import register
from dtrain.losses.torch_later import functional, torch

if TYPE_CHECKING:
    from torch import Tensor


@register("token_logits", "target_tokens", "target_mask")
def token_cross_entropy(
    token_logits: Tensor, target_tokens: Tensor, target_mask: Tensor, *, label_smoothing: Smoothing = 0.0
) -> Tensor:
    """-sum_j sum_v q_v log softmax(z_j)_v over a target's tokens j, q = (1 - e) onehot(y_j) + e / V (1512.00567, sec. 7).

    The tokens before j are the target's own (teacher forcing). On a teacher's sequences it is L_SEQ-KD of Kim and Rush
    (1606.07947, section 3.2), on the candidates nearest to the references their interpolation (section 3.3).

    Args:
        token_logits: float [B, T, V].
        target_tokens: int64 [B, T], each in [0, V).
        target_mask: bool [B, T].
        label_smoothing: e, the share of each token that is spread over the vocabulary.

    Returns:
        float [B].
    """
    logits = full_precision(token_logits)
    values = functional.cross_entropy(
        logits.flatten(0, 1), target_tokens.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return values.view(target_mask.shape).masked_fill(~target_mask, 0.0).sum(1)


@register("token_logits", "target_mask", "known_prefix", "teachers.token_logits")
def word_level(token_logits: Tensor, target_mask: Tensor, known_prefix: Tensor, teacher_logits: Tensor) -> Tensor:
    """sum_j KL(p_t(. | x, y_<j) || p_s(. | x, y_<j)) over a target's tokens j (Kim and Rush 1606.07947, section 3.1).

    If only a teacher's k most likely tokens are stored, the distributions are over these and all others together as
    one; the divergence is then at most that over the whole vocabulary. Stored outputs belong to the references: on a
    row whose target is a teacher's sequence the loss is 0, unless the teacher is computed beside the student. With
    several teachers, it is the mean of the divergences.

    Args:
        token_logits: float [B, T, V].
        target_mask: bool [B, T].
        known_prefix: bool [B], whether the teacher's outputs are of this target.
        teacher_logits: float [B, N, V], or [K, B, N, V] of K teachers; where only the k largest are stored, 2 k + 1
            numbers in place of V: these logits, the log-sum-exp of the others, and the k tokens. N may differ from T
            where other rows have the longest targets.

    Returns:
        float [B].
    """
    student = functional.log_softmax(full_precision(token_logits), dim=-1)
    teachers = full_precision(teacher_logits)
    teachers = teachers if teachers.dim() == 4 else teachers[None]
    length = min(student.shape[1], teachers.shape[2])
    student, mask = student[:, :length], target_mask[:, :length] & known_prefix[:, None]
    values = torch.stack([_divergence(student, teacher[:, :length]) for teacher in teachers]).mean(0)
    return torch.where(mask, values, 0.0).sum(1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL at each token [B, N], from log-probabilities [B, N, V] and a teacher's logits, all or the k largest."""
    if teacher.shape[-1] == student.shape[-1]:
        return divergence(functional.log_softmax(teacher, dim=-1), student)
    k = teacher.shape[-1] // 2
    target = functional.log_softmax(teacher[..., : k + 1], dim=-1)
    own = student.gather(2, teacher[..., k + 1 :].long())
    # The others' share is summed up, since 1 less the sum of the k would be lost in rounding where it is small.
    others = student.scatter(2, teacher[..., k + 1 :].long(), -torch.inf).logsumexp(-1, keepdim=True)
    own = torch.cat([own, others], dim=-1)
    return divergence(target, own)
