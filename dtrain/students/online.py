"""Teachers that run beside the students of a rank; one that consecutive groups need is loaded once."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError
from dtrain.knowledge.kinds import is_inside
from dtrain.models import load, own
from dtrain.models.folder import in_own_memory
from dtrain.models.multi_exit import MultiExit
from dtrain.models.with_vocabulary import WithVocabulary
from dtrain.plan import Plan
from dtrain.recipe.phases import CORPUS
from dtrain.recipe.training import Student
from dtrain.runfolder import is_done
from dtrain.runtime.distributed import World
from dtrain.teachers.online import OnlineTeacher
from dtrain.training.inference import cast_products, pack_products
from dtrain.training.lockstep import LockstepModel, load_lockstep


def check_online(plan: Plan) -> None:
    """Raise InputError where a teacher that runs beside a student, or whose layers it begins with, is not complete."""
    for student in plan.recipe.students:
        init = student.model.begins_with
        for name in [*student.asks.online, *init]:
            folder = plan.folder.model("teachers", name)
            if not is_done(folder, plan.model("teachers", name)):
                what = "whose weights it begins with" if name in init else "which answers beside it"
                raise InputError(
                    f"students.{student.name}: needs its teacher {name}, {what}, and {folder} is not complete; "
                    "run finetune first"
                )


class OnlineTeachers:
    """The teachers that run on this rank beside students, in the precision of `knowledge.precision`."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self.precision = resolve_precision(plan.recipe.knowledge.precision, world.device, "knowledge.precision")
        self._models: dict[str, nn.Module] = {}

    def keep_for(self, students: list[Student]) -> None:
        """Free the teachers that none of these students needs: a device may not have room for all of a recipe."""
        asked = {name for student in students for name in student.asks.online}
        trainings = [training for student in students for training in student.trainings if training.rows == [CORPUS]]
        on_text = {name for training in trainings for name in training.asks.online}  # keys of these begin "NAME, "
        self._models = {
            key: model for key, model in self._models.items() if key in asked or key.partition(",")[0] in on_text
        }

    def of_group(self, students: list[Student]) -> dict[str, OnlineTeacher]:
        """The teachers of students that train side by side, by name; each computes a batch once for all of them.

        Raises:
            InputError: a teacher lets rows exit early although its layers are compared.
        """
        batches = max(student.accumulation for student in students) if len(students) > 1 else 1
        found: dict[str, OnlineTeacher] = {}
        for name in {name: None for student in students for name in student.asks.online}:
            model = self._model(name)
            inner = model.model if isinstance(model, LockstepModel) else model
            inside = any(is_inside(kind) for student in students for kind in student.asks.online.get(name, []))
            if inside and isinstance(inner, MultiExit) and inner.confidence is not None:
                raise InputError(
                    f"teachers.{name}: rows leave it early, and have no states then (model.confidence: null)"
                )
            found[name] = OnlineTeacher(model, self.world.device, self.precision, inner=inner, batches=batches)
        return found

    def _differentiated(self, name: str) -> bool:
        return any("embedding_gradients" in one.asks.online.get(name, []) for one in self.plan.recipe.students)

    def on_plain_text(self, training: Student, vocabulary: int) -> dict[str, OnlineTeacher]:
        """The teachers of a phase on plain text, by name.

        Each is the pretrained model that the teacher started from, or the teacher itself if it began from scratch.

        Args:
            vocabulary: how many tokens the student scores.

        Raises:
            InputError: a teacher scores fewer tokens, or none where its scores are compared.
        """
        found: dict[str, OnlineTeacher] = {}
        for name, kinds in training.asks.online.items():
            scored = "vocabulary" in kinds
            model = self._reader(name, vocabulary if scored else None)
            inner = model.model if isinstance(model, LockstepModel) else model
            found[name] = OnlineTeacher(model, self.world.device, self.precision, inner=inner)
        return found

    def _reader(self, name: str, vocabulary: int | None) -> nn.Module:
        """A teacher for plain text; `vocabulary`: how many tokens it scores, None where its scores are not needed."""
        key = f"{name}, plain text, {vocabulary}"
        if key not in self._models:
            (teacher,) = (teacher for teacher in self.plan.recipe.teachers if teacher.name == name)
            encoder = teacher.model.transformer
            home = own.transformer()

            def made() -> nn.Module:
                if encoder is None or not encoder.pretrained:
                    return WithVocabulary(load(self.plan.folder.model("teachers", name)))
                where = f"teachers.{name}.model.pretrained"
                if vocabulary is None:
                    return WithVocabulary(in_own_memory(home.load_trunk(encoder, where)))
                model = in_own_memory(home.load_masked_lm(encoder, where, vocabulary))
                return WithVocabulary(model, model.cls, vocabulary)

            self._models[key] = self._ready(made)
        return self._models[key]

    def _ready(self, made: Callable[[], nn.Module]) -> nn.Module:
        """A model ready to run beside students: on the device, or sharded over all ranks."""
        device = self.world.device
        if self.plan.recipe.knowledge.sharded and self.world.size > 1:
            return load_lockstep(made, self.precision, self.world)
        model = cast_products(made(), self.precision, device)
        return pack_products(model, device).to(device).eval().requires_grad_(False)

    def _model(self, name: str) -> nn.Module:
        if name not in self._models:
            folder, device = self.plan.folder.model("teachers", name), self.world.device
            if self.plan.recipe.knowledge.sharded and self.world.size > 1:
                self._models[name] = load_lockstep(lambda: load(folder), self.precision, self.world)
            else:
                model = cast_products(load(folder), self.precision, device)
                if not self._differentiated(name):  # packed products have no gradient
                    model = pack_products(model, device)
                model = model.to(device)
                if device.type != "cpu":
                    model = own.transformer().without_mask_checks(model, device)
                self._models[name] = model.eval().requires_grad_(False)
        return self._models[name]
