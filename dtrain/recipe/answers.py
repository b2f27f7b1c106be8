"""Where a student's losses get its teachers' outputs: from the store, or from a teacher that runs beside the student.

Outputs that are too large to store (hidden states, queries, attention scores) are computed beside the student, on the
same batch; outputs that a store can hold are read from it, unless the student says `answers: online`. A teacher that
runs beside the student has to read the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from dtrain.knowledge.kinds import find_kind, layer_of
from dtrain.losses.layers import EncoderShape
from dtrain.recipe.models import ExternalSpec

if TYPE_CHECKING:
    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.losses import LossSpec
    from dtrain.recipe.training import Student, TrainSpec

Answers = Literal["auto", "online", "stored"]


class Reads(NamedTuple):
    """The kinds of output that losses read, by teacher: those that are stored, and those computed beside a student."""

    stored: dict[str, list[str]]
    online: dict[str, list[str]]


def is_online(output: str, answers: Answers) -> bool:
    """Whether a kind of output, possibly that of a layer, is computed beside the student."""
    found = layer_of(output)
    return answers == "online" or not find_kind(found[0] if found else output).stored


def reads_of(losses: Iterable[LossSpec], teachers: Iterable[str], answers: Answers) -> Reads:
    """The outputs of a student's teachers that its resolved losses read.

    A teacher that no loss reads is among those that are stored, so that naming it in `teachers` makes its store.
    """
    terms = list(losses)
    found = Reads({}, {})
    for teacher in teachers:
        kinds = {
            kind
            for loss in terms
            if loss.teachers is None or teacher in loss.teachers
            for kind in loss.loss.outputs_read(loss.weighting)
        }
        online = sorted(kind for kind in kinds if is_online(kind, answers))
        stored = sorted(kinds - set(online))
        if online:
            found.online[teacher] = online
        if stored or not online:
            found.stored[teacher] = stored
    return found


def check_answers(
    student: Student, losses: Iterable[LossSpec], context: Context, of_losses: Reporter, report: Reporter
) -> None:
    """Report, as far as the recipe tells, why a student's losses cannot get the outputs that they compare.

    Args:
        of_losses: the reporter of the section with the losses, which is the student or one of its phases.
        report: the reporter of the student's section.
    """
    terms, known = list(losses), len(report.problems)
    for number, loss in enumerate(terms):
        inside = loss.loss.kinds_inside
        if not inside:
            continue
        of_loss = of_losses.at("losses", number, told=loss.type)
        if student.answers == "stored":
            report(
                "answers", f"'stored' has no {inside[0]} for {loss.type}, which no store holds (allowed: auto, online)"
            )
        if student.model.transformer is None or not student.model.transformer.encodes:
            of_loss(
                "", f"compares layers of transformers, and {student.name} is a {student.model.type}, which has none"
            )
            return
        _check_step(student, loss, context, of_losses, report, of_loss)
        if loss.weighting is not None:
            of_loss("weighting", "is not for losses on what is inside one teacher")
        if len(loss.teachers or []) != 1:
            names = ", ".join(loss.teachers or []) or "none"
            of_loss("teachers", f"compares with the layers of one teacher, found {names}; name it (teachers: [NAME])")
            continue
        teacher = context.teachers[loss.teachers[0]]  # type: ignore[index]
        if teacher.model.transformer is None and not isinstance(teacher.model, ExternalSpec):
            of_loss(
                "teachers",
                f"compares layers of transformers, and {teacher.name} is a {teacher.model.type}, without any",
            )
        elif getattr(teacher.model, "confidence", None) is not None:
            of_loss(
                "teachers", f"{teacher.name} has no states of rows that leave it early (its model.confidence: null)"
            )
        elif problem := unlike_layers(loss, student.model.encoder_shape, teacher.model.encoder_shape):
            of_loss(*problem)
    online = reads_of(terms, student.teachers or [], student.answers).online
    for name in online if len(report.problems) == known else ():
        _check_online(student, context.teachers[name], context, report)
    needs = {need for loss in terms for need in loss.loss.needs}
    has_crf = getattr(student.model, "crf", False) and not student.in_phase
    if has_crf and student.parallel == "data" and online and needs.isdisjoint({"nll", "marginals"}):
        text = "with parallel: data every step must reach the CRF: add tag_likelihood or marginal_matching"
        of_losses("losses", f"{text}, or write model.crf: false")
    if student.noisy and student.answers == "online":
        report("answers", "'online' is not for a noisy student, whose rows are chosen by stored logits (allowed: auto)")


def _check_step(
    student: Student, loss: LossSpec, context: Context, of_losses: Reporter, report: Reporter, of_loss: Reporter
) -> None:
    """Report settings in which a step cannot compute the loss."""
    if loss.loss.over_pairs_of_rows and student.accumulation > 1:
        of_losses(
            "accumulation",
            f"{loss.type} compares all rows of a batch with each other, so that a batch cannot be cut: write 1, and a "
            "smaller batch_size where memory is short",
        )
    if not loss.loss.twice:
        return
    if student.parallel == "data":
        report("parallel", f"'data' is not for {loss.type}, which differentiates the student twice (allowed: null)")
    if student.activation_checkpointing:
        report("activation_checkpointing", f"is not for {loss.type}, which differentiates the student twice")
    if context.sharded:
        of_loss("", "differentiates its teacher, which knowledge.sharded cuts up; take that away")


def unlike_layers(loss: LossSpec, own: EncoderShape | None, theirs: EncoderShape | None) -> tuple[str, str] | None:
    """The key of a loss, and why it cannot compare these transformers; None if it can, or if a shape is unknown."""
    if own is None or theirs is None:
        return None
    try:
        loss.loss.pairs(own, theirs, loss.parameters())
    except ValueError as error:
        key, colon, text = str(error).partition(": ")
        return (key, text) if colon and key in loss.parameters() else ("", str(error))
    return None


def _check_online(student: Student, teacher: TrainSpec, context: Context, report: Reporter) -> None:
    """Report why a teacher cannot run beside a student: it reads other tokens, or is sharded."""
    if student.tokenizer != teacher.tokenizer:
        encoder = student.model.transformer
        if student.reads != teacher.reads:
            remedy = (
                f"it reads {student.reads}, and its teacher {teacher.reads}: stored outputs alone join them, by row"
            )
        elif encoder is None:
            remedy = "take away `answers`, and its stored outputs are read"
        elif encoder.pretrained:
            remedy = "a pretrained model brings its own; one from scratch can read its teacher's"
        else:
            remedy = (
                f"write {'model' if encoder is student.model else 'model.encoder'}.tokenizer: {teacher.named_tokenizer}"
            )
        report("model", f"reads other tokens than {teacher.name}, which answers beside it on the same tokens; {remedy}")
    if context.sharded and student.parallel != "data":
        report(
            "parallel",
            f"{teacher.name} answers beside it, and knowledge.sharded cuts teachers up over all ranks, which then train "
            "the student together: write parallel: data, or take knowledge.sharded away",
        )
