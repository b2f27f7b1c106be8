"""Which students are trained together: a case for every rule."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.recipe.schema import Placement
from dtrain.recipe.training import Student
from dtrain.students.plan import MOST_FUSED, Machine, TrainingGroup, describe, plan_groups
from tests.students.conftest import student

BERT = {"type": "bert", "size": "tiny"}


def plan(
    students: list[Student],
    device: str = "cuda",
    ranks: int = 1,
    task: str = "classification",
    recipe: list[Student] | None = None,
    **placement: Any,
) -> list[TrainingGroup]:
    machine = Machine(ranks, device, lambda s: "fp32" if s.precision == "auto" else s.precision)
    section = Placement(**placement)
    return plan_groups(
        students, section, machine, recipe=recipe or students, task=lambda s: task,
        order=lambda s: 0 if section.share_order else s.seed or 0, cost=lambda s: float(s.epochs),
    )  # fmt: skip


def named(groups: list[TrainingGroup]) -> set[tuple[str, ...]]:
    return {tuple(sorted(group.names)) for group in groups}


def test_members_may_differ_in_what_a_stack_holds_a_member() -> None:
    students = [
        student("a"),
        student("b", seed=4, dropout=0.5, epochs=7, clip=None, patience=2),
        student("c", optimizer={"lr": 0.3, "weight_decay": 0.5, "modules": {"classifier": 1.0}}),
        student("d", losses=[{"type": "soft_targets", "temperature": 9}], teachers=["t"]),
        student("e", schedule={"type": "cosine", "warmup": 0.5}),
    ]
    (group,) = plan(students)
    assert (group.way, group.why, set(group.names)) == ("fused", "", set("abcde"))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": "bilstm"},
        {"model": {"type": "textcnn", "embedding": 9}},
        {"batch_size": 8},
        {"batch_size": None, "batch_tokens": 50},
        {"accumulation": 2},
        {"rows": ["train", "transfer"]},
        {"optimizer": {"type": "sgd"}},
        {"precision": "bf16"},
    ],
)
def test_what_keeps_students_apart(changes: dict[str, Any]) -> None:
    assert named(plan([student("a"), student("b"), student("c", **changes)])) == {("a", "b"), ("c",)}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_who_has_mates_is_stacked_whoever_is_left(device: str) -> None:
    """Otherwise the last bits of its weights would depend on whether another member had ended, failed, or moved to
    another rank.
    """
    students = [student("a"), student("b", seed=4), student("c", "bilstm")]
    for left, ways in (
        ("abc", {"a": "fused", "b": "fused", "c": "alone"}),
        ("b", {"b": "fused"}),
        ("c", {"c": "alone"}),
    ):
        for ranks in (1, 2, 9):
            waiting = [s for s in students if s.name in left]
            groups = plan(waiting, device, ranks, recipe=students, fuse="always")
            assert {name: group.way for group in groups for name in group.names} == ways
    assert (
        plan(students[2:], device, recipe=students, fuse="always")[0].why == "no other student can be stacked with it"
    )


def test_own_orders_keep_seeds_apart() -> None:
    students = [student("a", seed=1), student("b", seed=2)]
    assert named(plan(students)) == {("a", "b")}
    assert named(plan(students, share_order=False)) == {("a",), ("b",)}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": BERT}, "bert has no stacked form"),
        ({"optimizer": {"type": "lamb"}}, "lamb has no stacked form"),
        ({"adversarial": {"type": "fgm"}}, "fgm takes a pass of its own"),
        ({"precision": "fp16"}, "fp16 has a loss scale of its own"),
    ],
)
def test_what_cannot_be_stacked_goes_on_streams_or_alone(changes: dict[str, Any], why: str) -> None:
    students = [student(name, **changes) for name in "abcdef"]
    groups = plan(students)
    assert {(group.way, group.why) for group in groups} <= {("streams", why), ("alone", why)}
    assert max(len(group.students) for group in groups) <= 4 if "model" not in changes else True
    assert {(g.way, g.why, len(g.students)) for g in plan(students, "cpu", fuse="always")} == {("alone", why, 1)}


HINT = {"type": "feature_hint"}


@pytest.mark.parametrize(
    ("losses", "way"),
    [
        ([HINT], "alone"),
        ([HINT, {"type": "cross_entropy", "weight": {"start": 0, "end": 1, "shape": "step", "until": 0.5}}], "alone"),
        ([HINT, {"type": "soft_targets", "weight": {"start": 1}}], "alone"),
        ([HINT, {"type": "cross_entropy", "weight": 0.0}], "alone"),
        ([HINT, {"type": "cross_entropy", "weight": 0.1}], "fused"),
        ([HINT, {"type": "soft_targets", "weight": {"start": 1, "end": 0.1}}], "fused"),
        ([{"type": "teacher_annealing"}], "fused"),
    ],
)
def test_a_stack_s_classifier_has_a_gradient_in_every_step(losses: list[dict[str, Any]], way: str) -> None:
    groups = plan([student(name, losses=losses, teachers=["t"]) for name in "ab"], "cpu", fuse="always")
    assert {group.way for group in groups} == {way}
    assert way == "fused" or groups[0].why == "its losses leave the classifier out at times"


def test_a_cpu_places_and_does_not_fuse_unless_told_to() -> None:
    students = [student(name) for name in "abc"]
    assert {(group.way, len(group.students)) for group in plan(students, "cpu")} == {("alone", 1)}
    assert "no faster on a CPU" in plan(students, "cpu")[0].why
    assert [group.way for group in plan(students, "cpu", fuse="always")] == ["fused"]
    assert {group.way for group in plan(students, "cuda", fuse="never")} == {"alone"}


def test_every_rank_has_work_and_no_stack_is_too_large() -> None:
    students = [student(f"s{n}") for n in range(40)]
    for ranks, pieces in ((1, 3), (2, 3), (8, 8), (100, 40)):
        groups = plan(students, ranks=ranks)
        assert len(groups) == pieces
        assert sorted(name for group in groups for name in group.names) == sorted(s.name for s in students)
        assert max(len(group.students) for group in groups) <= MOST_FUSED


def test_longest_first_and_all_ranks_before() -> None:
    students = [student("short", epochs=1), student("all", epochs=2, parallel="data"), student("long", epochs=9)]
    groups = plan(students, "cpu", ranks=2)
    assert [group.names for group in groups] == [["all"], ["long"], ["short"]]
    told = describe(groups, 2)
    assert told[0] == "plan: 3 students in 3 groups on 2 ranks, longest first"
    assert describe(groups[1:2], 1)[0] == "plan: 1 student in 1 group on 1 rank"
    assert "1. all ranks: all: by all ranks" in told[1]
    assert "2. rank 0: long: alone (not stacked: it is no faster on a CPU)" in told[2]
    assert "3. rank 1: short" in told[3]


def test_peers_stay_together() -> None:
    students = [
        student("a", peers="x"),
        student("b", "bilstm", peers="x"),
        student("c", peers="y"),
        student("d", peers="y"),
    ]
    groups = plan(students, ranks=4)
    assert named(groups) == {("a", "b"), ("c", "d")}
    assert {group.way for group in groups} == {"peers"}
