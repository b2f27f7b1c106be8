"""What of a recipe depends on other sections: defaults filled in, and checked across sections."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from pathlib import Path

from dtrain.losses import find_loss, loss_names
from dtrain.recipe.models import encoder_of, feature_width
from dtrain.recipe.schema import Knowledge, Recipe
from dtrain.recipe.training import LossSpec, Student, Teacher, WeightSchedule
from dtrain.recipe.values import Output
from dtrain.runfolder import RunFolder

PRETRAIN = "pretrain"  # as a member's `model.pretrained`: what the section of this name makes
Key = tuple[str | int, ...]
Place = Callable[[Key], str]  # file and line, or the override, of a key

MODELS = {
    "classification": (
        *("bert", "nezha", "bert_cnn", "multi_exit"),
        *("bilstm", "textcnn", "text_rcnn", "fasttext", "siamese"),
    ),
    "tagging": ("tagger", "idcnn"),
}
METRICS = {
    "classification": ("accuracy", "f1", "f1_weighted", "loss"),
    "tagging": ("f1", "f1_macro", "f1_weighted", "accuracy", "loss"),
}
OUTPUTS: dict[str, tuple[Output, ...]] = {
    "classification": ("logits", "features"),
    "tagging": ("emissions", "marginals"),
}


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
    if recipe.pretrain:
        _resolve_pretrain(recipe, place, problems)
    for section, number, member in numbered:
        _fill(member, recipe.seed, task)
        _check_task(member, (section, number), task, place, problems)
        if member.model.type == "siamese" and recipe.data.task != "pairs":
            where = f"{place((section, number, 'model', 'type'))}: {section}.{number}.model.type"
            problems.append(f"{where}: 'siamese' reads pairs, and data.task is {recipe.data.task!r}")
    for number, student in zip(students, recipe.students, strict=True):
        _resolve_student(student, ("students", number), recipe, names, task, place, problems)
    if not problems:
        _check_together(recipe, students, task, place, problems)
        _resolve_knowledge(recipe, task, place, problems)


def _check_together(recipe: Recipe, numbers: list[int], task: str, place: Place, problems: list[str]) -> None:
    """Students that learn from, or are compared with, each other."""
    sets: dict[str, list[tuple[int, Student]]] = {}
    for number, student in zip(numbers, recipe.students, strict=True):
        if student.peers is not None:
            sets.setdefault(student.peers, []).append((number, student))
    for name, members in sets.items():
        number, first = members[0]
        where = f"{place(('students', number, 'peers'))}: students.{number}.peers ({name})"
        if task == "tagging":
            problems.append(f"{where}: is not for task 'tagging'")
        if len(members) == 1:
            problems.append(f"{where}: {first.name} is alone; peers are two students or more with the same word")
        for number, student in members:
            where = f"{place(('students', number))}: students.{number} ({student.name})"
            if encoder_of(student.model) is not None:
                problems.append(f"{where}.model: peers read the same tokens, and {student.model.type} has its own")
            for key in ("patience", "adversarial", "parallel", "noisy"):
                if getattr(student, key) is not None:
                    problems.append(f"{where}.{key}: is not for peers, who make every step together")
            for key in ("rows", "epochs", "batch_size", "batch_tokens", "accumulation", "precision"):
                if getattr(student, key) != getattr(first, key):
                    problems.append(f"{where}.{key}: must be that of its peer {first.name}, as they share each batch")
    if recipe.search is not None:
        where = f"{place(('search',))}: search"
        if sets:
            problems.append(f"{where}: peers cannot be stopped one by one; take `peers` or `search` away")
        if len({student.metric for student in recipe.students}) > 1:
            problems.append(f"{where}: students must have one `metric` to be compared")
        last = recipe.search.epochs[-1]
        shortest = min(recipe.students, key=lambda student: student.epochs, default=None)
        if shortest is not None and last >= shortest.epochs:
            where = f"{place(('search', 'epochs'))}: search.epochs"
            problems.append(
                f"{where}: {last} is not before the end of student {shortest.name}, which trains {shortest.epochs} epochs "
                "(stopping it there would save nothing)"
            )


def _resolve_pretrain(recipe: Recipe, place: Place, problems: list[str]) -> None:
    """Its seed; members that start from what it makes know where that is."""
    spec = recipe.pretrain
    assert spec is not None
    spec.seed = recipe.seed if spec.seed is None else spec.seed
    if spec.model.pretrained == PRETRAIN:
        where = f"{place(('pretrain', 'model', 'pretrained'))}: pretrain.model.pretrained"
        problems.append(f"{where}: {PRETRAIN!r} is what this section makes; name another model, or leave it out")
    result = RunFolder(Path(recipe.output_dir) / recipe.name).pretrained(len(spec.phases) - 1)
    for member in (*recipe.teachers, *recipe.students):
        encoder = encoder_of(member.model)
        if encoder is not None and encoder.pretrained == PRETRAIN:
            encoder.take_from(str(result))


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
    if isinstance(member, Teacher) and member.source is not None:
        return  # data/given.py compares its folder with the data
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
    if task == "tagging" and isinstance(member, Teacher) and member.tolerance:
        problems.append(f"{place((*key, 'tolerance'))}: {dotted}.tolerance: is not for task 'tagging'")


def _resolve_student(
    student: Student, key: Key, recipe: Recipe, names: list[str], task: str, place: Place, problems: list[str]
) -> None:
    dotted = ".".join(map(str, key))
    known = len(problems)
    if student.peers is not None and student.teachers is None:
        student.teachers = []
    student.teachers = _chosen(student.teachers, names, f"{place((*key, 'teachers'))}: {dotted}.teachers", problems)
    if student.losses is None:
        student.losses = _default_losses(task, bool(student.teachers), student.model.type == "multi_exit")
    for loss in student.losses:
        loss.fill()
    has_transfer = bool(recipe.data.transfer or recipe.data.augment)
    if student.rows is None:
        student.rows = ["train", "transfer"] if student.teachers and has_transfer else ["train"]
    if "transfer" in student.rows and not has_transfer:
        problems.append(f"{place((*key, 'rows'))}: {dotted}.rows: 'transfer' needs data.transfer or data.augment")
    if student.noisy and (task == "tagging" or not student.teachers or "transfer" not in student.rows):
        where = f"{place((*key, 'noisy'))}: {dotted}.noisy"
        problems.append(f"{where}: needs teachers, rows with transfer, and a task that is not tagging")
    if student.noisy and student.noisy.token_noise and student.adversarial:
        where = f"{place((*key, 'adversarial'))}: {dotted}.adversarial"
        problems.append(
            f"{where}: not together with noisy.token_noise, by which its second pass would see other tokens"
        )
    if len(problems) == known:
        _check_losses(student, key, task, place, problems)
    if len(problems) == known:
        _check_widths(student, key, {teacher.name: teacher for teacher in recipe.teachers}, place, problems)


def _default_losses(task: str, taught: bool, exits: bool) -> list[LossSpec]:
    if exits:
        own = [LossSpec(type="exits_cross_entropy", weight=0.5), LossSpec(type="exits_distillation", weight=0.5)]
        return own + ([LossSpec(type="soft_targets", weight=0.5)] if taught else [])
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
    assert student.losses is not None and student.teachers is not None
    dotted = ".".join(map(str, key))
    problem = _weightless(student)
    if problem:
        problems.append(f"{place((*key, 'losses'))}: {dotted}.losses: {problem}")
    for number, loss in enumerate(student.losses):
        where = f"{place((*key, 'losses', number))}: {dotted}.losses.{number} ({loss.type})"
        found = find_loss(loss.type)
        if found.task != task:
            problems.append(f"{where}: is not for task {task!r} (allowed: {', '.join(loss_names(task))})")
        elif found.teacher_output is None:
            if loss.teachers or loss.weighting:
                problems.append(f"{where}: takes no teachers")
        elif not student.teachers:
            problems.append(f"{where}: needs a teacher, and the student has none")
        else:
            loss.teachers = _chosen(loss.teachers, student.teachers, f"{where}.teachers", problems)
            _check_weighting(loss, task, where, problems)
    of_exits = [loss.type for loss in student.losses if "exits" in find_loss(loss.type).needs]
    if (student.model.type == "multi_exit") != bool(of_exits):
        where = f"{place((*key, 'losses'))}: {dotted}.losses"
        problems.append(
            f"{where}: {of_exits[0]} is for model type multi_exit"
            if of_exits
            else f"{where}: every exit needs a loss: exits_cross_entropy or exits_distillation"
        )
    taught = any(find_loss(loss.type).teacher_output for loss in student.losses)
    if student.rows == ["transfer"] and not taught:
        problems.append(
            f"{place((*key, 'rows'))}: {dotted}.rows: transfer rows have no labels for {student.losses[0].type}"
        )


def _check_widths(student: Student, key: Key, teachers: dict[str, Teacher], place: Place, problems: list[str]) -> None:
    """Losses on features compare vectors of one width; what a pretrained model has is known in training only."""
    own = feature_width(student.model)
    for number, loss in enumerate(student.losses or []):
        if not {"features", "teachers.features"} <= set(find_loss(loss.type).needs):
            continue
        for name in loss.teachers or []:
            width = feature_width(teachers[name].model)
            if own is not None and width is not None and own != width:
                where = f"{place((*key, 'losses', number))}: {'.'.join(map(str, key))}.losses.{number} ({loss.type})"
                problems.append(
                    f"{where}: {student.name} has {own} features and its teacher {name} {width}; hints compare "
                    "features of one width (of a textcnn or bert_cnn: filters x number of widths)"
                )


def _weightless(student: Student) -> str | None:
    """When no term has a weight, so that there is nothing to learn from; or none that reaches all parameters."""
    terms = student.losses or []
    rows = ""
    if student.rows == ["transfer"]:  # which have no labels
        terms = [t for t in terms if not find_loss(t.type).hard]
        rows = " of losses that transfer rows have"
        if not terms:
            return None  # `rows` are what is wrong then, and refused
    if student.peers is None and all(loss.weight == 0 for loss in terms):
        return f"every weight{rows} is 0"
    # Schedules are monotonic and end at `until`: where several are 0 at once, they are at one of these moments.
    moments = {0.0} | {loss.weight.until for loss in terms if isinstance(loss.weight, WeightSchedule)}
    moments |= {_ends(loss) for loss in terms}
    for moment in sorted(moment for moment in moments if moment < 1.0):  # the last step comes before the end
        weighed = [t for t in terms if (t.weight.at(moment) if isinstance(t.weight, WeightSchedule) else t.weight)]
        if student.rows == ["transfer"]:
            weighed = [loss for loss in weighed if moment < _ends(loss)]
        needs = [set(find_loss(term.type).needs) for term in weighed]
        when = f"at {moment:g} of training" if moment else "at the beginning"
        if not weighed and student.peers is None:
            return f"every weight{rows} is 0 {when}; give one term a weight there (its start, end or until)"
        if student.parallel == "data" and weighed and all("features" in n and "logits" not in n for n in needs):
            return f"{when} only features have a weight, and with parallel: data every step must reach the classifier"
        if student.parallel == "data" and student.model.type == "multi_exit" and all("exits" not in n for n in needs):
            return (
                f"{when} no loss of exits has a weight, and with parallel: data every step must reach all classifiers"
            )
    return None


def _ends(loss: LossSpec) -> float:
    """The part of training at which the loss of a row without a label is 0 for good, whatever its weight."""
    return float(loss.parameters().get("until", 1.0)) if loss.type == "teacher_annealing" else 1.0


def _check_weighting(loss: LossSpec, task: str, where: str, problems: list[str]) -> None:
    weighting, names = loss.weighting, loss.teachers or []
    if weighting is None or not names:
        return
    if task == "tagging" and weighting.type not in ("average", "fixed"):
        problems.append(f"{where}.weighting: {weighting.type!r} is not for task {task!r} (allowed: average, fixed)")
    if weighting.type == "fixed" and set(weighting.weights) != set(names):
        problems.append(
            f"{where}.weighting.weights: must name its teachers, found {', '.join(weighting.weights)} (they are {', '.join(names)})"
        )
    if len(names) > 1 and weighting.limit * len(names) < 1:
        problems.append(
            f"{where}.weighting.limit: {weighting.limit:g} x {len(names)} teachers is under 1, which weights sum to"
        )


def _resolve_knowledge(recipe: Recipe, task: str, place: Place, problems: list[str]) -> None:
    """Store what the students' losses read; what the recipe lists must hold it."""
    knowledge: Knowledge = recipe.knowledge
    read: dict[str, str] = {}  # output -> the student that reads it
    for student in recipe.students:
        if student.noisy:
            read.setdefault("logits", f"{student.name} (noisy)")
        for loss in student.losses or []:
            for output in find_loss(loss.type).outputs_read(loss.weighting):
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
