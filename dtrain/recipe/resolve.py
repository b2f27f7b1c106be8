"""The order in which the sections of a recipe fill in their defaults and check themselves against each other."""

from __future__ import annotations

from pathlib import Path

from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import check_peers
from dtrain.runfolder import RunFolder
from dtrain.tasks.rules import rules_of


def resolve(recipe: Recipe, teachers: list[int], students: list[int], report: Reporter) -> None:
    """Fill and check a recipe whose grids are expanded.

    Args:
        teachers: the number that each teacher has in the file.
        students: likewise.
    """
    pretrained = None
    if recipe.pretrain:
        recipe.pretrain.resolve(recipe.seed, report.at("pretrain"))
        folder = RunFolder(Path(recipe.output_dir) / recipe.name)
        pretrained = str(folder.pretrained(len(recipe.pretrain.phases) - 1))
    context = Context(
        task=rules_of(recipe.data.task),
        data_task=recipe.data.task,
        seed=recipe.seed,
        transfer=bool(recipe.data.transfer or recipe.data.augment),
        pretrained=pretrained,
        transformers=tuple(m.name for m in (*recipe.teachers, *recipe.students) if m.brings_tokenizer),
        widths={teacher.name: teacher.model.feature_width for teacher in recipe.teachers},
    )
    of_students = [report.at("students", number) for number in students]
    for teacher, number in zip(recipe.teachers, teachers, strict=True):
        teacher.resolve(context, report.at("teachers", number))
    for student, of_student in zip(recipe.students, of_students, strict=True):
        student.resolve(context, of_student)
    if not report.problems:
        peers = check_peers(recipe.students, context, of_students)
        if recipe.search is not None:
            recipe.search.check(recipe.students, peers, report.at("search"))
        recipe.knowledge.resolve(recipe.students, context, report.at("knowledge"))
