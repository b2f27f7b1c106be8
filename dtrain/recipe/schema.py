"""The recipe's closed schema: every key, its type, its range and its default.

The larger sections have modules of their own beside this one; `load.py` reads files and overrides. The parameters of
losses are checked against the functions that implement them, without importing torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from dtrain.errors import suggest
from dtrain.knowledge.kinds import kind_names
from dtrain.recipe.answers import is_online
from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.corpus import CorpusSpec
from dtrain.recipe.data import Data
from dtrain.recipe.points import KnowledgePoints
from dtrain.recipe.pretraining import Pretrain
from dtrain.recipe.training import Student, Teacher
from dtrain.recipe.values import Closed, FilePath, Output, Precision, check_name
from dtrain.stages import run_names
from dtrain.tasks.rules import TaskRules, rules_of

TOP_TOKENS = 8  # stored for each token of a text; the other tokens have a few percent of the probability
SEARCH = ("beam", "candidates", "length_penalty")  # keys of `Knowledge` about the search for sequences
NO_TASK = "corpus"  # a folder beside the tasks' folders in the run's `data/`, so that no task can have this name


class Placement(Closed):
    """Which students train side by side on one rank."""

    # train students of one shape as one stacked model; auto: on a GPU only
    fuse: Literal["auto", "always", "never"] = "auto"
    share_order: bool = True  # shuffle rows by the recipe's seed, not by each student's own


class Search(Closed):
    """Successive halving (Jamieson & Talwalkar 2016): the worst students are stopped early."""

    method: Literal["halving"] = "halving"  # the method, of which there is one
    # the epochs after which students are compared; all before the last epoch of every student
    epochs: Annotated[list[PositiveInt], Field(min_length=1)]
    # share of the students that continue after each comparison; at least one does
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5

    @field_validator("epochs")
    @classmethod
    def ascending(cls, value: list[int]) -> list[int]:
        if sorted(set(value)) != value:
            raise ValueError(f"must ascend, found {value}")
        return value

    def check(self, students: list[Student], peers: bool, report: Reporter) -> None:
        """Report why the students cannot be compared and stopped one by one, if so."""
        if peers:
            report("", "peers cannot be stopped one by one; take `peers` or `search` away")
        for key in ("metric", "task"):
            if len({getattr(student, key) for student in students}) > 1:
                report("", f"students must have one `{key}` to be compared")
        shortest = min(students, key=lambda student: student.all_epochs, default=None)
        if shortest is not None and self.epochs[-1] >= shortest.all_epochs:
            report(
                "epochs",
                f"{self.epochs[-1]} is not before the end of student {shortest.name}, which trains "
                f"{shortest.all_epochs} epochs (stopping it there would save nothing)",
            )


class Knowledge(Closed):
    """Which outputs of the teachers are stored, and how they are computed."""

    # what to store: logits, features, for tagging emissions, marginals, token_features, for seq2seq token_logits,
    # sequences; default: what the students' losses and rows read
    outputs: Annotated[list[Output], Field(min_length=1)] | None = None
    # format of the stored numbers; a value that does not fit is refused with its row ids
    dtype: Literal["float16", "float32"] = "float16"
    # store only the k largest logits of a row (for seq2seq, of a token), and the others as one sum; null: all, for
    # seq2seq 8
    top_k: PositiveInt | None = None
    # for seq2seq: hypotheses that a teacher's beam search keeps at a time; models are also scored with this beam
    beam: Annotated[int, Field(ge=2)] = 5
    # for seq2seq: the best sequences that are stored of each row; null: all of the beam
    candidates: PositiveInt | None = None
    # for seq2seq: a hypothesis is scored by its log-probability over its number of tokens to this power
    length_penalty: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    # number format of the teacher while it computes; auto: bf16 on GPUs that compute in it, else fp32
    precision: Precision = "auto"
    compile: bool = False  # compile the teacher with torch.compile, which takes minutes and pays off in large runs
    unpadded: bool = False  # run BERT teachers without padding, by variable-length attention on a GPU
    sharded: bool = False  # shard the teacher over all ranks, for one that does not fit on a device
    # rows of one file of the store, which holds at most 64 MB; auto: 64 files or fewer, or more of at most 4096 rows
    shard_rows: PositiveInt | Literal["auto"] = "auto"
    # padded tokens in one call of the teacher; default: 512 where a CPU precomputes, else 4096
    batch_tokens: PositiveInt | None = None

    @model_serializer(mode="wrap")
    def without_a_search(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out defaults of the search, so that fingerprints are the same as before it existed."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {k: v for k, v in values.items() if k not in SEARCH or v != fields[k].default}

    @model_validator(mode="after")
    def candidates_of_the_beam(self) -> Knowledge:
        if self.candidates is not None and self.candidates > self.beam:
            raise ValueError(f"candidates: {self.candidates} is more than the beam holds, {self.beam}")
        return self

    @model_validator(mode="after")
    def whole_where_needed(self) -> Knowledge:
        if self.sharded and (self.compile or self.unpadded):
            raise ValueError("sharded: not together with compile or unpadded, which need the whole teacher")
        return self

    def of_task(self, students: list[Student], rules: TaskRules) -> Knowledge:
        """The section for one of several tasks: its own outputs, of those that are listed or that its students read."""
        allowed = kind_names(rules.name, rules.outputs, stored=True)
        wanted = self._readers(students) if self.outputs is None else self.outputs
        outputs = [name for name in allowed if name in wanted] or [allowed[0]]
        top_k = None if "top_k" in rules.excluded else self.top_k
        searches = {} if rules.writes else {key: type(self).model_fields[key].default for key in SEARCH}
        return self.model_copy(update={"outputs": outputs, "top_k": top_k, **searches})

    def check_tasks(self, tasks: list[TaskRules], report: Reporter) -> None:
        """Report what is listed, but fits none of the recipe's several tasks."""
        known = list(
            dict.fromkeys(name for rules in tasks for name in kind_names(rules.name, rules.outputs, stored=True))
        )
        for output in self.outputs or []:
            if output not in known:
                report("outputs", f"{output!r} is not for any of the recipe's tasks (allowed: {', '.join(known)})")
        if self.top_k and all("top_k" in rules.excluded for rules in tasks):
            report("top_k", "is for logits, which none of the recipe's tasks has")

    def _readers(self, students: list[Student]) -> dict[str, str]:
        """For each output, the first student that reads it."""
        read: dict[str, str] = {}
        for student in students:
            if student.noisy:
                read.setdefault("logits", f"{student.name} (noisy)")
            if student.taught_rows:
                read.setdefault("sequences", f"{student.name} (rows)")
            for loss in student.all_losses:
                for output in loss.loss.outputs_read(loss.weighting):
                    if not is_online(output, student.answers):
                        read.setdefault(output, f"{student.name} ({loss.type})")
        return read

    def resolve(self, students: list[Student], context: Context, report: Reporter) -> None:
        """Choose the outputs that the students' losses read; if the recipe lists outputs, these must be among them."""
        allowed = kind_names(context.task.name, context.task.outputs, stored=True)
        read = self._readers(students)
        if self.outputs is None:
            self.outputs = [output for output in allowed if output in read] or [allowed[0]]
        for output in self.outputs:
            if output not in allowed:
                report("outputs", f"{output!r} is not for task {context.task.name!r} (allowed: {', '.join(allowed)})")
        for output, reader in read.items():
            if output not in self.outputs:
                report("outputs", f"lacks {output!r}, which the student {reader} reads")
        if self.top_k and "top_k" in context.task.excluded:
            report("top_k", f"is for logits, not for task {context.data_task!r}")
        if context.task.writes:
            self._resolve_search(context, report)
        else:
            for key in SEARCH:
                if getattr(self, key) != type(self).model_fields[key].default:
                    report(key, "is only for task 'seq2seq'")

    def _resolve_search(self, context: Context, report: Reporter) -> None:
        """Fill in and check what is particular to teachers that write texts."""
        self.top_k = self.top_k or TOP_TOKENS
        for key in ("compile", "unpadded", "sharded"):
            if getattr(self, key):
                report(key, "is not for task 'seq2seq', whose teachers write token by token")
        for name, teacher in context.teachers.items():
            encoder = teacher.model.transformer
            if encoder is not None and not encoder.pretrained and self.beam > encoder.vocabulary_size:
                report("beam", f"{self.beam} is more than the {encoder.vocabulary_size} tokens of teacher {name}")


def _a_stage(name: str) -> str:
    if name not in run_names():
        allowed = ", ".join(run_names())
        raise ValueError(f"no stage of `dtrain run`{suggest(name, run_names())} (allowed: {allowed})")
    return name


StageName = Annotated[str, AfterValidator(_a_stage)]


class StageLaunch(Closed):
    """How `dtrain run` starts the processes of one stage."""

    processes: PositiveInt | Literal["auto"] | None = None  # processes of this stage; null: as for every stage
    accelerate_config: FilePath | None = None  # launch configuration of this stage; null: as for every stage


class Launch(Closed):
    """How `dtrain run` starts processes; `stages` overrides it for single stages."""

    # processes on each machine; auto: one per GPU; without GPUs, one for models that all ranks train together, and one
    # for each student that may train at the same time, as far as there are cores
    processes: PositiveInt | Literal["auto"] = "auto"
    accelerate_config: FilePath = "ddp"  # a file of accelerate_configs/ by name (ddp, fsdp2, zero2, ...), or a path
    # how ranks communicate; auto: nccl on GPUs, gloo on CPUs; with gloo, several ranks may share a GPU, for trials
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    # seconds after which a missing rank, an unfinished collective, or a rank without a sign of life ends the run
    timeout: PositiveInt = 600
    # seconds after which the run stops as if asked to; a SLURM job's own limit is known without it
    time_limit: PositiveInt | None = None
    stages: dict[StageName, StageLaunch] = {}  # settings for single stages, by the stage's name


class Report(Closed):
    """What `dtrain report` measures and shows."""

    latency: bool = True  # measure the rows per second of every model at batch 1 and 64
    # the parts that models are scored on
    splits: Annotated[list[Literal["valid", "test"]], Field(min_length=1)] = ["valid", "test"]


class Recipe(Closed):
    """A whole experiment, from raw text to distilled students."""

    _whole: Recipe | None = PrivateAttr(None)
    _task: str = PrivateAttr("")
    name: str  # names the run: everything is written under `output_dir`/`name`
    # decides initial weights, orders of rows, splits and draws wherever no other seed is given
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output_dir: FilePath = "runs"  # the folder that holds the run folders
    # the language of the texts, as model cards name it: `zh`, `en`, `pt-BR`, ...; left out: cards name none
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")] | None = None
    # pre-train an encoder on plain text first (masked language modelling); left out: none
    pretrain: Pretrain | None = None
    # plain text for phases of students with `rows: [corpus]`; left out: that of `pretrain`
    corpus: CorpusSpec | None = None
    # a section `Data` for each task by the task's name, in place of `data`
    tasks: Annotated[dict[Annotated[str, AfterValidator(check_name)], Data], Field(min_length=1)] | None = None
    # the rows of a recipe of one task; a recipe with `tasks` has them there
    data: Data = Field(default=None)  # type: ignore[assignment]
    # the models whose outputs become the knowledge; trained one after another by all ranks
    teachers: list[Teacher] = []
    knowledge: Knowledge = Knowledge()  # which outputs of the teachers are stored, and how they are computed
    students: list[Student] = []  # the models that learn from labels and from the knowledge
    placement: Placement = Placement()  # which students train side by side on one rank
    search: Search | None = None  # stop the worst students before their end; left out: all train to their end
    # measure which tokens of texts students know at each epoch of their training; left out: not measured
    knowledge_points: KnowledgePoints | None = None
    launch: Launch = Launch()  # how `dtrain run` starts processes
    report: Report = Report()  # what the report holds
    _kept: Path | None = PrivateAttr(None)

    _name = field_validator("name")(check_name)

    @property
    def kept(self) -> Path | None:
        """A run folder to be used as it is, even if files that it was made from are gone; None: the files decide."""
        return self._kept

    def keep(self, folder: Path) -> None:
        """Use the run in `folder` as it is; see `kept`."""
        self._kept = folder

    @field_validator("output_dir")
    @classmethod
    def a_path(cls, value: str) -> str:
        if not value or "\0" in value:
            raise ValueError(f"must be a folder's path, found {value!r}")
        return value

    @model_validator(mode="after")
    def data_or_tasks(self) -> Recipe:
        if self.tasks is None:
            if "data" not in self.model_fields_set:
                raise ValueError("data: is missing")
            return self
        if "data" in self.model_fields_set:
            raise ValueError("tasks: not together with data, which is short for one task")
        for name, section in self.tasks.items():
            section.stands_at(f"tasks.{name}")
        if len(self.tasks) == 1:
            self.__dict__["data"] = next(iter(self.tasks.values()))  # set without counting as given
        elif NO_TASK in self.tasks:
            raise ValueError(
                f"tasks.{NO_TASK}: is what the folder of the text to pre-train on is called; choose another name"
            )
        return self

    @model_serializer(mode="wrap")
    def as_it_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write one of `tasks` and `data`, so that the resolved recipe can be read again."""
        values: dict[str, Any] = handler(self)
        values.pop("tasks" if self.tasks is None else "data", None)
        return values

    # --- one recipe of several tasks as several recipes of one -----------------------------------------

    @property
    def several(self) -> bool:
        """Whether it has more than one task."""
        return self.tasks is not None and len(self.tasks) > 1

    @property
    def task_names(self) -> list[str]:
        """The names of its tasks in order; for a single task, the empty name."""
        return list(self.tasks or ()) if self.several else [""]

    @property
    def task(self) -> str:
        """The name of the task that this is a view of; empty if it is the recipe itself."""
        return self._task

    @property
    def whole(self) -> Recipe:
        """The recipe that this is a view of, or itself."""
        return self._whole or self

    def tasks_of(self, member: Teacher | Student) -> list[str]:
        """The tasks that a model is for, as `task_names` has them."""
        return member.trained_on(self.whole.task_names)

    def of_task(self, name: str) -> Recipe:
        """The recipe of one task only: its rows as `data`, and the models that are for it; itself if there is one."""
        if not self.several:
            return self
        assert self.tasks is not None
        view = self.model_copy(
            update={
                "tasks": {name: self.tasks[name]},
                "data": self.tasks[name],
                "teachers": [teacher for teacher in self.teachers if name in self.tasks_of(teacher)],
                "students": [student.of_task(name) for student in self.students if name in self.tasks_of(student)],
            }
        )
        view._whole, view._task = self, name
        view.knowledge = self.knowledge.of_task(view.students, rules_of(view.data.task))
        return view

    def views(self) -> list[Recipe]:
        """The recipe of each task, in order; itself if it has one task."""
        return [self.of_task(name) for name in self.task_names]
