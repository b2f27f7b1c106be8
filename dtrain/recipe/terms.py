"""Checks of all terms of a student's losses: the widths of features that they compare, and weights that are all 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.losses import LossSpec, WeightSchedule
from dtrain.recipe.phases import OF_HEAD, reads_head

ADVERSARY = "domain_adversary"

if TYPE_CHECKING:
    from dtrain.recipe.training import Student


def check_widths(student: Student, losses: list[LossSpec], context: Context, report: Reporter) -> None:
    """Report losses that compare features of different widths; that of a pretrained model is known in training only."""
    own = student.model.feature_width
    for number, loss in enumerate(losses):
        if "token_features" in loss.loss.needs:
            _check_token_widths(student, loss, context, report.at("losses", number, told=loss.type))
        if loss.loss.stateful or not {"features", "teachers.features"} <= set(loss.loss.needs):
            continue
        for name in loss.teachers or []:
            width = context.widths[name]
            if own is not None and width is not None and own != width:
                report.at("losses", number, told=loss.type)(
                    "",
                    f"{student.name} has {own} features and its teacher {name} {width}; hints compare "
                    "features of one width (of a textcnn or bert_cnn: filters x number of widths)",
                )


def _check_token_widths(student: Student, loss: LossSpec, context: Context, report: Reporter) -> None:
    """Report features of characters that differ in width, or that the student lacks, as it is no tagger of one task."""
    if student.model.several:
        report("", "compares features of characters, which a tagger has that is for one task")
        return
    own = student.model.token_width
    for name in loss.teachers or []:
        width = context.teachers[name].model.token_width
        if own is not None and width is not None and own != width:
            report(
                "",
                f"{student.name} has {own} features of a character and its teacher {name} {width}; one discriminator reads "
                "both (of a tagger they are twice its `lstm`)",
            )


def check_terms(
    student: Student, losses: list[LossSpec], teachers: list[str], context: Context, report: Reporter
) -> None:
    """Fill in which teachers each term reads; report terms that do not fit the task, the model or its rows."""
    problem = weightless(student, losses)
    if problem:
        report("losses", problem)
    for number, loss in enumerate(losses):
        loss.resolve(teachers, context, report.at("losses", number, told=loss.type))
    of_exits = [loss.type for loss in losses if "exits" in loss.loss.needs]
    if of_exits and not student.exits:
        report("losses", f"{of_exits[0]} is for model type multi_exit")
    elif student.exits and not of_exits and not student.in_phase:
        report("losses", "every exit needs a loss: exits_cross_entropy or exits_distillation")
    if student.rows == ["transfer"] and not any(loss.loss.teacher_output for loss in losses):
        report("rows", f"transfer rows have no labels for {losses[0].type}")
    check_kinds(student, losses, context, report)


def check_kinds(student: Student, losses: list[LossSpec], context: Context, report: Reporter) -> None:
    """Report losses that tell two kinds of rows apart, if all rows are of one kind."""
    if context.sides:  # only the files tell which rows have which side
        return
    read = [part for part in student.rows or [] if part != "transfer" or context.transfer]
    for number, loss in enumerate(losses):
        if loss.type != ADVERSARY:
            continue
        of_loss = report.at("losses", number, told=loss.type)
        if loss.parameters()["between"] == "pairs":
            of_loss(
                "between", f"'pairs' are rows of several sides, and those of {context.key} have none (allowed: labels)"
            )
        elif len(read) < 2:
            of_loss(
                "",
                f"tells apart rows with a label and rows without one, and is given those of {context.key}.{' and '.join(read)} "
                "alone: it needs both train and transfer",
            )


def weightless(student: Student, terms: list[LossSpec]) -> str | None:
    """What is wrong if, at some moment of training, no term has a weight, or none reaches all parameters; else None."""
    rows = ""
    if student.rows == ["transfer"]:  # rows without labels
        terms = [term for term in terms if not term.loss.hard]
        rows = " of losses that transfer rows have"
        if not terms:
            return None  # `rows` is wrong then, which is reported elsewhere
    if student.peers is None and all(term.weight == 0 for term in terms):
        return f"every weight{rows} is 0"
    # Schedules are monotonic and end at `until`: if several are 0 at once, they are so at one of these moments.
    moments = {0.0} | {term.weight.until for term in terms if isinstance(term.weight, WeightSchedule)}
    moments |= {term.unlabelled_until for term in terms}
    for moment in sorted(moment for moment in moments if moment < 1.0):  # the last step comes before the end
        weighted = [term for term in terms if term.weight_at(moment)]
        if student.rows == ["transfer"]:
            weighted = [term for term in weighted if moment < term.unlabelled_until]
        needs = [set(term.loss.needs) for term in weighted]
        when = f"at {moment:g} of training" if moment else "at the beginning"
        if not weighted and student.peers is None:
            return f"every weight{rows} is 0 {when}; give one term a weight there (its start, end or until)"
        if student.parallel != "data":
            continue
        if student.in_phase:  # a phase freezes what none of its losses ever reaches
            if reads_head(terms) and not reads_head(weighted):
                return f"{when} none that reads the model's head has a weight, and with parallel: data every step must reach it"
            continue
        if weighted and all(n & {"features", "token_features"} and not n & OF_HEAD for n in needs):
            return f"{when} only features have a weight, and with parallel: data every step must reach the classifier"
        if student.exits and all("exits" not in n for n in needs):
            return (
                f"{when} no loss of exits has a weight, and with parallel: data every step must reach all classifiers"
            )
    return None
