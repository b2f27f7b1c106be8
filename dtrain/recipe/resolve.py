"""The order in which the sections of a recipe fill in their defaults and check themselves against each other."""

from __future__ import annotations

from pathlib import Path

from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.peers import check_peers
from dtrain.recipe.points import check_kept
from dtrain.recipe.privileged import check_annotator, check_privileged
from dtrain.recipe.schema import Recipe
from dtrain.recipe.several import check_alike
from dtrain.recipe.sides import check_reads
from dtrain.recipe.taught import read_both_sides
from dtrain.recipe.training import Student, Teacher
from dtrain.runfolder import RunFolder
from dtrain.tasks.rules import rules_of


def resolve(
    recipe: Recipe, teachers: list[int], students: list[int], expanded: dict[str, str], report: Reporter
) -> None:
    """Fill and check a recipe whose grids are expanded.

    Args:
        teachers: the number that each teacher has in the file.
        students: likewise.
        expanded: for each teacher that a grid or a sample stands for, the name that it was expanded from.
    """
    pretrained = None
    if recipe.pretrain:
        recipe.pretrain.resolve(recipe.seed, report.at("pretrain"))
        folder = RunFolder(Path(recipe.output_dir) / recipe.name)
        pretrained = str(folder.pretrained(len(recipe.pretrain.phases) - 1))
    if recipe.pretrain or recipe.corpus:
        _check_normalization(recipe, report)
    reports = [
        [report.at(section, number) for number in numbers]
        for section, numbers in (("teachers", teachers), ("students", students))
    ]
    members: list[Teacher | Student] = [*recipe.teachers, *recipe.students]
    for member, of_member in zip(members, [*reports[0], *reports[1]], strict=True):
        member.check_task(list(recipe.tasks or ()), of_member)
    data = recipe.data if recipe.tasks is None else next(iter(recipe.tasks.values()))
    sections = list((recipe.tasks or {"": recipe.data}).values())
    if len(sections) > 1 and any(section.sides for section in sections):
        report("tasks", "rows with several sides are for a recipe of one task")
    if data.sides and recipe.knowledge_points is not None:
        report("knowledge_points", "is not for rows with several sides")
    check_reads(data.sides, data.key, zip(members, [*reports[0], *reports[1]], strict=True), report)
    if report.problems:
        return
    contexts = {name: _context(recipe, name, pretrained, expanded) for name in recipe.task_names}
    for member, of_member in zip(members, [*reports[0], *reports[1]], strict=True):
        own = {task: contexts[task] for task in recipe.tasks_of(member)}
        if isinstance(member, Student) and member.tasks is not None:
            check_alike(member, [(recipe.tasks or {})[task] for task in own], of_member)
            member.resolve_tasks(own, of_member)
        else:
            (context,) = own.values()
            member.resolve(context, of_member)
            check_privileged(member, context, of_member, student=isinstance(member, Student))
    read_both_sides(zip(members, [*reports[0], *reports[1]], strict=True))
    if report.problems:
        return
    taggers = {
        m.name: m for m in members if any(contexts[task].task.tags for task in recipe.tasks_of(m)) and not _several(m)
    }
    for teacher, of_teacher in zip(recipe.teachers, reports[0], strict=True):
        check_annotator(teacher, taggers, of_teacher)
    of_students = [contexts[recipe.tasks_of(student)[0]] for student in recipe.students]
    peers = check_peers(recipe.students, of_students, reports[1])
    if recipe.search is not None:
        recipe.search.check(recipe.students, peers, report.at("search"))
    for student, of_student in zip(recipe.students, reports[1], strict=True):
        check_kept(student, of_student)
    if recipe.knowledge_points is not None:
        recipe.knowledge_points.check(recipe.students, of_students, recipe.several, report.at("knowledge_points"))
    of_knowledge = report.at("knowledge")
    if recipe.several:
        recipe.knowledge.check_tasks([context.task for context in contexts.values()], of_knowledge)
    for task in contexts:
        view = recipe.of_task(task)
        view.knowledge.resolve(view.students, contexts[task], of_knowledge)


def _several(member: Teacher | Student) -> bool:
    return isinstance(member, Student) and member.tasks is not None


def _context(recipe: Recipe, task: str, pretrained: str | None, expanded: dict[str, str]) -> Context:
    """What the members of a task know of the rest of the recipe."""
    data = recipe.data if recipe.tasks is None else recipe.tasks[task or next(iter(recipe.tasks))]
    own = {teacher.name: task in recipe.tasks_of(teacher) for teacher in recipe.teachers}
    text = recipe.corpus or (recipe.pretrain.corpus if recipe.pretrain else None)
    return Context(
        task=rules_of(data.task),
        data_task=data.task,
        two_texts=data.columns.text_b is not None,
        privileged=data.columns.privileged is not None,
        seed=recipe.seed,
        name=task,
        key=data.key,
        transfer=bool(data.transfer or data.augment),
        pretrained=pretrained,
        tokenizers=_tokenizers(recipe, task),
        transformers=tuple(m.name for m in (*recipe.teachers, *recipe.students) if m.brings_tokenizer),
        widths={teacher.name: teacher.model.feature_width for teacher in recipe.teachers if own[teacher.name]},
        elsewhere={teacher.name: str(teacher.task) for teacher in recipe.teachers if not own[teacher.name]},
        teachers={teacher.name: teacher for teacher in recipe.teachers if own[teacher.name]},
        expanded=expanded,
        sharded=recipe.knowledge.sharded,
        sides=tuple(data.sides),
        corpus=text is not None,
        separate=text is not None and text.separate,
    )


def _tokenizers(recipe: Recipe, task: str) -> dict[str, str]:
    """For each tokenizer that is given, the first identical one of the task: rows are encoded once for both."""
    everyone: list[Teacher | Student] = [*recipe.teachers, *recipe.students]
    given: dict[str, set[tuple[object, ...] | None]] = {}  # by name, which a teacher and a student may share
    for member in everyone:
        if member.brings_tokenizer:
            given.setdefault(member.name, set()).add(member.given_tokenizer)
    first: dict[tuple[object, ...], str] = {}
    found: dict[str, str] = {}
    for member in everyone:
        name = member.named_tokenizer
        known = given.get(name, set())
        if task in recipe.tasks_of(member) and len(known) == 1:
            (own,) = known
            if own is not None:
                found[name] = first.setdefault(own, name)
    return found


def _check_normalization(recipe: Recipe, report: Reporter) -> None:
    """Report tasks that normalise texts in different ways: plain text is normalised once for all tasks."""
    text = "the text to pre-train on" if recipe.pretrain else "the plain text of `corpus`"
    first, *others = (recipe.tasks or {"": recipe.data}).values()
    for section in others:
        if section.normalize != first.normalize:
            found = f"must be that of {first.key}.normalize, by which {text} is normalised"
            report((*section.key.split(".", 1), "normalize"), found)
