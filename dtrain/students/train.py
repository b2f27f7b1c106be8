"""Train one group of students on this rank: what they share is read once, and each one's end or failure is its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import torch

from dtrain.data import EncodedSplit, tokenizer_name
from dtrain.errors import Stopped, reason_of
from dtrain.knowledge.reader import StoreReader
from dtrain.log import say_anywhere
from dtrain.plan import Plan
from dtrain.recipe.training import Student
from dtrain.runfolder import fingerprint
from dtrain.runtime.stop import StopRequest
from dtrain.students.online import OnlineTeachers
from dtrain.students.phases import OnRows, PhasePlace, forget_curves, phase_jobs
from dtrain.students.plain_text import PlainTextPhase, vocabulary_of
from dtrain.students.plan import TrainingGroup
from dtrain.students.ways import Fused, Peers, Streams
from dtrain.teachers.online import OnlineTeacher
from dtrain.teachers.sources import StoredTeacher
from dtrain.training.feed import AHEAD, Reading
from dtrain.training.loop import MakeSteps, in_turn
from dtrain.training.members import Members
from dtrain.training.model_job import ModelJob, Trained, train_models
from dtrain.training.phases import train_phases


class GroupTrainer:
    """Trains the groups of a rank, one after another.

    Args:
        open_store: opens and verifies a teacher's store; called once for each teacher, for all groups of this rank.
    """

    def __init__(
        self, plan: Plan, members: Members, stop: StopRequest, open_store: Callable[[str], StoreReader]
    ) -> None:
        self.plan, self.members, self.stop = plan, members, stop
        self.world = members.world
        self._open_store = open_store
        self._stores: dict[str, StoreReader] = {}
        self._online = OnlineTeachers(plan, members.world)

    def train(self, group: TrainingGroup, pause: int | None = None) -> Iterator[Trained]:
        """Train a group; yields each student as it ends.

        An error of the whole group is not yet a student's failure: the group is cut into halves, which continue from
        their checkpoints, until the error is that of a single student.

        Args:
            pause: the epoch after which each student pauses; see `ModelJob`.

        Raises:
            Stopped: on request, after checkpoints.
        """
        left = list(group.students)
        try:
            for trained in self._side_by_side(left, self._way(group), pause):
                left = [student for student in left if student.name != trained.job.spec.name]
                yield trained
            return
        except Stopped:
            raise
        except Exception as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if len(left) < 2 or group.way == "peers":
                for student in left:
                    failure = RuntimeError(f"out of memory: {error}") if memory else error
                    yield Trained(self._job(student, {}, pause, None), error=failure)
                return
            reason = "out of memory" if memory else reason_of(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (len(left) + 1) // 2
        say_anywhere(f"students {', '.join(s.name for s in left)}: {reason} together; trained in two parts")
        for part in (left[:half], left[half:]):
            yield from self.train(TrainingGroup(tuple(part), group.way, group.why, group.cost), pause)

    def _side_by_side(self, students: list[Student], way: MakeSteps, pause: int | None) -> Iterator[Trained]:
        self._online.keep_for(students)
        if students[0].phases is not None:  # then all of the group have some
            yield from self._in_phases(students, pause)
            return
        shared = _Shared(self.members, students) if len(students) > 1 else None
        jobs = []
        online = self._online.of_group(students)
        for student in students:
            try:
                beside = {name: online[name] for name in student.asks.online}
                jobs.append(self._job(student, self._teachers(student), pause, shared, beside))
            except Exception as error:
                yield Trained(self._job(student, {}, pause, None), error=error)
        try:
            yield from train_models(jobs, self.world, self.stop, way)
        finally:
            if shared:
                shared.reading.close()

    def _in_phases(self, students: list[Student], pause: int | None) -> Iterator[Trained]:
        """Train students that have phases; yields those whose last phase has ended or that failed."""
        shared = _SharedPhases(self.members, self._online, students)
        jobs_of = []
        for student in students:
            writes = student.parallel != "data" or self.world.is_main
            try:
                jobs = phase_jobs(student, self.plan, functools.partial(self._phase_job, shared), pause)
                if writes:
                    forget_curves(student, self.plan, self.members.folder)
            except Exception as error:
                yield Trained(self._job(student, {}, pause, None), error=error)
            else:
                jobs_of.append(jobs)
        try:
            for trained in train_phases(jobs_of, self.world, self.stop):
                last = self.members.folder.model("students", trained.job.spec.name)
                if trained.error is not None or trained.job.final == last:
                    yield trained
        finally:
            shared.close()

    def _phase_job(
        self,
        shared: _SharedPhases,
        training: Student,
        place: PhasePlace,
        identity: str,
        order: int,
        pause: int | None,
    ) -> tuple[ModelJob, OnRows]:
        if not place.phase.on_plain_text:
            online, rows = shared.of(place.number)
            stored = self._teachers(training)
            job = self.members.student(
                training,
                identity,
                stored,
                online={name: online[name] for name in training.asks.online},
                order=order,
                pause=pause,
                reading=rows.reading if rows else None,
                rows=rows.rows(training, stored) if rows else None,
            )
            return job, lambda prepared: prepared
        beside = self._online.on_plain_text(training, vocabulary_of(training, self.plan))
        texts = PlainTextPhase(training, place.phase, self.plan, self.members.folder, self.world, beside)
        # The job is that of rows of its task, which are then not read.
        on_task = training.model_copy(update={"rows": ["train"]})
        return self.members.student(on_task, identity, {}, online=beside, order=order, pause=pause), texts.prepared

    def _job(
        self,
        student: Student,
        teachers: dict[str, StoredTeacher],
        pause: int | None,
        shared: _Shared | None,
        online: dict[str, OnlineTeacher] | None = None,
    ) -> ModelJob:
        return self.members.student(
            student,
            self.plan.model("students", student.name),
            teachers,
            online=online,
            order=self.plan.order(student),
            pause=pause,
            reading=shared.reading if shared else None,
            rows=shared.rows(student, teachers) if shared else None,
        )

    def _teachers(self, student: Student) -> dict[str, StoredTeacher]:
        for name in student.asks.stored:
            if name not in self._stores:
                self._stores[name] = self._open_store(name)
        return {
            name: StoredTeacher(self._stores[name], partial=student.reads is not None) for name in student.asks.stored
        }

    def _way(self, group: TrainingGroup) -> MakeSteps:
        if group.way == "fused":
            return Fused()
        if group.way == "streams":
            return Streams(self.world.device)
        return Peers() if group.way == "peers" else in_turn


class _Shared:
    """Rows and batches that the students of a group read together."""

    def __init__(self, members: Members, students: list[Student]) -> None:
        # Students make a step one after another, and each asks for all micro-batches of the step.
        most = max(student.accumulation for student in students)
        self.reading = Reading(members.world.device, most + AHEAD + 1)
        self._members = members
        self._rows: dict[str, EncodedSplit] = {}

    def rows(self, student: Student, teachers: Mapping[str, StoredTeacher]) -> EncodedSplit:
        written = [student.teachers, student.answers] if student.taught_rows else []
        # Where rows have several sides, rows with neither a label nor a teacher's answer are left out.
        useful = [[loss.model_dump(mode="json") for loss in student.losses or []]] if student.reads else []
        beside = filter(None, [self._members.annotations(student)])
        key = fingerprint(tokenizer_name(student), student.task, student.rows, *written, *useful, *beside)
        if key not in self._rows:
            self._rows[key] = self._members.rows(student, teachers)
        return self._rows[key]


class _SharedPhases:
    """The rows and the online teachers that students of a group share in their phases on rows of their task."""

    def __init__(self, members: Members, online: OnlineTeachers, students: list[Student]) -> None:
        self._members, self._online = members, online
        self._trainings = [student.trainings for student in students]
        self._phases: dict[int, tuple[dict[str, OnlineTeacher], _Shared | None]] = {}

    def of(self, number: int) -> tuple[dict[str, OnlineTeacher], _Shared | None]:
        """Of phase `number` (from 0): the online teachers by name, and the rows, None for a single student."""
        if number not in self._phases:
            now = [trainings[number] for trainings in self._trainings]
            shared = _Shared(self._members, now) if len(now) > 1 else None
            self._phases[number] = self._online.of_group(now), shared
        return self._phases[number]

    def close(self) -> None:
        for _, shared in self._phases.values():
            if shared is not None:
                shared.reading.close()
