"""The plan of a recipe: what each way to train each model needs, what fits, and which config to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.knowledge.kinds import find_kind
from dtrain.planning.members import Member, members_of
from dtrain.planning.trial import Activations
from dtrain.planning.ways import GIB, PREFERRED, WAYS, Memory, memory, most_rows, room, sent
from dtrain.recipe import Recipe
from dtrain.recipe.models import ExternalSpec
from dtrain.recipe.training import Student
from dtrain.students.plan import MOST_FUSED
from dtrain.tasks.rules import rules_of

MILLION = 1_000_000


@dataclass(frozen=True)
class Gpus:
    """The GPUs that are planned for."""

    nodes: int
    each: int  # GPUs of a node
    memory: float  # bytes of a GPU

    @property
    def ranks(self) -> int:
        return self.nodes * self.each


@dataclass(frozen=True)
class Trained:
    """One way to train one model."""

    way: str
    checkpointing: bool
    memory: Memory
    rows: int  # in the recipe's micro-batch
    most: int  # rows in the largest micro-batch that fits
    sent: float  # bytes per rank and step
    how: str  # how the activations were found: 'tracked' or 'formula'

    @property
    def fits(self) -> bool:
        return self.most >= self.rows


def ways_of(member: Member, gpus: Gpus, only: str | None = None) -> list[Trained]:
    """Every way to train a model (or `only` one of them), with and without activation checkpointing."""
    free, found = room(gpus.memory), []
    kept = (False, True) if member.config is not None or member.pair is not None else (False,)
    known = {checkpointing: member.activations(checkpointing) for checkpointing in kept}
    ways = ["ddp"] if gpus.ranks == 1 else [only] if only else list(WAYS)  # one process has nothing to shard
    for way in ways:
        for checkpointing, each in known.items():
            found.append(_trained(member, way, checkpointing, each, gpus, free))
    return found


def _trained(member: Member, way: str, checkpointing: bool, each: Activations, gpus: Gpus, free: float) -> Trained:
    rows = member.micro_batch(gpus.ranks)
    how: dict[str, Any] = {
        "ranks": gpus.ranks,
        "optimizer": member.spec.optimizer.type,
        "precision": member.precision,
        "passes": member.passes,
    }
    return Trained(
        way,
        checkpointing,
        memory(way, member.shape, each.of(rows), **how),
        rows,
        most_rows(way, member.shape, each, free, **how),
        sent(way, member.shape, **how),
        each.how,
    )


def chosen(found: list[Trained], member: Member) -> Trained | None:
    """The recommended way; None if nothing fits.

    First choice is a way without offload that fits the recipe's micro-batch with the recipe's own setting of activation
    checkpointing; then activation checkpointing is tried, then a smaller micro-batch, then offload.
    """
    order = {way: number for number, way in enumerate(PREFERRED)}
    as_asked = member.spec.activation_checkpointing

    def rank(one: Trained) -> tuple[bool, bool, bool, int]:
        return (
            one.way.endswith("_offload"),
            not one.fits,
            one.checkpointing != as_asked,
            order.get(one.way, len(order)),
        )

    possible = [one for one in found if one.most >= 1 and (one.checkpointing or not as_asked)]
    return min(possible, key=rank, default=None)


def lines(recipe: Recipe, gpus: Gpus, rows: Mapping[str, int], only: str | None = None) -> list[str]:
    """The lines of the plan, as they are printed.

    Args:
        rows: the number of rows that the store will hold, by task; for a task that is left out, it is not known.
        only: the only config to plan for, by the name of its file; None: all of them.
    """
    told = [
        f"{recipe.name} on {gpus.nodes} x {gpus.each} GPUs of {gpus.memory / GIB:.0f} GB, of which "
        f"{room(gpus.memory) / GIB:.1f} may be used; GB of 2^30 bytes",
        "t: tracked on fake tensors of 2 and 4 layers, with lines through them; f: by formula",
    ]
    if gpus.ranks == 1 and only not in (None, "ddp"):
        told.append(f"on one GPU nothing is cut up or offloaded: {only} trains as ddp does")
    for section, name in (("pretrain", "pretrain"), ("teachers", "teacher")):
        alike: dict[str, list[Member]] = {}  # one table for models that differ only in their seed, for example
        for member in members_of(recipe, section):
            spec = member.spec
            rows_of_step = (member.rows, member.micro_batch(gpus.ranks), member.passes)
            by = (member.config, member.length, rows_of_step, spec.optimizer.type, member.precision)
            alike.setdefault(f"{by} {spec.model.model_dump_json()} {spec.activation_checkpointing}", []).append(member)
        for members in alike.values():
            names = ", ".join(member.spec.name for member in members)
            told += ["", *_trained_by_all(f"{name} {names}", members[0], gpus, only)]
    given = {t.name: t.model.folder for t in recipe.teachers if isinstance(t.model, ExternalSpec)}
    told += [f"teacher {name}: from {folder}, not trained; its store is not planned" for name, folder in given.items()]
    store = _store(recipe, rows)
    told += ["", *store] if store else []
    told += ["", *_students(recipe, gpus)] if recipe.students else []
    return told


def _trained_by_all(name: str, member: Member, gpus: Gpus, only: str | None) -> list[str]:
    """The table of the ways to train a model that all ranks train together, and the way that is recommended."""
    spec, shape = member.spec, member.shape
    found = ways_of(member, gpus, only)
    mark = "t" if found[0].how == "tracked" else "f"
    told = [
        f"{name}: {spec.model.type}, {shape.parameters / 1e6:,.1f} M parameters, {member.precision}, "
        f"{spec.optimizer.type}; {member.rows} rows a step, {found[0].rows} of {member.length} tokens in a micro-batch"
        + "".join(f"; assumed: {words}" for words in member.assumed),
        f"  {'':29}{'weights':>9}{'grads':>8}{'optim.':>8}{'buffers':>9}{'activ.':>8}{'peak':>8}      {'rows':>7}{'sent':>9}",
        f"  {'':29}{'f':>9}{'f':>8}{'f':>8}{'f':>9}{mark:>8}{mark + 'f':>8}      {'at most':>7}{'GB/step':>9}",
    ]
    for one in found:
        m = one.memory
        name = one.way + (" + checkpointing" if one.checkpointing else "")
        sizes = (m.weights, m.gradients, m.optimizer, m.buffers, m.activations, m.peak)
        figures = "".join(f"{size / GIB:>{width}.2f}" for size, width in zip(sizes, (6, 8, 8, 9, 8, 8), strict=True))
        told.append(f"  {name:32}{figures} {'fits' if one.fits else 'no':>4} {one.most:>7}{one.sent / GIB:>9.2f}")
    best = chosen(found, member)
    if best is None:
        told.append("  takes: none fits: more GPUs, larger ones, or a smaller teacher")
        return told
    words = f"  takes: launch.accelerate_config: {best.way}"
    if best.checkpointing != spec.activation_checkpointing:
        words += f", activation_checkpointing: {str(best.checkpointing).lower()}"
    if not best.fits:
        words += f", accumulation: {-(-member.rows // (gpus.ranks * best.most))}"
    return [*told, words]


def _store(recipe: Recipe, rows: Mapping[str, int]) -> list[str]:
    told = []
    for view in recipe.views():
        outputs = view.knowledge.outputs or ["logits"]
        size = 4 if view.knowledge.dtype == "float32" else 2
        read = {name for student in view.students for name in student.asks.stored}
        rules = rules_of(view.data.task)
        number = rules.logits == "number"
        for member in members_of(view, "teachers"):
            if view.students and member.spec.name not in read:
                continue  # what no student reads is not stored
            taken = 0  # bytes per row, for rows of the greatest length
            for name in outputs:
                kind = find_kind(name)
                if kind.scores is not None:  # each candidate's tokens, and its score
                    taken += 4 * (view.knowledge.candidates or view.knowledge.beam) * (member.length + 1)
                    continue
                labels = 1 if number else LABELS
                # With `top_k`: the k largest numbers, the class of each, and one number for the sum of all others.
                own = 2 * view.knowledge.top_k + 1 if kind.top_k and view.knowledge.top_k else labels
                if name == "features":
                    own = member.spec.model.feature_width or BASE_FEATURES
                taken += size * own * (member.length if kind.per_token else 1)
            count, of = (
                (rows[view.task], "") if view.task in rows else (MILLION, " a million rows (not known how many)")
            )
            told.append(
                f"store of {member.spec.name}: {count * taken / GIB:.3f} GB{of}: {', '.join(outputs)}, "
                f"{view.knowledge.dtype} (f{'' if number or rules.writes else f'; {LABELS} labels assumed'})"
            )
    return told


LABELS = 15
BASE_FEATURES = 768


def _students(recipe: Recipe, gpus: Gpus) -> list[str]:
    """One line for each group of students with the same model, rows, precision and teachers that run beside them."""
    told: dict[str, str] = {}
    teachers = {member.spec.name: member for member in members_of(recipe, "teachers")}
    for member in members_of(recipe, "students"):
        assert isinstance(member.spec, Student)
        each = member.activations(member.spec.activation_checkpointing)
        how: dict[str, Any] = {"ranks": 1, "optimizer": member.spec.optimizer.type, "precision": member.precision}
        one = memory("ddp", member.shape, each.of(member.micro_batch(1)), **how)
        online = [name for name in member.spec.asks.online if name in teachers]
        ranks = gpus.ranks if recipe.knowledge.sharded else 1
        taken = sum(_answering(teachers[name]) for name in online) / ranks
        beside = max(0, int((room(gpus.memory) - taken) / one.peak))
        key = f"{member.spec.model.model_dump_json()} {member.rows} {member.precision} {online}"
        mark = "t" if each.how == "tracked" else "f"
        told.setdefault(
            key,
            f"student {member.spec.name}: {member.spec.model.type}, {member.shape.parameters / 1e6:,.2f} M parameters: "
            f"{one.peak / GIB:.2f} GB ({mark}), {min(beside, MOST_FUSED)} beside each other on a GPU"
            + (f" (room for {beside}; groups are of {MOST_FUSED} at most)" if beside > MOST_FUSED else "")
            + (f", beside {taken / GIB:.2f} GB (f) of {', '.join(online)}, asked in training" if online else ""),
        )
    return list(told.values())


def _answering(teacher: Member) -> float:
    """Bytes of the weights of a teacher that runs beside students; those of its layers are kept in its precision."""
    shape = teacher.shape
    layers = shape.block * shape.layers
    return (4.0 if teacher.precision == "fp32" else 2.0) * layers + 4.0 * (shape.parameters - layers)


def unfit(recipe: Recipe, section: str, gpus: Gpus, only: str) -> list[str]:
    """Warnings about the models of a section that do not fit these GPUs with the way `only` to train them."""
    told = []
    for member in members_of(recipe, section):
        found = ways_of(member, gpus, only)
        asked = next(
            one for one in found if one.checkpointing == (member.spec.activation_checkpointing and len(found) > 1)
        )
        if not asked.fits:
            told.append(
                f"{section}.{member.spec.name}: {asked.rows} rows of {member.length} tokens a micro-batch take about "
                f"{asked.memory.peak / GIB:.1f} GB of GPUs of {gpus.memory / GIB:.0f} by {only}; at most {asked.most} rows "
                "fit: dtrain plan says which config, or accumulation, would do"
            )
    return told
