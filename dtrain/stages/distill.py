"""distill: train every student, each on one rank, as many at a time as there are ranks."""

from __future__ import annotations

import traceback

from dtrain.data import PreparedData
from dtrain.distributed import World
from dtrain.errors import DtrainError, EveryStudentFailed, InputError, Stopped
from dtrain.knowledge import StoreReader
from dtrain.log import say, say_anywhere
from dtrain.plan import Plan
from dtrain.recipe import Recipe, Student
from dtrain.runfolder import RunFolder, is_done, publish_folder, write_json
from dtrain.students.placement import queue
from dtrain.training.loop import Diverged
from dtrain.training.member import Member, train_member
from dtrain.training.stop import StopRequest


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read `data/` and `knowledge/`, write `students/<name>/` for each student that is not there yet.

    A student that fails is reported with its reason in `students/<name>/failed.json`; the others finish.
    """
    plan = Plan(recipe)
    data = PreparedData.open(folder)
    stop = world.stop or StopRequest(world, folder.root)
    waiting = world.main_first(lambda: _waiting(recipe, plan, folder))
    students = queue([s for s in recipe.students if s.name in waiting], data)
    for student in recipe.students:
        if student.name not in waiting:
            say(f"student {student.name}: complete, nothing to do")
    if not students:
        return
    say(
        f"students: {len(students)} on {world.size} rank{'s' if world.size > 1 else ''}, longest first: "
        + ", ".join(s.name for s in students)
    )

    stopped: Stopped | None = None
    failed: list[str] = []
    take = world.counter("students")
    while stopped is None and (number := take()) < len(students):
        student = students[number]
        try:
            stores = {name: _open_store(name, recipe, data, folder) for name in student.teachers or []}
            member = Member("students", student, plan.model("students", student.name), stores)
            train_member(member, recipe, data, world, folder, stop)
        except Stopped as reason:
            stopped = reason
        except Exception as error:
            _record_failure(student, error, plan, folder)
            failed.append(student.name)
    world.wait_for_all("students")
    all_failed = [name for names in world.gather_objects(failed) for name in names]
    if any(world.gather_objects(stopped is not None)):
        raise stopped or Stopped([])
    if all_failed and len(all_failed) == len(recipe.students):
        raise EveryStudentFailed(f"every student failed ({', '.join(sorted(all_failed))})")


def _waiting(recipe: Recipe, plan: Plan, folder: RunFolder) -> list[str]:
    def ended(name: str) -> bool:
        return is_done(folder.model("students", name), plan.model("students", name)) or plan.diverged(name)

    return [student.name for student in recipe.students if not ended(student.name)]


def _open_store(teacher: str, recipe: Recipe, data: PreparedData, folder: RunFolder) -> StoreReader:
    from dtrain.stages.precompute import expected_identity

    return StoreReader.open(folder.knowledge(teacher), expect=expected_identity(teacher, recipe, data, folder))


def _record_failure(student: Student, error: Exception, plan: Plan, folder: RunFolder) -> None:
    """Leave the reason where the report finds it. What would happen again is final; the rest the next run tries again."""
    known = isinstance(error, DtrainError)
    reason = "; ".join(error.problems) if isinstance(error, DtrainError) else f"{type(error).__name__}: {error}"
    say_anywhere(f"student {student.name}: FAILED: {reason}")
    if not known:
        traceback.print_exception(error)
    with publish_folder(folder.model("students", student.name)) as aside:
        write_json(
            aside / "failed.json",
            {
                "reason": reason,
                "final": isinstance(error, Diverged | InputError),
                "fingerprint": plan.model("students", student.name),
            },
        )
