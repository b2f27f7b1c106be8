"""Students of one shape that are trained as one stacked model: each ends with the weights that it would have alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtrain.losses import find_loss, loss_names
from dtrain.models import build
from dtrain.recipe.training import Student
from dtrain.runtime.distributed import World
from dtrain.students.plan import why_not_stacked
from dtrain.students.stacked_bilstm import forward_bilstm
from dtrain.students.ways import Fused
from dtrain.training.loop import Ended, fit_all, in_turn
from tests.students.conftest import SHAPES, Train, assert_same, student, weights_of

# Members that differ in everything that may differ; 13 steps an epoch, 52 in all.
DIFFERENT: list[dict[str, Any]] = [
    {"seed": 3},
    {"seed": 4, "optimizer": {"lr": 0.003, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6}},
    {"seed": 5, "clip": 0.05, "schedule": {"type": "cosine", "warmup": 7}},
    {"seed": 6, "clip": None, "schedule": {"type": "constant", "warmup": 0}, "epochs": 5},
    {"seed": 7, "optimizer": {"lr": 0.01, "modules": {"classifier": 0.05}}, "evaluate_every": 9},
]


def assert_close(fused: dict[str, Ended], alone: dict[str, Ended], limit: float = 1e-5, steps: int = 50) -> None:
    for name, one in fused.items():
        assert one.error is None
        assert one.position.step >= steps
        expected = weights_of(alone[name])
        for key, tensor in weights_of(one).items():
            apart = (tensor - expected[key]).norm() / expected[key].norm()
            assert apart < limit, (name, key, float(apart))


def classification_losses() -> list[str]:
    """All losses except those of exits, those between the layers of transformers, and those with weights: students with
    these are not stacked.
    """
    losses = map(find_loss, loss_names("classification"))
    return [loss.name for loss in losses if "exits" not in loss.needs and not loss.inside and not loss.stateful]


def test_a_student_of_a_loss_with_weights_is_not_stacked() -> None:
    one = student("it", "textcnn", losses=[{"type": "cross_entropy"}, {"type": "domain_adversary"}])
    assert why_not_stacked(one, "fp32", "classification")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("shape", list(SHAPES)[:2])
def test_fused_is_alone(train: Train, shape: str, optimizer: str) -> None:
    students = []
    for number, changes in enumerate(DIFFERENT):
        values = {"optimizer": {"lr": 0.01}, **changes}
        values["optimizer"] = {"type": optimizer, **values["optimizer"]}
        students.append(student(f"s{number}", shape, **values))
    assert_close(train(students, Fused()), train(students, folder="alone"))


@pytest.mark.parametrize("shape", list(SHAPES)[2:])
def test_fused_is_alone_in_two_layers(train: Train, shape: str) -> None:
    students = [student("a", shape), student("b", shape, seed=4)]
    assert_close(train(students, Fused()), train(students, folder="alone"))


@pytest.mark.parametrize("loss", classification_losses())
@pytest.mark.parametrize("shape", ["textcnn", "bilstm"])
def test_every_loss(train: Train, shape: str, loss: str) -> None:
    """Together with members that have other losses, weights, temperatures and teachers; one epoch, whose last batch is
    short.
    """
    taught = {"teachers": ["a", "b"]} if find_loss(loss).teacher_output else {}
    beside = [] if "logits" in find_loss(loss).needs else [{"type": "cross_entropy", "weight": 0.1}]
    less = [{"type": loss, "weight": 0.4}, *beside]
    mixed = [{"type": "soft_targets", "temperature": 4.0, "weight": 0.3, "teachers": ["b"]}, {"type": "cross_entropy"}]
    students = [
        student("it", shape, losses=[{"type": loss}, *beside], epochs=1, **taught),
        student("more", shape, seed=4, losses=less, epochs=1, **taught),
        student("other", shape, seed=5, losses=mixed, epochs=1, teachers=["a", "b"]),
    ]
    assert not any(why_not_stacked(student, "fp32", "classification") for student in students)
    assert_close(train(students, Fused()), train(students, folder="alone"), steps=13)


WEIGHTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"type": "fixed", "weights": {"a": 2, "b": 1}},
    "confidence": {"type": "confidence"},
    "entropy": {"type": "entropy"},
    "gradient": {"type": "gradient", "limit": 0.7},
}


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
def test_every_weighting_of_teachers(train: Train, weighting: str) -> None:
    losses = [{"type": "soft_targets", "weighting": WEIGHTINGS[weighting]}]
    students = [
        student("it", losses=losses, evaluate_every=52, teachers=["a", "b"]),
        student("other", seed=5, evaluate_every=52),
    ]
    assert_close(train(students, Fused()), train(students, folder="alone"))


@pytest.mark.parametrize("weighting", ["confidence", "gradient"])
def test_weighed_hints(train: Train, weighting: str) -> None:
    losses = [{"type": "cross_entropy"}, {"type": "feature_hint", "weighting": WEIGHTINGS[weighting]}]
    students = [
        student("it", losses=losses, evaluate_every=52, teachers=["a", "b"]),
        student("other", seed=5, evaluate_every=52),
    ]
    assert_close(train(students, Fused()), train(students, folder="alone"))


def test_dropout_is_the_very_same_on_a_cpu(train: Train) -> None:
    students = [student("a", dropout=0.5), student("b", seed=4, dropout=0.1), student("c", seed=5)]
    assert_close(train(students, Fused()), train(students, folder="alone"))


def test_scores_are_those_of_the_stack(train: Train, job: Any) -> None:
    """Also if scoring moves the model: the device of a rank is `cpu:0`, and moving a model there makes a copy."""
    jobs = [job(student("a", "bilstm")), job(student("b", "bilstm", seed=4))]
    for one in jobs:
        own = one.evaluate
        one.evaluate = lambda model, own=own: own(model.to(torch.device("cpu", 0)))
    found = train([], Fused(), jobs=jobs)
    expected = train([student("a", "bilstm"), student("b", "bilstm", seed=4)], folder="alone")
    for name, one in found.items():
        losses, wanted = ([h["loss"] for h in e.position.history] for e in (one, expected[name]))
        assert losses == pytest.approx(wanted, rel=1e-5)
        for key, tensor in one.best.items():
            torch.testing.assert_close(tensor, expected[name].best[key], rtol=1e-4, atol=1e-6)


def test_micro_batches(train: Train) -> None:
    students = [student("a", accumulation=3), student("b", seed=4, accumulation=3)]
    assert_close(train(students, Fused()), train(students, folder="alone"))


class Spoiled:
    """A loss that is NaN, or raises an error, from its n-th batch on."""

    def __init__(self, at: int, error: Exception | None) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, own: Any) -> Any:
        def loss(*arguments: Any) -> Any:
            self.calls += 1
            total, sums, counts = own(*arguments)
            if self.calls >= self.at:
                if self.error:
                    raise self.error
                total = total * math.nan
            return total, sums, counts

        return loss


@pytest.mark.parametrize("error", [None, ValueError("too hot")])
@pytest.mark.parametrize(("shape", "fused"), [("textcnn", True), ("bilstm-2-max", True), ("textcnn", False)])
def test_a_failure_is_its_own(train: Train, job: Any, shape: str, error: Exception | None, fused: bool) -> None:
    """The other members continue bit for bit as without the failing one, with dropout."""
    students = [student(n, shape, seed=i, dropout=0.2, epochs=2) for i, n in enumerate("abc")]
    bad = student("bad", shape, seed=9, dropout=0.2, epochs=2)
    jobs = [job(s, folder="with") for s in students[:2]]
    jobs += [job(bad, folder="with", loss=Spoiled(17, error))]
    jobs += [job(s, folder="with") for s in students[2:]]
    found = train([], Fused() if fused else in_turn, jobs=jobs)
    failed = found.pop("bad")
    assert str(failed.error).startswith("too hot" if error else "bad: loss is nan at step 20")
    assert_same(found, train(students, Fused() if fused else in_turn, folder="without"))


def test_who_ends_early_leaves_and_the_rest_go_on_bit_for_bit(train: Train) -> None:
    patient = [student("a", epochs=6), student("b", seed=4, epochs=8)]
    early = student("early", seed=5, epochs=8, patience=1, optimizer={"lr": 1e-6})
    found = train([patient[0], early, patient[1]], Fused())
    ended = found.pop("early")
    assert ended.position.finished and ended.position.epoch == 2
    assert_same(found, train(patient, Fused(), folder="without"))


def held(jobs: list[Any]) -> int:
    """Bytes of the storages of all weights, gradients and moments, including memory that only a view keeps alive."""
    found = [p for job in jobs for p in job.engine.module.parameters()]
    found += [t for job in jobs for state in job.engine.optimizer.state.values() for t in state.values()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def test_who_left_holds_no_memory(job: Any) -> None:
    """One member ends, one fails, one waits for a comparison of the search; a view into the old stack would keep all of
    its memory.
    """
    jobs = [job(student("ends", epochs=1)), job(student("bad", seed=4), loss=Spoiled(17, ValueError("too hot")))]
    jobs += [job(student("waits", seed=5), pause=2), job(student("last", seed=6))]
    own = 3 * sum(p.numel() * p.element_size() for p in jobs[0].engine.module.parameters())
    names = []
    for number, one in enumerate(fit_all(list(jobs), Fused()), 1):
        names.append(one.job.title)
        if one.monitor is not None:
            one.monitor.close()
        if one.error is None and not one.paused:
            one.job.engine.close()  # as publishing does
        # The stack is the last one that still contained this member.
        assert held(jobs) <= 1.1 * own * (len(jobs) - number + 1) * (number < len(jobs))
    assert names == ["ends", "bad", "waits", "last"]


def test_who_waits_leaves_no_file_of_curves_open(job: Any) -> None:
    """In a search of many students each would hold a file, a thread and a progress bar until the end of the process."""
    ended = list(fit_all([job(student("waits"), pause=1), job(student("last", seed=4, epochs=1))]))
    files = {one.job.title: one.monitor.writer.file_writer for one in ended if one.monitor is not None}
    assert files["waits"] is None
    assert files["last"] is not None
    for one in ended:
        if one.monitor is not None:
            one.monitor.close()


@pytest.mark.parametrize("way", [Fused, None])
def test_time_is_shared_and_only_training_counts(job: Any, monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    """With a fake clock, a step takes one second for each member and an evaluation a thousand, and so does the
    processing of a member that has ended.
    """
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow(own: Any) -> Any:
        return lambda *arguments: (spend(1.0), own(*arguments))[1]

    monkeypatch.setattr("dtrain.engines.speed.time", SimpleNamespace(perf_counter=lambda: now))
    jobs = [job(student("a", epochs=1), loss=slow), job(student("b", seed=4), loss=slow)]
    jobs.append(job(student("c", seed=5, epochs=3), loss=slow))
    for one in jobs:
        one.evaluate = lambda model, own=one.evaluate: (spend(1000.0), own(model))[1]
    for ended in fit_all(jobs, way() if way else in_turn):
        ended.monitor.close()
        spend(1e6)
        assert ended.position.seconds == pytest.approx(ended.position.step)


@pytest.mark.parametrize("ways", [(Fused, Fused), (Fused, None), (None, Fused)])
def test_stopped_and_continued(train: Train, ways: tuple[Any, Any]) -> None:
    """Each member has its own checkpoints: a member of a stack can continue alone, and the other way round."""
    from dtrain.errors import Stopped

    class StopAt:
        reason = "test"
        asked = 0

        def anywhere(self) -> bool:
            StopAt.asked += 1
            return StopAt.asked == 4

    before, after = (way() if way else in_turn for way in ways)
    students = [student("a", dropout=0.3), student("b", seed=4, optimizer={"type": "adamw", "lr": 0.02})]
    with pytest.raises(Stopped, match="at step 20 of 52"):
        train(students, before, stop=StopAt())
    again = train(students, after)
    undisturbed = train(students, Fused(), folder="undisturbed")
    if ways == (Fused, Fused):
        assert_same(again, undisturbed)
    assert_close(again, undisturbed)


def test_members_behind_catch_up(train: Train) -> None:
    """As after a kill between the checkpoints of two members."""
    from dtrain.errors import Stopped

    class StopAt:
        reason = "test"

        def anywhere(self) -> bool:
            return True

    students: list[Student] = [student(n, seed=i) for i, n in enumerate("abc")]
    with pytest.raises(Stopped):
        train(students[:1], Fused(), stop=StopAt())
    assert_same(train(students, Fused()), train(students, Fused(), folder="undisturbed"))


def test_float32_is_float32_in_convolutions_too(world: World) -> None:
    """Otherwise a GPU would round the inputs of convolutions, but not those of a stack's matrix products."""
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


class Casts(TorchDispatchMode):
    """Counts how many tensors of a given shape are cast."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default and tuple(arguments[0].shape) == self.shape:
            self.count += 1
        return function(*arguments, **(options or {}))


def test_in_bf16_a_weight_is_rounded_once_and_its_gradients_are_added_in_float32() -> None:
    """As with one cast in each time step, where autograd adds the gradients after they were cast back."""
    torch.manual_seed(0)
    spec = student("a", "bilstm").model
    models: Any = [build(spec, vocabulary=30, labels=["x", "y"], pad_id=0) for _ in range(2)]
    named = [dict(model.named_parameters()) for model in models]
    weights = {n: torch.stack([own[n].detach() for own in named]).requires_grad_() for n in named[0]}
    ids, mask = torch.randint(2, 30, (9, 9)), torch.ones(9, 9, dtype=torch.int64)
    found = {}
    for way in ("once", "each step"):
        random = [torch.Generator() for _ in models]
        with pytest.MonkeyPatch.context() as patch, Casts((4, 8, 32)) as casts, torch.autocast("cpu", torch.bfloat16):
            if way == "each step":
                patch.setattr("dtrain.students.stacked_bilstm._half_of", lambda weight: None)
            logits, _ = forward_bilstm(models, weights, ids, mask, random)
        assert casts.count == (1 if way == "once" else 9)
        found[way] = [logits, *torch.autograd.grad(logits.float().square().sum(), list(weights.values()))]
    for once, each in zip(found["once"], found["each step"], strict=True):
        assert torch.equal(once, each)


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "bilstm", "embedding": 11, "hidden": 9},
        {"type": "bilstm", "embedding": 3, "hidden": 5, "layers": 2, "pooling": "max"},
        {"type": "textcnn", "embedding": 7, "filters": 5, "widths": [2, 3]},
    ],
)
def test_bits_do_not_depend_on_who_is_left(train: Train, shape: dict[str, Any]) -> None:
    """A member alone, one of two and one of three, in odd sizes for which products of a single matrix and of several
    round differently.
    """
    three = [student(name, model={**shape, "dropout": 0.2}, seed=n, epochs=1) for n, name in enumerate("abc")]
    expected = train(three, Fused(), folder="three")
    for count in (2, 1):
        found = train(three[:count], Fused(), folder=str(count))
        assert_same(found, {name: expected[name] for name in found})


@pytest.mark.parametrize(("hidden", "rows"), [(9, 13), (5, 5), (9, 27), (16, 3)])
def test_products_begin_alike_for_every_member(hidden: int, rows: int) -> None:
    """For rows whose matrices would begin at different alignments in memory, with which the kernels of some CPUs round
    differently.
    """
    spec = student("a", model={"type": "bilstm", "embedding": 11, "hidden": hidden}).model
    models: Any = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(build(spec, vocabulary=40, labels=["x", "y", "z"], pad_id=0))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (rows, 7), generator=draw)
    mask = (torch.arange(7) < torch.randint(1, 8, (rows, 1), generator=draw)).long()

    def gradients(count: int) -> dict[str, torch.Tensor]:
        stacked = [dict(model.named_parameters()) for model in models[:count]]
        weights = {name: torch.stack([one[name].detach() for one in stacked]).requires_grad_() for name in stacked[0]}
        random = [torch.Generator().manual_seed(seed) for seed in range(count)]
        logits, _ = forward_bilstm(models[:count], weights, ids, mask, random)
        assert logits.shape == (count, rows, 3)
        found = torch.autograd.grad(logits.square().sum(), list(weights.values()))
        return dict(zip(weights, found, strict=True))

    three, two = gradients(3), gradients(2)
    for name, found in two.items():
        assert torch.equal(found, three[name][:2]), name
