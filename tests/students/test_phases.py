"""Phases of a student: each starts from the weights that the one before kept, can be stopped and continued, and appears
in the report.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from dtrain.data import EncodedSplit, PreparedData, tokenizer_name, training_batches
from dtrain.errors import DtrainError, InputError
from dtrain.knowledge.reader import StoreReader
from dtrain.models import build, load
from dtrain.plan import Plan
from dtrain.recipe import Recipe
from dtrain.recipe.training import Student
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import evaluate, report
from dtrain.students.phases import check_sharding, places
from dtrain.students.search import score_until
from dtrain.training import loop
from dtrain.training.state import TrainState
from tests.students.phased import GOLD, HINT, SOFT, STUDENT, plan_of, run, write_rows

STEPS = {"hint": 8, "soft": 12, "gold": 9}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phases")
    write_rows(root)
    return root


@pytest.fixture(scope="module")
def plan(root: Path, world: World) -> Plan:
    """An undisturbed run of a student with three phases."""
    return run(world, root, "whole", STUDENT)


def the_student(plan: Plan) -> Student:
    (found,) = (student for student in plan.recipe.students if student.name == "s")
    return found


def weights(plan: Plan) -> list[dict[str, torch.Tensor]]:
    """The weights at the end of each phase."""
    return [load_file(place.model / "model.safetensors") for place in places(plan.folder, the_student(plan))]


def metrics(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = read_json(plan.folder.model("students", "s") / "metrics.json")
    return found


def history(plan: Plan) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(plan.folder.model("students", "s") / "history.json")
    return found


def untrained(plan: Plan) -> torch.nn.Module:
    student, data = the_student(plan), PreparedData.open(plan.folder)
    tokenizer = tokenizer_name(student)
    torch.manual_seed(student.seed or 0)
    return build(
        student.model, vocabulary=data.vocabulary(tokenizer), labels=data.labels, pad_id=data.pad_id(tokenizer)
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_phase_does_not_train_stays(plan: Plan) -> None:
    before = untrained(plan).state_dict()
    hint, soft, gold = weights(plan)
    assert torch.equal(hint["classifier.weight"], before["classifier.weight"])  # features do not depend on it
    assert not torch.equal(hint["embedding.weight"], before["embedding.weight"])
    assert torch.equal(soft["embedding.weight"], hint["embedding.weight"])  # frozen by name
    assert not torch.equal(soft["classifier.weight"], hint["classifier.weight"])
    assert not torch.equal(gold["embedding.weight"], soft["embedding.weight"])
    folders = [place.model for place in places(plan.folder, the_student(plan))]
    sizes = [read_json(folder / "metrics.json").get("trained_parameters") for folder in folders]
    embedding, classifier = before["embedding.weight"].numel(), 2 * 4 + 2
    whole = sum(tensor.numel() for tensor in before.values())
    assert sizes == [whole - classifier, whole - embedding, None]


def test_one_phase_is_a_student_without_phases(root: Path, world: World) -> None:
    plain = {**{key: value for key, value in GOLD.items() if key != "name"}, "model": STUDENT["model"], "batch_size": 8}
    students = [{"name": "s", **plain}, {**STUDENT, "phases": [GOLD]}]
    plans = [run(world, root, f"one-{number}", student) for number, student in enumerate(students)]
    (without,) = [load_file(plans[0].folder.model("students", "s") / "model.safetensors")]
    assert same(without, weights(plans[1])[0])
    logged = [[{k: v for k, v in entry.items() if k != "phase"} for entry in history(plan)] for plan in plans]
    assert logged[0] == logged[1]
    one, other = (metrics(plan) for plan in plans)
    assert {name for name in other if name not in one} == {"phases"}


def test_phases_are_trainings_one_after_another(root: Path, world: World) -> None:
    """The second phase is computed by hand: a plain loop of torch's AdamW from the weights of a student that was
    trained separately.
    """
    model = {**STUDENT["model"], "dropout": 0.0}
    schedule = {"type": "constant", "warmup": 0}
    student = {"name": "s", "model": model, "batch_size": 8, "optimizer": {"lr": 0.02}, "schedule": schedule}
    first = {"losses": [{"type": "cross_entropy"}], "rows": ["train"], "epochs": 2}
    second = {
        "name": "two",
        "rows": ["train", "transfer"],
        "losses": [{"type": "soft_targets"}],
        "epochs": 2,
        "keep": "last",
    }
    by_itself = run(world, root, "by-itself", {**student, **first})
    phased = run(world, root, "by-phases", {**student, "phases": [{"name": "one", **first}, second]})
    start = by_itself.folder.model("students", "s")
    assert same(load_file(start / "model.safetensors"), weights(phased)[0])

    data = PreparedData.open(phased.folder)
    rows = EncodedSplit.concat([data.part(part, "students") for part in ("train", "transfer")])
    teacher = StoreReader.open(phased.folder.knowledge("t"))
    found = load(start).train()
    matrices, vectors = ([p for p in found.parameters() if (p.ndim > 1) == whether] for whether in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    # The same kernel as in training: others round differently, and AdamW divides by the roots of tiny moments.
    optimizer = torch.optim.AdamW(groups, lr=0.02, fused=True)
    for epoch in range(2):
        for batch in training_batches(rows.lengths, 1, epoch, batch_size=8):  # the recipe's seed 0 + 1
            logits = found(**rows.collate(batch)).logits
            target = (teacher.read("logits", rows.ids[batch]) / 2).softmax(1)
            value = functional.kl_div((logits / 2).log_softmax(1), target, reduction="sum") * 4 / len(batch)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(found.parameters(), 1.0)
            optimizer.step()
    for name, tensor in weights(phased)[1].items():
        assert torch.allclose(tensor, found.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize(("phase", "step"), [("hint", 3), ("soft", 4), ("soft", 6), ("gold", 5)])
def test_stopped_in_a_phase_and_continued(
    root: Path, world: World, plan: Plan, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    """Stopped by an error in the middle of an epoch and at its end; the next run continues from the last checkpoint."""
    name = f"stopped-{phase}-{step}"
    train_step, made = loop.train_step, []

    def failing(state: TrainState) -> None:
        made.append((state.job.title, state.position.step))
        if phase in state.job.title and state.position.step == step:
            raise RuntimeError("too hot")
        train_step(state)

    with monkeypatch.context() as patch, pytest.raises(DtrainError, match="every student failed"):
        patch.setattr(loop, "train_step", failing)
        run(world, root, name, STUDENT)
    del made[:]
    with monkeypatch.context() as patch:
        patch.setattr(
            loop, "train_step", lambda state: (made.append((state.job.title, state.position.step)), train_step(state))
        )
        stopped = run(world, root, name, STUDENT)
    assert made[0] == (f"student s, phase {1 + list(STEPS).index(phase)} ({phase})", step)
    assert all(same(one, other) for one, other in zip(weights(stopped), weights(plan), strict=True))
    assert history(stopped) == history(plan)
    assert counts(metrics(stopped)) == counts(metrics(plan))
    assert not stopped.folder.checkpoints("students").exists()


def counts(value: Any) -> Any:
    """The metrics without measured times."""
    if isinstance(value, dict):
        return {key: counts(inner) for key, inner in value.items() if "second" not in key}
    return [counts(inner) for inner in value] if isinstance(value, list) else value


def test_killed_between_two_phases(root: Path, world: World, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed after a phase was published and before its checkpoints were removed."""
    stopped = run(world, root, "between", STUDENT)
    first, second, last = places(stopped.folder, the_student(stopped))
    for place in (second, last):
        shutil.rmtree(place.model)
    left = first.checkpoints / "step-00000008"
    left.mkdir(parents=True)
    capsys.readouterr()
    run(world, root, "between", STUDENT)
    assert "phase 1 (hint): complete, nothing to do" in capsys.readouterr().out
    assert not left.exists()
    assert all(same(one, other) for one, other in zip(weights(stopped), weights(plan), strict=True))


def test_a_change_of_a_phase_leaves_those_before_it(
    root: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run(world, root, "changed", STUDENT)
    capsys.readouterr()
    changed = run(world, root, "changed", {**STUDENT, "phases": [HINT, SOFT, {**GOLD, "epochs": 1}]})
    told = capsys.readouterr().out
    assert [f"phase {number}" in told and f"phase {number} ({name}): complete" in told
            for number, name in enumerate(STEPS, 1)] == [True, True, False]  # fmt: skip
    assert metrics(changed)["phases"][-1]["steps"] == 3
    whole = run(world, root, "anew", {**STUDENT, "phases": [HINT, SOFT, {**GOLD, "epochs": 1}]})
    assert same(weights(changed)[-1], weights(whole)[-1])


def test_epochs_and_steps_are_counted_over_all_phases(plan: Plan) -> None:
    found = metrics(plan)
    assert [phase["name"] for phase in found["phases"]] == list(STEPS)
    assert [phase["steps"] for phase in found["phases"]] == list(STEPS.values())
    assert [phase["kept"] for phase in found["phases"]] == ["last", "best", "best"]
    assert found["steps"] == sum(STEPS.values())
    logged = history(plan)
    assert [entry["step"] for entry in logged if entry["split"] == "valid"] == [4, 8, 14, 20, 23, 26, 29]
    assert [entry["epoch"] for entry in logged if entry["split"] == "valid"] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry["phase"] for entry in logged if entry["split"] == "valid"] == [
        *["hint"] * 2,
        *["soft"] * 2,
        *["gold"] * 3,
    ]
    best = next(entry for entry in logged if entry["split"] == "valid" and entry["step"] == found["best_step"])
    assert best["epoch"] == found["best_epoch"]
    assert best["loss"] == found["loss"] == found["phases"][-1]["scores"]["loss"]


def test_the_last_weights_or_the_best(root: Path, world: World) -> None:
    """With a learning rate that makes the loss rise, the best weights are the first ones."""
    phase = {**GOLD, "optimizer": {"lr": 3.0}, "clip": None, "metric": "loss", "schedule": {"type": "constant"}}
    kept = {}
    for keep in ("best", "last"):
        found = run(
            world, root, f"keep-{keep}", {**STUDENT, "phases": [{**phase, "keep": keep}, {**GOLD, "name": "end"}]}
        )
        (first, _), losses = metrics(found)["phases"], [e["loss"] for e in history(found)[:6] if e["split"] == "valid"]
        kept[keep] = first["epoch"], losses
    (best, losses), (last, _) = kept["best"], kept["last"]
    assert best == 1 + int(np.argmin(losses)) < last == 3


def test_tensorboard_sees_every_phase(root: Path, world: World, plan: Plan) -> None:
    place = plan.folder.tensorboard("students", "s")
    for number, (name, steps) in enumerate(STEPS.items(), 1):
        curves = EventAccumulator(str(place / f"{number}-{name}"))
        curves.Reload()
        points = [point.step for point in curves.Scalars("valid/accuracy")]
        assert points[-1] == steps, name
        assert curves.Scalars("train/loss")[-1].step == steps
    table = EventAccumulator(str(place))
    table.Reload()
    assert "valid_best/accuracy" in table.Tags()["scalars"]

    run(world, root, "renamed", {key: value for key, value in STUDENT.items() if key != "phases"})
    found = run(world, root, "renamed", {**STUDENT, "phases": [GOLD]})
    scalars = EventAccumulator(str(found.folder.tensorboard("students", "s"))).Reload().Tags()["scalars"]
    assert {scalar.split("/")[0] for scalar in scalars} == {"valid_best"}  # the earlier curves have been removed


def test_a_search_compares_students_in_their_phases(root: Path, world: World, plan: Plan) -> None:
    """The search compares after epochs in the middle of the first phase and at the end of the second; a student that
    continues ends as it would alone.
    """
    phases = [{**GOLD, "name": "zero", "epochs": 2}, SOFT, GOLD]
    grid = {"phases.0.optimizer.lr": [0.001, 0.05, 0.1]}
    student = {**STUDENT, "metric": "loss", "phases": phases, "grid": grid}
    found = run(world, root, "searched", student, search={"epochs": [1, 4], "keep": 0.5})
    alone = run(world, root, "not-searched", student)
    rungs = read_json(found.folder.root / "search.json")["rungs"]
    assert [(rung["epoch"], len(rung["scores"]), len(rung["kept"])) for rung in rungs] == [(1, 3, 2), (4, 2, 1)]
    (winner,) = rungs[1]["kept"]
    for name in rungs[0]["scores"]:
        folder = found.folder.model("students", name)
        assert (folder / "failed.json").exists() == (name != winner)
        logged = read_json(alone.folder.model("students", name) / "history.json")
        for rung in rungs:
            if name in rung["scores"]:
                assert rung["scores"][name] == score_until(logged, "loss", rung["epoch"])
    one, other = (plan.folder.model("students", winner) / "model.safetensors" for plan in (found, alone))
    assert one.read_bytes() == other.read_bytes()


def test_the_report_shows_every_phase(world: World, plan: Plan) -> None:
    for stage in (evaluate, report):
        stage.run(plan.recipe, world, plan.folder)
    page = (plan.folder.report / "report.md").read_text(encoding="utf-8")
    table = page.split("## Phases of students")[1]
    for phase in metrics(plan)["phases"]:
        assert f"| s | {phase['name']} | {', '.join(phase['rows'])} | {', '.join(phase['losses'])} |" in table
    assert "![training objective of each phase](phases.png)" in table
    assert (plan.folder.report / "phases.png").exists()
    assert "<h2>Phases of students</h2>" in (plan.folder.report / "report.html").read_text(encoding="utf-8")
    card = (plan.folder.model("students", "s") / "README.md").read_text(encoding="utf-8")
    assert (
        "- phases: hint (transfer, feature_hint), soft (train and transfer, cross_entropy and soft_targets), gold ("
        in card
    )


def test_zero_in_16_bits_has_no_exact_copy_of_what_a_phase_freezes(root: Path) -> None:
    zero: Any = SimpleNamespace(device=torch.device("cpu"), sharding=SimpleNamespace(kind="zero"))
    ddp: Any = SimpleNamespace(device=torch.device("cpu"), sharding=SimpleNamespace(kind="ddp"))

    def recipe(**changes: Any) -> Recipe:
        return plan_of(root, "zero", {**STUDENT, "parallel": "data", "precision": "bf16", **changes}).recipe

    with pytest.raises(InputError, match=r"students\.s\.phases\.0: freezes weights, which ZeRO in bf16 would round"):
        check_sharding(recipe(), zero)
    with pytest.raises(InputError, match=r"students\.s\.phases\.0: freezes weights"):
        check_sharding(recipe(phases=[SOFT, GOLD]), zero)
    for fine in ({"precision": "fp32"}, {"phases": [GOLD]}, {"parallel": None}):
        check_sharding(recipe(**fine), zero)
    check_sharding(recipe(), ddp)
