"""What of a recipe depends on other sections: defaults filled in, and checked across sections."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable

from dtrain.recipe.schema import Knowledge, LossSpec, Output, Recipe, Student, Teacher

Key = tuple[str | int, ...]
Place = Callable[[Key], str]  # file and line, or the override, of a key

MODELS = {"classification": ("bert", "nezha", "bilstm", "textcnn"), "tagging": ("tagger", "idcnn")}
METRICS = {
    "classification": ("accuracy", "f1", "f1_weighted", "loss"),
    "tagging": ("f1", "f1_macro", "f1_weighted", "accuracy", "loss"),
}
OUTPUTS: dict[str, tuple[Output, ...]] = {"classification": ("logits", "features"), "tagging": ("emissions", "marginals")}


def resolve(recipe: Recipe, teachers: list[int], students: list[int], place: Place, problems: list[str]) -> None:
    """Fill and check a recipe whose grids are expanded.

    Args:
        teachers: the number that each teacher has in the file.
        students: likewise.
        problems: what is found is added here.
    """
    task = family(recipe)
    names = [teacher.name for teacher in recipe.teachers]
    numbered: list[tuple[str, int, Teacher | Student]] = []
    numbered += [("teachers", number, member) for number, member in zip(teachers, recipe.teachers, strict=True)]
    numbered += [("students", number, member) for number, member in zip(students, recipe.students, strict=True)]
    for section, number, member in numbered:
        _fill(member, recipe.seed, task)
        _check_task(member, (section, number), task, place, problems)
    for number, student in zip(students, recipe.students, strict=True):
        _resolve_student(student, ("students", number), recipe, names, task, place, problems)
    if not problems:
        _resolve_knowledge(recipe, task, place, problems)


def family(recipe: Recipe) -> str:
    """The kind of task as models and losses know it: pairs are classified."""
    return "tagging" if recipe.data.task == "tagging" else "classification"


def _fill(member: Teacher | Student, seed: int, task: str) -> None:
    member.seed = seed if member.seed is None else member.seed
    if member.batch_size is None and member.batch_tokens is None:
        member.batch_size = 32
    member.metric = member.metric or ("f1" if task == "tagging" else "accuracy")


def _check_task(member: Teacher | Student, key: Key, task: str, place: Place, problems: list[str]) -> None:
    dotted = ".".join(map(str, key))
    if member.model.type not in MODELS[task]:
        hint = ""
        if task == "tagging" and member.model.type in ("bert", "nezha"):
            hint = f"; write {{type: tagger, encoder: {{type: {member.model.type}, ...}}}}"
        allowed = ", ".join(MODELS[task])
        where = f"{place((*key, 'model', 'type'))}: {dotted}.model.type"
        problems.append(f"{where}: {member.model.type!r} is not for task {task!r} (allowed: {allowed}){hint}")
    if member.metric not in METRICS[task]:
        where = f"{place((*key, 'metric'))}: {dotted}.metric"
        problems.append(f"{where}: {member.metric!r} is not for task {task!r} (allowed: {', '.join(METRICS[task])})")
    if task == "tagging" and isinstance(member, Teacher) and member.label_smoothing:
        problems.append(f"{place((*key, 'label_smoothing'))}: {dotted}.label_smoothing: is not for task 'tagging'")


def _resolve_student(
    student: Student, key: Key, recipe: Recipe, names: list[str], task: str, place: Place, problems: list[str]
) -> None:
    dotted = ".".join(map(str, key))
    known = len(problems)
    student.teachers = _chosen(student.teachers, names, f"{place((*key, 'teachers'))}: {dotted}.teachers", problems)
    if student.losses is None:
        student.losses = _default_losses(task, bool(student.teachers))
    if student.rows is None:
        student.rows = ["train", "transfer"] if student.teachers and recipe.data.transfer else ["train"]
    if "transfer" in student.rows and not recipe.data.transfer:
        problems.append(f"{place((*key, 'rows'))}: {dotted}.rows: 'transfer' needs data.transfer")
    if len(problems) == known:
        _check_losses(student, key, task, place, problems)


def _default_losses(task: str, taught: bool) -> list[LossSpec]:
    hard, soft = ("tag_likelihood", "marginal_matching") if task == "tagging" else ("cross_entropy", "soft_targets")
    return [LossSpec(type=name, weight=0.5) for name in (hard, soft)] if taught else [LossSpec(type=hard)]


def _chosen(patterns: list[str] | None, names: list[str], where: str, problems: list[str]) -> list[str]:
    if patterns is None:
        return list(names)
    chosen: list[str] = []
    for pattern in patterns:
        # A teacher with a grid is also known by the name it had before the expansion.
        matched = [n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + "-")]
        if not matched:
            near = difflib.get_close_matches(pattern, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(
                f"{where}: no teacher {pattern!r}{hint} (allowed: {', '.join(names) or 'none are defined'})"
            )
        chosen += [n for n in matched if n not in chosen]
    return chosen


def _check_losses(student: Student, key: Key, task: str, place: Place, problems: list[str]) -> None:
    from dtrain.losses import find_loss, loss_names

    assert student.losses is not None and student.teachers is not None
    dotted = ".".join(map(str, key))
    if all(loss.weight == 0 for loss in student.losses):
        problems.append(f"{place((*key, 'losses'))}: {dotted}.losses: every weight is 0")
    for number, loss in enumerate(student.losses):
        where = f"{place((*key, 'losses', number))}: {dotted}.losses.{number} ({loss.type})"
        found = find_loss(loss.type)
        if found.task != task:
            problems.append(f"{where}: is not for task {task!r} (allowed: {', '.join(loss_names(task))})")
        elif found.teacher_output is None:
            if loss.teachers:
                problems.append(f"{where}: takes no teachers")
        elif not student.teachers:
            problems.append(f"{where}: needs a teacher, and the student has none")
        else:
            loss.teachers = _chosen(loss.teachers, student.teachers, f"{where}.teachers", problems)
    taught = any(find_loss(loss.type).teacher_output for loss in student.losses)
    if student.rows == ["transfer"] and not taught:
        problems.append(
            f"{place((*key, 'rows'))}: {dotted}.rows: transfer rows have no labels for {student.losses[0].type}"
        )


def _resolve_knowledge(recipe: Recipe, task: str, place: Place, problems: list[str]) -> None:
    """Store what the students' losses read; what the recipe lists must hold it."""
    from dtrain.losses import find_loss

    knowledge: Knowledge = recipe.knowledge
    read: dict[str, str] = {}  # output -> the student that reads it
    for student in recipe.students:
        for loss in student.losses or []:
            output = find_loss(loss.type).teacher_output
            if output is not None:
                read.setdefault(output, f"{student.name} ({loss.type})")
    where = f"{place(('knowledge', 'outputs'))}: knowledge.outputs"
    if knowledge.outputs is None:
        knowledge.outputs = [output for output in OUTPUTS[task] if output in read] or [OUTPUTS[task][0]]
    for output in knowledge.outputs:
        if output not in OUTPUTS[task]:
            allowed = ", ".join(OUTPUTS[task])
            problems.append(f"{where}: {output!r} is not for task {task!r} (allowed: {allowed})")
    for output, reader in read.items():
        if output not in knowledge.outputs:
            problems.append(f"{where}: lacks {output!r}, which the student {reader} reads")
    if knowledge.top_k and task == "tagging":
        problems.append(f"{place(('knowledge', 'top_k'))}: knowledge.top_k: is for logits, not for task 'tagging'")
