"""Fingerprints of a recipe's outputs: the identity of every output, known before the output exists.

An output is up to date when its folder says that it is complete for the fingerprint computed here. Fingerprints
depend on the recipe and the bytes of the files that it names, never on file dates. What cannot change a
result (names of run folders, checkpoints, number of processes) stays out of them. This module imports no torch, so
that a finished run is recognised in well under a second.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from dtrain.data.corpus import parts_to_cut
from dtrain.data.external import model_files, tokenizer_files
from dtrain.data.files import resolve_path
from dtrain.data.tokenizers import sides_reading, tasks_reading, tokenizer_name
from dtrain.errors import EveryStudentFailed
from dtrain.knowledge.format import damage
from dtrain.log import say
from dtrain.pretraining.corpus import corpus_files
from dtrain.pretraining.excluded import excluded_sources
from dtrain.pretraining.plain_text import plain_text_of
from dtrain.recipe.models import EncoderSpec, ExternalSpec, encoder_of
from dtrain.recipe.schema import Recipe
from dtrain.recipe.sides import side_of, vocabulary_of
from dtrain.recipe.training import Student, Teacher
from dtrain.runfolder import DONE, RunFolder, drop_damaged, file_fingerprint, fingerprint, is_done, read_json
from dtrain.stages import find_stage
from dtrain.tasks.corpus import source_files
from dtrain.tasks.rules import keys_of_others, rules_of

FORMAT = 2  # raise when a stage's output changes meaning; 1 was that of dtrain 0.1
# Keys added later: left out of fingerprints while they are empty, so that older models keep theirs.
_ADDED = {"tasks", "mixing", "metrics", "baseline", "keep_epochs", "reads", "domain_adversary"}
_NO_EFFECT = {"name", "task", "checkpoint_every", "keep_checkpoints", "grid", "sample", "parallel", "peers"}


class Plan:
    """Fingerprints of one recipe's outputs.

    A recipe of several tasks has a plan for each task (`tasks`), which gives the fingerprints that depend on rows.
    """

    def __init__(self, recipe: Recipe, files: dict[Path, str] | None = None) -> None:
        self.recipe = recipe
        self._files: dict[Path, str] = {} if files is None else files  # fingerprints of the files read so far

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.recipe.kept or Path(self.recipe.output_dir) / self.recipe.name, self.recipe.task)

    @cached_property
    def tasks(self) -> dict[str, Plan]:
        """The plan of each task by its name; this plan where there is only one task."""
        if not self.recipe.several:
            return {self.recipe.task: self}
        return {name: type(self)(self.recipe.of_task(name), self._files) for name in self.recipe.task_names}

    @cached_property
    def whole(self) -> Plan:
        """The plan of the whole recipe where this is the plan of one task; else this plan."""
        return type(self)(self.recipe.whole, self._files) if self.recipe.task else self

    def of(self, member: Teacher | Student) -> list[Plan]:
        """The plans of the tasks that a model is for."""
        return [self.whole.tasks[name] for name in self.recipe.tasks_of(member)]

    @cached_property
    def corpus(self) -> str:
        """Fingerprint of the pre-training tokens: files, texts kept out, words, normalisation, tokenizer."""
        spec = self.recipe.pretrain
        assert spec is not None
        model = [spec.model.type, spec.model.pretrained, spec.model.vocabulary, spec.model.vocabulary_size]
        return self._text(self.recipe, [*model, self._outside(spec.model)])

    def plain_text(self, student: Student) -> str:
        """Fingerprint of the tokens of the plain text that a student's phases read."""
        text = plain_text_of(self.recipe, student)
        assert text is not None
        if text.shared:
            return self.corpus
        with text.named():
            return self._text(text.recipe, [of.tokenizer(tokenizer_name(student)) for of in self.of(student)])

    def _text(self, recipe: Recipe, reader: list[Any]) -> str:
        """Fingerprint of the text of `recipe.pretrain` and of `reader`, what identifies its tokenizer."""
        spec = recipe.pretrain
        assert spec is not None
        section = spec.corpus.model_dump(mode="json", exclude={"separate", "exclude"})
        out = excluded_sources(recipe)
        inside = [path for _, source in corpus_files(spec.corpus) for path in source.files]
        if spec.corpus.dictionary:
            inside.append(resolve_path(spec.corpus.dictionary))
        return fingerprint(
            "corpus",
            FORMAT,
            section,
            [self._file(path) for path in inside],
            sorted([s.format, *([s.name] if s.format == "hub" else map(self._file, s.files))] for s in out),
            next(iter(self.tasks.values())).recipe.data.normalize.model_dump(mode="json"),
            reader,
            spec.seed,
            *(plan.data if parts_to_cut(plan.recipe.data) else None for plan in self.tasks.values()),
        )

    def pretraining(self, phase: int) -> str:
        """Fingerprint of the model at the end of a phase (from 0) of pre-training; later phases do not matter."""
        spec = self.recipe.pretrain
        assert spec is not None
        section = spec.model_dump(mode="json", exclude={"corpus", "phases"})
        phases = [p.model_dump(mode="json", exclude=_NO_EFFECT) for p in spec.phases[: phase + 1]]
        longest = max(p.max_length for p in spec.phases)  # how many positions a new BERT has
        return fingerprint("pretrain", FORMAT, self.corpus, spec.corpus.separate, section, phases, longest)

    @cached_property
    def data(self) -> str:
        """Fingerprint of the rows: their source files, columns, labels, splits and normalisation."""
        data = self.recipe.data
        # A tagger's rows are documents cut into pieces of `max_length`.
        apart = {"vocabulary", "workers"} | (set() if rules_of(data.task).tags else {"max_length"})
        section = data.model_dump(mode="json", exclude=apart | keys_of_others(data.task))
        files = [self._file(path) for path in source_files(data)]
        return fingerprint("rows", FORMAT, section, files, self.recipe.seed)

    def tokenizer(self, name: str) -> str:
        """Fingerprint of the rows that the tokenizer `name` encodes: `students`, or a member's own; perhaps of one side."""
        own, side = vocabulary_of(name), side_of(name)
        if not side:
            return self._encoded(own)
        return fingerprint(self._encoded(own), side, sides_reading(self.recipe, name))

    def _encoded(self, name: str) -> str:
        """Fingerprint of the rows as a tokenizer encodes them, whatever their side."""
        data = self.recipe.data
        if name == "students":
            vocabulary = data.vocabulary.model_dump(mode="json")
            file = self._file(resolve_path(data.vocabulary.file)) if data.vocabulary.file else None
            return fingerprint("tokenizer", self.data, data.max_length, vocabulary, file)
        model: Any = self._member(name).model
        if isinstance(model, ExternalSpec):
            files = tokenizer_files(resolve_path(model.folder))
            return fingerprint("tokenizer", self.data, data.max_length, self._contents(files))
        spec = encoder_of(model)
        assert spec is not None
        # A vocabulary that is not given is counted on the rows of every task that the member reads.
        return self._tokens(spec, [] if spec.given_tokenizer else tasks_reading(self.recipe, name))

    def _tokens(self, spec: EncoderSpec, tasks: list[str]) -> str:
        """Fingerprint of the rows as a transformer's tokenizer encodes them; the rows of `tasks` decide its vocabulary."""
        data = self.recipe.data
        parts = [spec.type, spec.pretrained, spec.vocabulary, spec.vocabulary_size, self._outside(spec), *spec.reading]
        if rules_of(data.task).tags:
            parts.append(data.vocabulary.min_count)
        others = [self.whole.tasks[task].data for task in tasks if task != self.recipe.task]
        return fingerprint("tokenizer", self.data, data.max_length, parts, *others)

    def _read_by(self, member: Teacher | Student) -> str:
        """Fingerprint of this task's rows as a model reads them."""
        own = member.parts.get(self.recipe.task, member) if isinstance(member, Student) else member
        spec = encoder_of(member.model)
        if own is member or spec is None or not spec.given_tokenizer:
            return self.tokenizer(tokenizer_name(own))
        tasks = self.recipe.tasks_of(member)
        return self._tokens(spec, [task for task in self.whole.recipe.task_names if task in tasks])

    def model(self, kind: str, name: str) -> str:
        """Fingerprint of a trained model (`kind` is 'teachers' or 'students'), or of a teacher that is taken as it is."""
        if self.recipe.task:
            return self.whole.model(kind, name)  # the model may be for other tasks, too
        member = next(m for m in getattr(self.recipe, kind) if m.name == name)
        if isinstance(member.model, ExternalSpec):
            files = model_files(resolve_path(member.model.folder))
            (of,) = self.of(member)
            return fingerprint(kind, FORMAT, of.tokenizer(tokenizer_name(member)), "given", self._contents(files))
        section = _section(member, "teachers")
        return self._trained(kind, member, section)

    def phase(self, name: str, number: int) -> str:
        """Fingerprint of a student at the end of a phase (from 0), whatever comes later; the last phase has the student's."""
        student = next(s for s in self.recipe.students if s.name == name)
        assert student.phases is not None
        if number == len(student.phases) - 1:
            return self.model("students", name)
        section = student.model_dump(mode="json", exclude=_NO_EFFECT | {"teachers", "phases", "metric"})
        section["phases"] = [phase.model_dump(mode="json") for phase in student.phases[: number + 1]]
        for key in ("keep_epochs", "reads"):
            if not section[key]:
                del section[key]
        return self._trained("students", student, section)

    def _plain_text(self, student: Student) -> list[Any]:
        """What decides the rows of a student's phases on plain text; empty if it has none."""
        if not any(phase.on_plain_text for phase in student.phases or []):
            return []
        masking = self.recipe.pretrain.masking.model_dump(mode="json") if self.recipe.pretrain else None
        return [self.plain_text(student), masking]

    def training(self, teacher: Teacher) -> str:
        """Fingerprint of a teacher's training; teachers that differ only in `stop_epoch` share it."""
        if teacher.source is not None:
            return self.model("teachers", teacher.name)
        section = _section(teacher, "stop_epoch")
        return self._trained("teachers", teacher, section)

    def _trained(self, kind: str, member: Teacher | Student, section: dict[str, Any]) -> str:
        teachers = sorted((t, self.knowledge(t)) for t in getattr(member, "teachers", None) or [])
        return fingerprint(
            kind,
            FORMAT,
            *(of._read_by(member) for of in self.of(member)),
            section,
            self._outside(member.model) + self._initial(member),
            teachers,
            self._shared(member),
            *(self._plain_text(member) if isinstance(member, Student) else []),
        )

    def _initial(self, member: Teacher | Student) -> list[str]:
        """Fingerprints of the teachers that a model starts from or has as its baseline, and of their weights."""
        names = member.model.begins_with
        if isinstance(member, Student):
            names += [name for teachers in member.measures.values() for name in teachers]
        found = []
        for name in names:
            weights = self.folder.model("teachers", name) / "model.safetensors"
            found += [self.model("teachers", name), *([self._file(weights)] if weights.is_file() else [])]
        return found

    @property
    def search(self) -> str | None:
        """Fingerprint of the search: which students it compares, and how; None without a search."""
        if self.recipe.search is None:
            return None
        students = [self.model("students", student.name) for student in self.recipe.students]
        return fingerprint("search", self.recipe.search.model_dump(mode="json"), students)

    def order(self, student: Student) -> int:
        """The seed of the order in which a student sees its rows; peers share it, since they share every batch."""
        assert student.seed is not None
        shared = self.recipe.placement.share_order or student.peers is not None
        return self.recipe.seed if shared else student.seed

    def _shared(self, member: Teacher | Student) -> list[Any]:
        """What a student shares with others and depends on: its order of rows, and its peers with their teachers."""
        if isinstance(member, Teacher):
            return []
        if member.peers is None:
            return [self.order(member)]
        peers = [student for student in self.recipe.students if student.peers == member.peers]
        sections = [_section(peer, "teachers") for peer in peers]
        taught = sorted({teacher for peer in peers for teacher in peer.teachers or []})
        return [self.order(member), peers.index(member), sections, [self.knowledge(teacher) for teacher in taught]]

    def knowledge(self, teacher: str) -> str:
        """Fingerprint of a teacher's stored outputs.

        They depend on the token budget, since the shape of a matrix product decides how it rounds, and on the present
        weights of the teacher, since training it again may give slightly different ones.
        """
        if self.recipe.task:
            return self.whole.knowledge(teacher)
        (of,) = self.of(next(member for member in self.recipe.teachers if member.name == teacher))
        section = of.recipe.knowledge.model_dump(mode="json")
        weights = self.folder.model("teachers", teacher) / "model.safetensors"
        made = self._file(weights) if weights.is_file() else None
        return fingerprint("knowledge", FORMAT, self.model("teachers", teacher), made, section)

    def evaluation(self, kind: str, name: str) -> str:
        members = [m for k, m in self.members() if (k, m.name) == (kind, name)]
        searches = [
            [of.recipe.knowledge.beam, of.recipe.knowledge.length_penalty]
            for member in members
            for of in self.of(member)
            if rules_of(of.recipe.data.task).writes
        ]
        asked = {m.annotated_by for m in members if isinstance(m, Teacher) and m.annotated_by}
        names = {tagger for tagger in asked if not self.whole.failure(tagger)}  # a failed one finds no annotations
        taggers = [self.whole.model(k, m.name) for k, m in self.whole.members() if m.name in names]
        return fingerprint("evaluation", FORMAT, self.model(kind, name), self.recipe.report.splits, *searches, *taggers)

    @cached_property
    def report(self) -> str:
        members = [
            (kind, m.name, self.evaluation(kind, m.name), self._result(kind, m.name)) for kind, m in self.members()
        ]
        exports = [file_fingerprint(path) for path in sorted(self.folder.export.glob("*/metrics.json"))]
        shown = [self.recipe.report.model_dump(mode="json"), self.recipe.name, members, *([exports] if exports else [])]
        if self.recipe.knowledge_points is not None:
            shown.append(self.points)
        return fingerprint("report", FORMAT, *shown)

    def points_of(self, student: Student) -> str:
        """Fingerprint of the knowledge points of a student at each of its epochs."""
        spec = self.recipe.knowledge_points
        assert spec is not None
        words = [self._file(resolve_path(spec.words))] if spec.words else []
        section = spec.model_dump(mode="json")
        return fingerprint("points", FORMAT, section, words, self.recipe.seed, self.model("students", student.name))

    @property
    def points(self) -> str:
        """Fingerprint of the knowledge points of all students in `with_epochs`."""
        return fingerprint("points", [[student.name, self.points_of(student)] for student in self.with_epochs()])

    def with_epochs(self) -> list[Student]:
        """The students that keep their epochs and were trained."""
        return [
            student
            for student in self.recipe.students
            if student.keep_epochs
            and is_done(self.folder.model("students", student.name), self.model("students", student.name))
        ]

    def members(self) -> list[tuple[str, Teacher | Student]]:
        """Every model of the recipe as (kind, member), teachers first."""
        return [("teachers", t) for t in self.recipe.teachers] + [("students", s) for s in self.recipe.students]

    def needed_teachers(self) -> list[str]:
        """Teachers whose stored outputs some student learns from, in recipe order."""
        used = {name for student in self.recipe.students for name in student.asks.stored}
        return [teacher.name for teacher in self.recipe.teachers if teacher.name in used]

    def stage_done(self, stage: str) -> bool:
        """Whether everything that `stage` would write is complete for exactly these inputs."""
        return find_stage(stage).done(self)

    def complete(self, stage: str) -> bool:
        """Whether `stage` can be left out: it is done, and nothing that it wrote has been damaged since."""
        return self.stage_done(stage) and find_stage(stage).whole(self)

    def corpus_prepared(self) -> bool:
        """Whether the text to pre-train on is there, as tokens."""
        return is_done(self.folder.data / "corpus", self.corpus)

    def pretrained(self) -> bool:
        """Whether the last phase's model is there, where the recipe pre-trains one."""
        spec = self.recipe.pretrain
        last = len(spec.phases) - 1 if spec else 0
        return spec is None or is_done(self.folder.pretrained(last), self.pretraining(last))

    def prepared(self) -> bool:
        """Whether the rows are there, as each tokenizer encodes them."""
        if self.recipe.several:
            return all(plan.prepared() for plan in self.tasks.values())
        data, names = self.folder.data, {tokenizer_name(member) for _, member in self.members()}
        return is_done(data / "rows", self.data) and all(
            is_done(data / "encoded" / name, self.tokenizer(name)) for name in names
        )

    def trained(self, kind: str) -> bool:
        """Whether all teachers, or all students, have a model; students that failed for good need none."""
        return all(
            is_done(self.folder.model(kind, m.name), self.model(kind, m.name))
            or (kind == "students" and self.diverged(m.name))
            for m in getattr(self.recipe, kind)
        )

    def models_are_whole(self, kind: str) -> bool:
        """Whether the weights of all teachers, or students, are as they were written; a damaged model is then not done."""
        whole = True
        for member in getattr(self.recipe, kind):
            damaged = drop_damaged(self.folder.model(kind, member.name))
            if damaged is not None:
                whole = False
                say(f"{kind[:-1]} {member.name}: {damaged} is damaged, so it is trained again")
        return whole

    def precomputed(self) -> bool:
        """Whether the outputs of every teacher that a student learns from are stored."""
        return all(is_done(self.folder.knowledge(name), self.knowledge(name)) for name in self.needed_teachers())

    def stores_are_whole(self) -> bool:
        """Whether the needed stores hold the very bytes that were written; reads them, at about 1 GB a second."""
        return not any(damage(self.folder.knowledge(name)) for name in self.needed_teachers())

    def all_evaluated(self) -> bool:
        """Whether every model has its scores."""
        return all(self.evaluated(kind, m.name) for kind, m in self.members())

    def points_counted(self) -> bool:
        """Whether the knowledge points of these models are there, where the recipe asks for them."""
        return self.recipe.knowledge_points is None or is_done(self.folder.points, self.points)

    def reported(self) -> bool:
        """Whether the report is of these models and scores."""
        return is_done(self.folder.report, self.report)

    def require_a_student(self) -> None:
        """Raise EveryStudentFailed if all students have failed for good."""
        names = [student.name for student in self.recipe.students]
        if names and all(self.diverged(name) for name in names):
            raise EveryStudentFailed(f"every student failed ({', '.join(sorted(names))})")

    def failure(self, student: str) -> dict[str, Any] | None:
        """The record of this student's failure for exactly these inputs, if it failed."""
        record = _read(self.folder.model("students", student) / "failed.json")
        same = record and record.get("fingerprint") == self.model("students", student)
        return record if same and record.get("search") in (None, self.search) else None

    def diverged(self, student: str) -> bool:
        """Whether this student failed for a reason for which a second try would fail, too."""
        return bool((self.failure(student) or {}).get("final"))

    def evaluated(self, kind: str, name: str) -> bool:
        if kind == "students" and self.diverged(name):
            return True
        record = _read(self.folder.model(kind, name) / "evaluation.json")
        return bool(record) and record.get("fingerprint") == self.evaluation(kind, name)

    def _result(self, kind: str, name: str) -> list[str]:
        """Fingerprints of the files from which the report describes a model."""
        files = [self.folder.model(kind, name) / file for file in ("evaluation.json", "metrics.json", "failed.json")]
        return [file_fingerprint(file) for file in files if file.is_file()]

    def _member(self, name: str) -> Teacher | Student:
        members: list[Teacher | Student] = [*self.recipe.whole.teachers, *self.recipe.whole.students]
        return next(member for member in members if member.name == name)

    def _file(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = file_fingerprint(path)
        return self._files[path]

    def _outside(self, spec: Any) -> list[str]:
        """Fingerprints of the files that a model section names; a hub model counts by its name, which is in the section."""
        vectors = getattr(spec, "vectors", None)
        spec = encoder_of(spec)
        found: list[str] = []
        for name in (vectors, getattr(spec, "source", None), getattr(spec, "vocabulary", None)):
            path = resolve_path(name) if name else None
            if path is None or not path.exists():
                continue
            found += self._contents(sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path])
        return found

    def _contents(self, files: list[Path]) -> list[str]:
        return [f"{path.name}:{self._file(path)}" for path in files]


class KeptPlan(Plan):
    """The plan of a run that is used as it is: the fingerprints in its folders, whatever became of the source files."""

    @cached_property
    def corpus(self) -> str:
        return _recorded(self.folder.data / "corpus")

    def pretraining(self, phase: int) -> str:
        return _recorded(self.folder.pretrained(phase))

    @cached_property
    def data(self) -> str:
        return _recorded(self.folder.data / "rows")

    def tokenizer(self, name: str) -> str:
        return _recorded(self.folder.data / "encoded" / name)

    def model(self, kind: str, name: str) -> str:
        return _recorded(self.folder.model(kind, name))

    def knowledge(self, teacher: str) -> str:
        return _recorded(self.folder.knowledge(teacher))

    def evaluation(self, kind: str, name: str) -> str:
        record = _read(self.folder.model(kind, name) / "evaluation.json")
        return str(record["fingerprint"]) if record else ""

    @property
    def points(self) -> str:
        return _recorded(self.folder.points)

    @property
    def search(self) -> str | None:
        record = _read(self.folder.root / "search.json") if self.recipe.search else None
        return str(record["fingerprint"]) if record else None


def _section(member: Teacher | Student, left_out: str) -> dict[str, Any]:
    """The keys of a member's section that decide its model, without `left_out`; teachers and files count separately."""
    values = member.model_dump(mode="json", exclude=_NO_EFFECT | {left_out, "annotated_by"})
    return {key: value for key, value in values.items() if value or key not in _ADDED}


def plan_of(recipe: Recipe) -> Plan:
    """The plan of a recipe, or of a run that is used as it is."""
    return Plan(recipe) if recipe.kept is None else KeptPlan(recipe)


def _recorded(folder: Path) -> str:
    """The fingerprint for which a folder is complete, or its model failed; empty where none is recorded."""
    record = _read(folder / DONE) or _read(folder / "failed.json")
    return str(record["fingerprint"]) if record else ""


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
