"""Losses on attention and on relations between the tokens of a row, of two transformers that read the same tokens.

Each takes lists, one tensor for each pair of layers (losses/layers.py), and returns one value per row, [B]. None needs
equal widths. Recipes are checked against the signatures without importing torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dtrain.losses.layers import EncoderShape, Pairs
from dtrain.losses.over_tokens import mean_over_layers
from dtrain.losses.registry import register
from dtrain.losses.relations import attention_divergence, relation_divergence, scores_difference

if TYPE_CHECKING:
    from torch import Tensor

Heads = Annotated[int, Field(ge=1)]


@register("attention_scores", "teachers.attention_scores", "token_mask", equal_heads=True)
def attention_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_(l, g(l)) mean_a mean_ij (e_s - e_t)_aij^2 over heads a and pairs of a row's tokens (TinyBERT, 1909.10351, eq. 7).

    e = q k / sqrt(d) are the scores before the softmax; NEZHA's have their relative term.

    Args:
        student: for each pair, float [B, A, N, N] of the student's layer.
        teacher: for each pair, float [B, A, N, N] of the teacher's layer.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    return mean_over_layers(scores_difference(s, t, token_mask) for s, t in zip(student, teacher, strict=True))


@register("attention_scores", "teachers.attention_scores", "token_mask", layers="last", equal_heads=True)
def attention_kl(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_(l, g(l)) mean_a mean_i KL(softmax_j(e_t) || softmax_j(e_s)) over heads a and a row's tokens i (MiniLM, 2002.10957, sec. 3.1).

    The softmax is over the row's own tokens j. MiniLM is the sum of this and `value_relations`,
    each on the last layers alone.

    Args:
        student: for each pair, float [B, A, N, N] of the student's layer, scores before the softmax.
        teacher: for each pair, float [B, A, N, N] of the teacher's layer.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    return mean_over_layers(attention_divergence(s, t, token_mask) for s, t in zip(student, teacher, strict=True))


@register("values", "teachers.values", "token_mask", layers="last", equal_heads=True)
def value_relations(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_(l, g(l)) mean_a mean_i KL(R_t || R_s), R = softmax_j(v_i v_j / sqrt(d)) of head a (MiniLM, 2002.10957, sec. 3.2).

    d is the width of a head, which may differ between the models. i and j are the row's own tokens.

    Args:
        student: for each pair, float [B, A, N, d] of the student's layer.
        teacher: for each pair, float [B, A, N, d] of the teacher's layer, with the teacher's d.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    pairs = zip(student, teacher, strict=True)
    return mean_over_layers(relation_divergence(_joined(s), _joined(t), token_mask, heads=s.shape[1]) for s, t in pairs)


def _can_be_cut(student: EncoderShape, teacher: EncoderShape, pairs: Pairs, parameters: Mapping[str, Any]) -> str:
    heads = parameters["relation_heads"]
    if student.width % heads == 0 == teacher.width % heads:
        return ""
    common = math.gcd(student.width, teacher.width)
    allowed = [number for number in range(1, common + 1) if common % number == 0]
    return (
        f"relation_heads: must divide the widths of both models, {student.width} and {teacher.width}, found {heads} "
        f"(allowed: {', '.join(map(str, allowed))})"
    )


@register(
    "queries",
    "keys",
    "values",
    "teachers.queries",
    "teachers.keys",
    "teachers.values",
    "token_mask",
    layers="last",
    fits=_can_be_cut,
)
def qkv_relations(
    student_queries: Sequence[Tensor],
    student_keys: Sequence[Tensor],
    student_values: Sequence[Tensor],
    teacher_queries: Sequence[Tensor],
    teacher_keys: Sequence[Tensor],
    teacher_values: Sequence[Tensor],
    token_mask: Tensor,
    *,
    relation_heads: Heads = 12,
) -> Tensor:
    """The *sum* over X of queries, keys and values of mean_(l, g(l)) mean_a mean_i KL(R_t || R_s), R = softmax_j(x_i x_j / sqrt(d)) (MiniLMv2, 2012.15828, sec. 3).

    The concatenated heads of a layer are split again into `relation_heads` heads of width d, so that student and
    teacher may differ in width and in attention heads. The paper takes the student's last layer and, for a large
    teacher, one of its upper middle layers: `layers: [[6, 19]]`.

    Args:
        student_queries: for each pair, float [B, A, N, d] of the student's layer.
        student_keys: as `student_queries`.
        student_values: as `student_queries`.
        teacher_queries: for each pair, float [B, A', N, d'] of the teacher's layer.
        teacher_keys: as `teacher_queries`.
        teacher_values: as `teacher_queries`.
        token_mask: bool [B, N].
        relation_heads: the number of heads to split into; must divide the widths of both models.

    Returns:
        float [B].
    """

    def of(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        pairs = zip(student, teacher, strict=True)
        return mean_over_layers(
            relation_divergence(_joined(s), _joined(t), token_mask, heads=relation_heads) for s, t in pairs
        )

    return of(student_queries, teacher_queries) + of(student_keys, teacher_keys) + of(student_values, teacher_values)


def _joined(heads: Tensor) -> Tensor:
    """Concatenates heads: [B, A, N, d] -> [B, N, A d]."""
    return heads.transpose(1, 2).flatten(2)
