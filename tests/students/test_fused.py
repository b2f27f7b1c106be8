"""Students of one structure trained as one stacked model: each is what it would have become alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dtrain.losses import find_loss, loss_names
from dtrain.recipe.training import Student
from dtrain.students.ways import Fused
from dtrain.training.loop import Ended
from tests.students.conftest import SHAPES, Train, student

# Members that differ in everything that may differ; 13 steps an epoch, 52 in all.
DIFFERENT: list[dict[str, Any]] = [
    {"seed": 3},
    {"seed": 4, "optimizer": {"lr": 0.003, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6}},
    {"seed": 5, "clip": 0.05, "schedule": {"type": "cosine", "warmup": 7}},
    {"seed": 6, "clip": None, "schedule": {"type": "constant", "warmup": 0}, "epochs": 5},
    {"seed": 7, "optimizer": {"lr": 0.01, "modules": {"classifier": 0.05}}, "evaluate_every": 9},
]


def weights_of(ended: Ended) -> dict[str, torch.Tensor]:
    """The final ones, not the best."""
    return {name: tensor.clone() for name, tensor in ended.job.engine.bare.state_dict().items()}


def assert_close(fused: dict[str, Ended], alone: dict[str, Ended], limit: float = 1e-5) -> None:
    for name, one in fused.items():
        assert one.error is None
        assert one.position.step >= 50
        expected = weights_of(alone[name])
        for key, tensor in weights_of(one).items():
            apart = (tensor - expected[key]).norm() / expected[key].norm()
            assert apart < limit, (name, key, float(apart))


def assert_same(found: dict[str, Ended], expected: dict[str, Ended]) -> None:
    for name, one in found.items():
        for key, tensor in weights_of(one).items():
            assert torch.equal(tensor, weights_of(expected[name])[key]), (name, key)
        assert one.position.history == expected[name].position.history


def classification_losses() -> list[str]:
    """Those on logits and labels; the others need layers of their own, and are not stacked."""
    return [
        n for n in loss_names("classification") if set(find_loss(n).needs) <= {"logits", "labels", "teachers.logits"}
    ]


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
    """Beside other members with other losses, weights, temperatures and teachers."""
    taught = {"teachers": ["a", "b"]} if find_loss(loss).teacher_output else {}
    mixed = [{"type": "soft_targets", "temperature": 4.0, "weight": 0.3, "teachers": ["b"]}, {"type": "cross_entropy"}]
    students = [
        student("it", shape, losses=[{"type": loss}], evaluate_every=52, **taught),
        student("more", shape, seed=4, losses=[{"type": loss, "weight": 0.4}], evaluate_every=52, **taught),
        student("other", shape, seed=5, losses=mixed, evaluate_every=52, teachers=["a", "b"]),
    ]
    assert_close(train(students, Fused()), train(students, folder="alone"))


def test_dropout_is_the_very_same_on_a_cpu(train: Train) -> None:
    students = [student("a", dropout=0.5), student("b", seed=4, dropout=0.1), student("c", seed=5)]
    assert_close(train(students, Fused()), train(students, folder="alone"))


def test_scores_are_those_of_the_stack(train: Train, job: Any) -> None:
    """Also where scoring moves the model: a rank's device is `cpu:0`, and moving there makes a copy."""
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
    """A loss that is no number, or raises, from its n-th batch on."""

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
    """The rest go on bit for bit as without it, dropout on."""
    from dtrain.training.loop import in_turn

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


@pytest.mark.parametrize("ways", [(Fused, Fused), (Fused, None), (None, Fused)])
def test_stopped_and_continued(train: Train, ways: tuple[Any, Any]) -> None:
    """Checkpoints are each member's own: what was fused goes on alone, and the other way round."""
    from dtrain.errors import Stopped
    from dtrain.training.loop import in_turn

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
    """As after a kill between two members' checkpoints."""
    from dtrain.errors import Stopped

    class StopAt:
        reason = "test"

        def anywhere(self) -> bool:
            return True

    students: list[Student] = [student(n, seed=i) for i, n in enumerate("abc")]
    with pytest.raises(Stopped):
        train(students[:1], Fused(), stop=StopAt())
    assert_same(train(students, Fused()), train(students, Fused(), folder="undisturbed"))
