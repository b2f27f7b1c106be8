"""Checks of students of task seq2seq: rows that a teacher wrote, and losses that compare with it token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.recipe.values import TAUGHT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.losses import LossSpec
    from dtrain.recipe.models import EncoderSpec
    from dtrain.recipe.training import Student, Teacher


def all_taught(student: Student) -> bool:
    """Whether a teacher wrote the targets of all of its rows, for which no logits are stored."""
    return bool(student.rows) and set(student.rows or []) <= set(TAUGHT) and student.answers != "online"


def check_rows(student: Student, context: Context, report: Reporter) -> None:
    """Report rows that a task does not have, and rows that a teacher writes if there is not exactly one teacher."""
    written = [name for name in TAUGHT if name in (student.rows or [])]
    if not context.task.writes:
        if written:
            report("rows", f"{written[0]!r} is only for task 'seq2seq', whose teachers write")
        return
    if "transfer" in (student.rows or []) and context.transfer:
        report("rows", "'transfer' rows have no target; 'sequences' are what a teacher writes for them, too")
    if written and len(student.teachers or []) != 1:
        found = ", ".join(student.teachers or []) or "none"
        report("rows", f"{written[0]!r} is what one teacher wrote, found {found}; name it (teachers: [NAME])")


def read_both_sides(members: Iterable[tuple[Teacher | Student, Reporter]]) -> None:
    """Give two vocabularies to models that read the tokens of a model with two; report those that cannot have two.

    Args:
        members: all of a recipe. A teacher from a folder is checked later (`data/encoders.py`).
    """
    members = list(members)
    owners = {member.name: member.model.transformer for member, _ in members if member.brings_tokenizer}
    for member, report in members:
        encoder = member.model.transformer
        if encoder is None or not getattr(owners.get(encoder.tokenizer or ""), "two_vocabularies", False):
            continue
        if problem := one_vocabulary(encoder):
            report("model.type", problem)
        else:
            setattr(encoder, "vocabularies", "two")  # noqa: B010  only one architecture has it


def one_vocabulary(encoder: EncoderSpec) -> str | None:
    """Why a transformer cannot read the tokens of another with two vocabularies; None where it can."""
    if "vocabularies" in type(encoder).model_fields:
        return None
    return f"a {encoder.type} has one vocabulary, and {encoder.tokenizer} has two; write type: marian, or leave out tokenizer"


def check_tokens(student: Student, losses: Iterable[LossSpec], context: Context, report: Reporter) -> None:
    """Report losses that compare token by token with a teacher of other tokens, or with logits that are not stored."""
    for number, loss in enumerate(losses):
        if "teachers.token_logits" not in loss.loss.needs:
            continue
        of_loss = report.at("losses", number, told=loss.type)
        for name in loss.teachers or []:
            teacher = context.teachers[name]
            if teacher.vocabulary != student.vocabulary:
                of_loss(
                    "teachers",
                    f"compares token by token, and {name} writes other tokens; write model.tokenizer: {teacher.vocabulary}",
                )
        if all_taught(student):
            rows = ", ".join(student.rows or [])
            of_loss(
                "",
                f"compares with stored logits of the targets of training rows, and rows has {rows} "
                "alone: add train to rows, or write answers: online",
            )
