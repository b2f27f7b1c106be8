"""distill: train every student, in groups that ranks take from a queue; as many groups at a time as there are ranks."""

from __future__ import annotations

import functools
import traceback
from typing import Any

import torch

from dtrain.data.encoders import answers_in_words
from dtrain.engines.precision import check_precisions, resolve_precision
from dtrain.errors import DtrainError, EveryStudentFailed, InputError, Stopped, reason_of
from dtrain.knowledge.reader import StoreReader
from dtrain.launch import launch_spec
from dtrain.log import say, say_anywhere
from dtrain.plan import Plan
from dtrain.recipe import Recipe, Student
from dtrain.runfolder import RunFolder, is_done, publish_folder, read_json, write_json
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.stages.precompute import expected_identity
from dtrain.students.online import check_online
from dtrain.students.phases import check_sharding, history_at, unknown_parameters
from dtrain.students.placement import cost
from dtrain.students.plain_text import prepare_texts
from dtrain.students.plan import Machine, TrainingGroup, describe, plan_groups
from dtrain.students.search import Halving, score_until
from dtrain.students.train import GroupTrainer
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.checkpoint import Checkpoints, remove_checkpoints
from dtrain.training.job import Diverged, checkpoint_identity
from dtrain.training.members import Members
from dtrain.training.model_job import Trained
from dtrain.training.monitor import log_hyperparameters

MEETING_SECONDS = 30.0  # between the first and the last rank's failure of a student for the same reason


def check(recipe: Recipe, world: World) -> None:
    """Raise InputError for a precision that launch or device do not support, or a phase that cannot be trained."""
    check_precisions(recipe, world.device)
    check_sharding(recipe, world)


def check_phases(recipe: Recipe) -> list[str]:
    """Parameters that students' phases name and their models do not have, one line for each problem."""
    return unknown_parameters(recipe)


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read `data/` and `knowledge/`, write `students/<name>/` for each student that is not there yet.

    A student that fails is reported with its reason in `students/<name>/failed.json`; the others finish.

    Raises:
        EveryStudentFailed: no student has a model.
        Stopped: a stop was requested.
    """
    plan = Plan(recipe)
    world.run_on_main(lambda: check_online(plan))
    tasks = PreparedTasks.open(recipe, folder)
    stop = world.stop or StopRequest(world, folder.root)
    world.run_on_main(lambda: prepare_texts(plan, folder, set(_waiting(plan)), stop))
    for name in sorted({s.name for s in recipe.students} - set(world.run_on_main(lambda: _waiting(plan)))):
        say(f"student {name}: complete, nothing to do")
    members = Members(tasks, world, folder)
    trainer = GroupTrainer(plan, members, stop, lambda teacher: _open_store(teacher, recipe, tasks, folder))
    failed: list[str] = []
    while True:
        compare = functools.partial(_stop_the_worst, plan, folder, failed, world.device)
        search = world.run_on_main(compare) if recipe.search else None
        waiting = set(world.run_on_main(lambda: _waiting(plan))) - set(failed)
        if not waiting:
            break
        groups = _groups([s for s in recipe.students if s.name in waiting], plan, tasks, world.size, world.device)
        for line in describe(groups, world.size):
            say(line)
        failed += _train(groups, trainer, plan, pause=search)
        if search is None:
            break
    # Some may have failed for good in an earlier run, or have been stopped by the search.
    everyone = [student.name for student in recipe.students]
    without = world.run_on_main(lambda: [name for name in everyone if name in failed or plan.diverged(name)])
    if everyone and without == everyone:
        raise EveryStudentFailed(f"every student failed ({', '.join(sorted(without))})")


def show_plan(recipe: Recipe) -> None:
    """Print which ranks would train which students, in which groups, and why some are not stacked.

    Writes nothing; needs no earlier stage.
    """
    ranks = launch_spec(recipe, "distill").processes
    plan = Plan(recipe)
    students = [student for student in recipe.students if student.name in _waiting(plan)]
    for name in sorted({s.name for s in recipe.students} - {s.name for s in students}):
        say(f"student {name}: complete, nothing to do")
    try:
        tasks = PreparedTasks.open(recipe, plan.folder)
    except DtrainError:
        tasks = None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for line in [*describe(_groups(students, plan, tasks, ranks, device), ranks), *answers_in_words(recipe)]:
        say(line)


def _groups(
    students: list[Student], plan: Plan, tasks: PreparedTasks | None, ranks: int, device: torch.device
) -> list[TrainingGroup]:
    machine = Machine(ranks, device.type, functools.partial(_precision, device=device))
    return plan_groups(
        students,
        plan.recipe.placement,
        machine,
        recipe=plan.recipe.students,
        task=lambda student: plan.of(student)[0].recipe.data.task,
        order=plan.order,
        cost=lambda student: cost(student, tasks),
    )


def _precision(student: Student, device: torch.device) -> str:
    return resolve_precision(student.precision, device, f"students.{student.name}.precision")


def _train(groups: list[TrainingGroup], trainer: GroupTrainer, plan: Plan, pause: int | None) -> list[str]:
    """Train all groups over the ranks.

    Args:
        pause: the epoch of the search's next comparison, where training halts; None: train to the end.

    Returns:
        The names of the students that failed, the same list on every rank.

    Raises:
        Stopped: a stop was requested; on every rank.
    """
    world = trainer.world
    stopped: Stopped | None = None
    failed: list[str] = []

    def train(group: TrainingGroup, records: bool) -> None:
        nonlocal stopped
        try:
            for trained in trainer.train(group, pause):
                if trained.error is not None and group.way == "all ranks":
                    _meet_after_failure(trained, trained.error, world)
                if trained.error is not None and records:
                    _record_failure(trained, trained.error, plan)
                    failed.append(trained.job.spec.name)
        except Stopped as reason:
            stopped = reason

    for group in groups:
        if group.way == "all ranks" and stopped is None:
            train(group, world.is_main)
    queue = [group for group in groups if group.way != "all ranks"]
    take = world.counter(f"students/{pause or 'end'}")
    while stopped is None and (number := take()) < len(queue):
        train(queue[number], True)
    world.wait_for_all("students")
    everywhere = [name for names in world.gather_objects(failed) for name in names]
    if any(world.gather_objects(stopped is not None)):
        raise stopped or Stopped([])
    return everywhere


def _meet_after_failure(trained: Trained, error: Exception, world: World) -> None:
    """Wait until a student that all ranks train together has failed on all of them.

    Raises:
        DtrainError: it has not failed on others, which wait in a collective for this rank, so that only their end helps.
    """
    if not world.wait_for_all(f"failed {trained.job.spec.name}", MEETING_SECONDS):
        if not isinstance(error, DtrainError):
            traceback.print_exception(error)
        where = f"{trained.job.title}: failed on rank {world.rank} alone, and the others wait for its part of a step"
        raise DtrainError(f"{where}: {reason_of(error)}; the same command continues") from error


def _stop_the_worst(plan: Plan, folder: RunFolder, failed: list[str], device: torch.device) -> int | None:
    """Make each comparison of the search that all students have reached, and stop the worst of them.

    A complete student is compared, too, and keeps its model whatever its place: stopping it would save nothing.

    Returns:
        The epoch to train the others to, None: to the end.
    """
    search = Halving(plan, folder.root / "search.json")
    metric = plan.recipe.students[0].metric or "accuracy"
    while (epoch := search.next_epoch) is not None:
        names = [s.name for s in plan.recipe.students if s.name not in search.stopped and s.name not in failed]
        names = [name for name in names if not (plan.failure(name) or {}).get("final")]
        scores = {name: _score_at(name, plan, folder, metric, epoch, device) for name in names}
        if any(score is None for score in scores.values()) or not scores:
            return epoch
        for name, reason in search.decide({n: s for n, s in scores.items() if s is not None}, metric).items():
            if not _is_done(name, plan):
                say_anywhere(f"student {name}: {reason}")
        _leave_the_stopped(search, plan, folder, device)
    _leave_the_stopped(search, plan, folder, device)
    return None


def _leave_the_stopped(search: Halving, plan: Plan, folder: RunFolder, device: torch.device) -> None:
    """Record for each stopped student the reason, as for a failure, and its row in TensorBoard's table."""
    students = {student.name: student for student in plan.recipe.students}
    for name, reason in search.stopped.items():
        if plan.failure(name) is None and not _is_done(name, plan):
            spec = students[name]
            if best := _best_scores(_history_at(name, plan, folder, 0, device) or [], spec.metric or "accuracy"):
                log_hyperparameters(folder.tensorboard("students", name), spec, spec.all_losses, best)
            _write_failure(plan, name, reason, final=True, search=search.identity)
            remove_checkpoints(folder.checkpoints("students", name))


def _is_done(name: str, plan: Plan) -> bool:
    return is_done(plan.folder.model("students", name), plan.model("students", name))


def _score_at(name: str, plan: Plan, folder: RunFolder, metric: str, epoch: int, device: torch.device) -> float | None:
    """A student's best score up to an epoch; None if it has not been trained so far."""
    history = _history_at(name, plan, folder, epoch, device)
    return None if history is None else _score(name, history, metric, epoch)


def _history_at(
    name: str, plan: Plan, folder: RunFolder, epoch: int, device: torch.device
) -> list[dict[str, Any]] | None:
    """The evaluations in a student's model folder, or in a checkpoint of `epoch` or later; None if there is neither."""
    history: list[dict[str, Any]]
    if _is_done(name, plan):
        history = read_json(folder.model("students", name) / "history.json")
        return history
    spec = next(student for student in plan.recipe.students if student.name == name)
    if spec.phases is not None:
        precision = _precision(spec, device)
        return history_at(spec, plan, folder, epoch, lambda training: checkpoint_identity(training, precision))
    identity = checkpoint_identity(plan.model("students", name), _precision(spec, device))
    for state in Checkpoints(folder.checkpoints("students", name), identity).states():
        if state["position"]["epoch"] >= epoch:
            history = state["position"]["history"]
            return history
    return None


def _best_scores(history: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    entries = [entry for entry in history if entry["split"] == "valid"]
    return max(entries, key=lambda e: (-e["loss"] if metric == "loss" else e[metric], -e["loss"])) if entries else None


def _score(name: str, history: list[dict[str, Any]], metric: str, epoch: int) -> float:
    score = score_until(history, metric, epoch)
    if score is None:
        raise InputError(f"students.{name}.evaluate_every: the search compares after epoch {epoch}, and none was due")
    return score


def _waiting(plan: Plan) -> list[str]:
    """The students that are to be trained. One that is done is trained again if one of its peers is not done."""

    def ended(name: str) -> bool:
        return _is_done(name, plan) or plan.diverged(name)

    left = [student for student in plan.recipe.students if not ended(student.name)]
    again = {student.peers for student in left if student.peers is not None}
    return [s.name for s in plan.recipe.students if s in left or s.peers in again]


def _open_store(teacher: str, recipe: Recipe, tasks: PreparedTasks, folder: RunFolder) -> StoreReader:
    data = tasks.of(next(member for member in recipe.teachers if member.name == teacher)).data
    return StoreReader.open(folder.knowledge(teacher), expect=expected_identity(teacher, recipe, data, folder))


def _record_failure(trained: Trained, error: Exception, plan: Plan) -> None:
    """Write the reason where the report finds it. A failure that would happen again is final, others are tried again."""
    name = trained.job.spec.name
    reason = reason_of(error)
    say_anywhere(f"student {name}: FAILED: {reason}")
    if not isinstance(error, DtrainError):
        traceback.print_exception(error)
    _write_failure(plan, name, reason, final=isinstance(error, Diverged | InputError))


def _write_failure(plan: Plan, name: str, reason: str, *, final: bool, search: str | None = None) -> None:
    """Write `failed.json`. `search`: the search that stopped it; a recipe with another, or with none, trains it again."""
    with publish_folder(plan.folder.model("students", name)) as aside:
        record = {"reason": reason, "final": final, "fingerprint": plan.model("students", name), "search": search}
        write_json(aside / "failed.json", record)
