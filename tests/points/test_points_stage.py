"""The stage `points` and its place in the report, on students of a few rows: whole stages in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dtrain.errors import InputError, Stopped
from dtrain.plan import Plan
from dtrain.points.measure import measure
from dtrain.recipe import load_recipe
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, evaluate, points, prepare, report
from dtrain.stages.check import check_inputs
from dtrain.training import loop
from dtrain.training.state import TrainState

CNN = {"type": "textcnn", "embedding": 8, "filters": 4, "widths": [1, 2]}
SECTION = {"keywords": "words", "rows": 6, "steps": 3, "samples": 2}
FIRST = {"name": "first", "epochs": 2, "losses": [{"type": "cross_entropy"}]}
SECOND = {"name": "second", "epochs": 1, "losses": [{"type": "cross_entropy"}]}
STUDENTS = [
    {"name": "plain", "model": CNN, "epochs": 3, "batch_size": 8, "checkpoint_every": 2, "keep_epochs": True,
     "grid": {"seed": [1, 2]}, "optimizer": {"lr": 0.05}},
    {"name": "phased", "model": {"type": "bert", "layers": 1, "hidden": 8, "heads": 2, "vocabulary_size": 100},
     "batch_size": 8, "keep_epochs": True, "phases": [FIRST, SECOND]},
    {"name": "other", "model": CNN, "epochs": 1},
]  # fmt: skip


def recipe_of(root: Path, name: str, students: Any = STUDENTS, **sections: Any) -> dict[str, Any]:
    data = {part: f"{root}/{part}.jsonl" for part in ("train", "valid")}
    values = {"data": {**data, "vocabulary": {"min_count": 1}}, "students": students, "knowledge_points": SECTION}
    return {"name": name, "output_dir": f"{root}/runs", "report": {"latency": False}, **values, **sections}


def plan_of(root: Path, name: str, *overrides: str, **sections: Any) -> Plan:
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe_of(root, name, **sections)), encoding="utf-8")
    return Plan(load_recipe(str(path), list(overrides)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("points")
    for part, count in (("train", 16), ("valid", 12)):
        with (root / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                word = ("球赛", "股票")[number % 2]
                text = "的了在"[: number % 3 + 1] + word + "了"
                words = "" if number % 4 == 3 else f"{word},没有"  # a text without a foreground
                file.write(json.dumps({"text": text, "label": word, "words": words}, ensure_ascii=False) + "\n")
    return root


@pytest.fixture(scope="module")
def plan(root: Path, world: World) -> Plan:
    plan = plan_of(root, "run")
    check_inputs(plan.recipe)
    for stage in (prepare, distill, evaluate, points, report):
        stage.run(plan.recipe, world, plan.folder)
    return plan


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_students_keep_the_weights_of_each_epoch(plan: Plan) -> None:
    folder = plan.folder
    assert names(folder.root / "epochs") == ["phased", "plain-seed1", "plain-seed2"]
    assert names(folder.epochs("phased")) == [f"000{number}.safetensors" for number in range(4)]
    last = load_file(folder.epochs("phased") / "0003.safetensors")
    for name, tensor in load_file(folder.model("students", "phased") / "model.safetensors").items():
        assert last.keys() >= {name}
        assert tensor.shape == last[name].shape
    began, ended = (load_file(folder.epochs("plain-seed1") / f"000{n}.safetensors") for n in (0, 3))
    assert not torch.equal(began["embedding.weight"], ended["embedding.weight"])


def test_what_the_stage_writes(plan: Plan) -> None:
    found = read_json(plan.folder.points / "points.json")["students"]
    assert set(found) == {"plain-seed1", "plain-seed2", "phased"}
    for name, own in found.items():
        assert [entry["epoch"] for entry in own["epochs"]] == [0, 1, 2, 3]
        assert own["epochs"][0]["path"] == 0 < own["epochs"][1]["path"] < own["epochs"][3]["path"]
        assert own["texts"] == 6
        shown = own["examples"][0]
        assert "".join(token["text"] for token in shown) == "的球赛了"  # of the first row, without special tokens
        assert [token["foreground"] for token in shown] == [False, True, True, False]
        best = read_json(plan.folder.model("students", name) / "metrics.json")["best_epoch"]
        assert own["end"] == best
    assert list(plan.folder.tensorboard("points", "phased").glob("events*"))


def test_the_report_shows_groups_of_seeds(plan: Plan) -> None:
    page = (plan.folder.report / "report.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| plain |", "| phased |"))]
    assert any("±" in line for line in rows)
    assert {"points.png", "points_texts.png"} <= set(names(plan.folder.report))
    html = (plan.folder.report / "report.html").read_text()
    assert '<span class="front" style="background: rgb(31 111 209 / ' in html
    assert plan.stage_done("points") and plan.stage_done("report")


def test_what_is_measured_is_not_measured_again(plan: Plan, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after some epochs, it goes on with the others and comes to the same bytes; another setting starts anew."""
    expected = (plan.folder.points / "points.json").read_bytes()
    lost = plan.folder.points / "phased" / "0002.json"
    lost.write_text(lost.read_text()[:-9])  # a file that is no record
    measured = []
    monkeypatch.setattr(points, "measure", lambda *args: measured.append(args) or measure(*args))
    points.run(plan.recipe, world, plan.folder)
    assert len(measured) == 1
    assert (plan.folder.points / "points.json").read_bytes() == expected
    recipe = plan.recipe.model_copy(deep=True)
    assert recipe.knowledge_points is not None
    recipe.knowledge_points.share = 0.2
    assert not Plan(recipe).stage_done("points")
    assert Plan(recipe).stage_done("distill")


def test_a_request_to_stop_is_heard_between_epochs(plan: Plan, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop:
        reason = "test"

        def agreed(self) -> bool:
            return True

    (plan.folder.points / "phased" / "0001.json").unlink()
    monkeypatch.setattr(world, "stop", Stop())
    with pytest.raises(Stopped, match="before epoch 1 of student phased; the same command continues"):
        points.run(plan.recipe, world, plan.folder)
    monkeypatch.undo()
    points.run(plan.recipe, world, plan.folder)


def test_a_training_that_was_stopped_keeps_the_same_epochs(
    plan: Plan, root: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainState, "asks_to_stop", property(lambda self: self.position.step % 3 == 0))
    monkeypatch.setattr(loop, "ASK_SECONDS", 1e9)
    again = plan_of(root, "stopped")

    class Stop:
        reason = "test"
        times = 0

        def anywhere(self) -> bool:
            Stop.times += 1
            return Stop.times % 2 == 1

        def agreed(self) -> bool:
            return False

    prepare.run(again.recipe, world, again.folder)
    monkeypatch.setattr(world, "stop", Stop())
    for _ in range(30):
        try:
            distill.run(again.recipe, world, again.folder)
            break
        except Stopped:
            continue
    else:
        pytest.fail("never done")
    assert Stop.times > 4
    for name in ("plain-seed1", "phased"):
        for path in plan.folder.epochs(name).iterdir():
            assert path.read_bytes() == (again.folder.epochs(name) / path.name).read_bytes(), path


def test_epochs_that_are_gone(plan: Plan, root: Path, world: World, tmp_path: Path) -> None:
    moved = tmp_path / "epochs"
    plan.folder.epochs("phased").rename(moved)
    try:
        with pytest.raises(
            InputError, match=r"epochs/phased: does not hold .*; remove .*students/phased and run distill"
        ):
            points.run(plan.recipe, world, plan.folder)
    finally:
        moved.rename(plan.folder.epochs("phased"))


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"students": STUDENTS[2:]}, "knowledge_points: no student keeps its epochs; give those to be measured keep_epochs: true"),
        ({"knowledge_points": {"rows": 4}}, "knowledge_points.keywords: name the column"),
        ({"knowledge_points": {"keywords": "words", "words": "list.txt"}}, "words: not together with keywords"),
        ({"knowledge_points": {**SECTION, "rows": 1}}, "knowledge_points.rows"),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(root: Path, sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as refused:
        plan_of(root, "refused", **sections)
    (line,) = refused.value.problems
    assert problem in line
    assert "refused.yaml" in line


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"keywords": "nowhere"}, "knowledge_points.keywords: .*valid.jsonl:1: has no column 'nowhere' .found: text, label, words."),
        ({"words": "/nowhere.txt"}, "knowledge_points.words: /nowhere.txt: no such file"),
        ({"keywords": "words", "part": "test"}, "knowledge_points.part: 'test' has no rows"),
    ],
)  # fmt: skip
def test_files_that_do_not_have_what_the_section_names(root: Path, section: dict[str, Any], problem: str) -> None:
    found = plan_of(root, "unfit", knowledge_points=section)
    with pytest.raises(InputError, match=problem):
        check_inputs(found.recipe)


def test_words_that_no_text_holds(plan: Plan, root: Path, world: World) -> None:
    (root / "list.txt").write_text("没有\n\n", encoding="utf-8")
    recipe = plan.recipe.model_copy(deep=True)
    recipe.knowledge_points = recipe.knowledge_points.model_copy(
        update={"keywords": None, "words": str(root / "list.txt")}
    )  # type: ignore[union-attr]
    with pytest.raises(InputError, match="knowledge_points: 0 of 12 valid rows hold some word of .*list.txt"):
        points.run(recipe, world, plan.folder)
