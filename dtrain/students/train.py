"""Train one group of students on this rank: what they share is read once, and each one's end or failure is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch

from dtrain.data import Part, PreparedData
from dtrain.distributed import World
from dtrain.errors import Stopped, reason_of
from dtrain.knowledge.reader import StoreReader
from dtrain.log import say_anywhere
from dtrain.plan import Plan
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student
from dtrain.runfolder import RunFolder, fingerprint
from dtrain.students.plan import TrainingGroup
from dtrain.students.shared import Memo, SharedRows, SharedStore
from dtrain.students.ways import Fused, Streams, peers
from dtrain.training.loop import MakeSteps, in_turn
from dtrain.training.member import Member, Trained, train_members, training_rows
from dtrain.training.stop import StopRequest


class GroupTrainer:
    """What all groups of a rank are trained with.

    Args:
        open_store: a teacher's outputs, by its name.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        data: PreparedData,
        world: World,
        folder: RunFolder,
        stop: StopRequest,
        open_store: Callable[[str], StoreReader],
    ) -> None:
        self.recipe, self.plan, self.data = recipe, plan, data
        self.world, self.folder, self.stop = world, folder, stop
        self.open_store = open_store

    def train(self, group: TrainingGroup, pause: int | None = None) -> Iterator[Trained]:
        """Each student as it ends.

        What goes wrong for a group at once is nobody's failure yet: it is cut in two, which go on from checkpoints,
        until it is one student's.

        Args:
            pause: epochs after which each is to wait; see `Member`.

        Raises:
            Stopped: on request, after checkpoints.
        """
        left = list(group.students)
        try:
            for trained in self._side_by_side(left, self._way(group), pause):
                left = [student for student in left if student is not trained.member.spec]
                yield trained
            return
        except Stopped:
            raise
        except Exception as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if len(left) < 2 or group.way == "peers":
                for member in (self._member(student, {}, pause) for student in left):
                    yield Trained(member, error=RuntimeError(f"out of memory: {error}") if memory else error)
                return
            reason = "out of memory" if memory else reason_of(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (len(left) + 1) // 2
        say_anywhere(f"students {', '.join(s.name for s in left)}: {reason} together; trained in two parts")
        for part in (left[:half], left[half:]):
            yield from self.train(TrainingGroup(tuple(part), group.way, group.why, group.cost), pause)

    def _side_by_side(self, students: list[Student], way: MakeSteps, pause: int | None) -> Iterator[Trained]:
        shared = _Shared(self) if len(students) > 1 else None
        members = []
        for student in students:
            try:
                members.append(self._member(student, self._stores(student, shared), pause))
            except Exception as error:
                yield Trained(self._member(student, {}, pause), error=error)
                continue
            if shared:
                members[-1].rows = shared.rows(student)
        yield from train_members(members, self.recipe, self.data, self.world, self.folder, self.stop, way)

    def _member(self, student: Student, stores: dict[str, StoreReader], pause: int | None) -> Member:
        identity = self.plan.model("students", student.name)
        return Member("students", student, identity, stores, order=self.plan.order(student), pause=pause)

    def _stores(self, student: Student, shared: _Shared | None) -> dict[str, StoreReader]:
        read = shared.store if shared else self.open_store
        return {name: read(name) for name in student.teachers or []}

    def _way(self, group: TrainingGroup) -> MakeSteps:
        if group.way == "fused":
            return Fused()
        if group.way == "streams":
            return Streams(self.world.device)
        return peers if group.way == "peers" else in_turn


class _Shared:
    """Rows and stores that the students of a group read together."""

    def __init__(self, trainer: GroupTrainer) -> None:
        self._trainer = trainer
        self._rows: dict[str, Part] = {}
        self._stores: dict[str, StoreReader] = {}

    def rows(self, student: Student) -> Part:
        from dtrain.data import tokenizer_name

        key = fingerprint(tokenizer_name(student), student.rows)
        if key not in self._rows:
            memo = Memo(8 * student.accumulation, self._trainer.world.device)  # tokens, and labels or tags
            self._rows[key] = SharedRows.of(training_rows(student, self._trainer.data), memo)
        return self._rows[key]

    def store(self, teacher: str) -> StoreReader:
        if teacher not in self._stores:
            most = max(student.accumulation for student in self._trainer.recipe.students)
            memo = Memo(4 * most, self._trainer.world.device)
            self._stores[teacher] = cast(StoreReader, SharedStore(self._trainer.open_store(teacher), memo))
        return self._stores[teacher]
