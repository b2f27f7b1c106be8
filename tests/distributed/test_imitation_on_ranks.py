"""A teacher with annotations and students that imitate it, by alternating training or by gradient reversal: the same
result on one, two and three ranks, and sharded.

With 40 rows in batches of 9, the last batch has four. Dropout is off because each rank draws its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.runfolder import read_json
from tests.distributed.test_sharded_teachers import distance
from tests.processes import dtrain, ended, start, start_ranks
from tests.students.informed import recipe_of, write_rows

pytestmark = pytest.mark.distributed
TAGGER = {"type": "tagger", "embedding": 8, "lstm": 6, "dropout": 0.0}
GOLD, STAGES = {"type": "tag_likelihood"}, "prepare,finetune,precompute,distill,evaluate"
PHASES = [
    {"name": "classifier", "losses": [GOLD], "freeze": ["emissions", "crf"]},
    {"name": "discriminator", "losses": [{"type": "imitation"}], "train": []},
    {"name": "adversarial", "losses": [GOLD, {"type": "imitation", "discriminator_steps": 2}], "epochs": 2},
]
COMMON = {"task": "events", "parallel": "data", "teachers": ["informed"], "batch_size": 9, "epochs": 1}
COMMON |= {"accumulation": 2, "optimizer": {"lr": 0.01}}
STUDENTS: list[dict[str, Any]] = [
    {"name": "staged", **COMMON, "model": {**TAGGER, "classifier": "informed"}, "phases": PHASES},
    {"name": "turned", **COMMON, "model": TAGGER, "losses": [GOLD, {"type": "imitation", "mode": "reversal"}], "answers": "online"},
]  # fmt: skip


def write(folder: Path) -> None:
    folder.mkdir()
    write_rows(folder)
    recipe = recipe_of(folder, "r", launch={"timeout": 60})
    recipe["students"] = STUDENTS
    recipe["teachers"][0]["model"] = {**TAGGER, "privileged": {"size": 4}}
    recipe["teachers"][1]["model"] = TAGGER
    for teacher in recipe["teachers"]:
        teacher |= {"optimizer": {"lr": 0.01}, "epochs": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


WHOLE = ["students.0.accumulation=1", "students.1.accumulation=1"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one rank, without micro-batches."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    write(folder)
    words = ["-m", "dtrain", "run", "recipe.yaml", "launch.processes=1", *WHOLE, "--stages", STAGES]
    codes, told = ended([start(words, folder)])
    assert codes == [0], told
    return folder / "runs" / "r"


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_make_what_one_makes(one: Path, ranks: int) -> None:
    folder = one.parent.parent.parent / str(ranks)
    write(folder)
    codes, told = ended(start_ranks(["-m", "dtrain", "run", "recipe.yaml", "--stages", STAGES], folder, ranks=ranks))
    assert codes == [0] * ranks, told
    for student in STUDENTS:
        own = folder / "runs" / "r" / "students" / student["name"]
        assert distance(one / "students" / student["name"], own) < 1e-4
    before, after = (run / "teachers" / "informed" / "evaluation.json" for run in (one, folder / "runs" / "r"))
    for of in ("parts", "predicted"):
        assert read_json(before)[of].keys() == read_json(after)[of].keys()
    scores = [read_json(place)["predicted"]["parts"]["test"]["scores"] for place in (before, after)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_scores_with_given_and_with_predicted_annotations_are_the_same_bytes(one: Path, tmp_path: Path) -> None:
    """The same models are scored again by three ranks."""
    folder = one.parent.parent
    again = shutil.copytree(one, tmp_path / one.name)
    expected = {file.relative_to(one): file.read_bytes() for file in one.rglob("evaluation.json")}
    assert len(expected) == 4 and b"annotated_by" in expected[Path("teachers/informed/evaluation.json")]
    for file in expected:
        (again / file).unlink()
    words = ["-m", "dtrain", "evaluate", "recipe.yaml", *WHOLE, f"output_dir={tmp_path}"]
    codes, told = ended(start_ranks(words, folder, ranks=3))
    assert codes == [0] * 3, told
    assert {file.relative_to(again): file.read_bytes() for file in again.rglob("evaluation.json")} == expected


def test_cut_up_it_is_the_same_and_zero_refuses_turns(one: Path) -> None:
    folder = one.parent.parent.parent / "cut"
    write(folder)
    dtrain(
        "run", "recipe.yaml", "launch.processes=2", "launch.accelerate_config=fsdp2", "--stages", STAGES, folder=folder
    )
    for student in STUDENTS:
        own = folder / "runs" / "r" / "students" / student["name"]
        assert distance(one / "students" / student["name"], own) < 1e-4
    words = ["run", "recipe.yaml", "launch.processes=2", "launch.accelerate_config=zero2", "output_dir=other", "--stages", "prepare,finetune,precompute,distill"]  # fmt: skip
    code, told = ended([start(["-m", "dtrain", *words], folder)])
    assert (
        code == [2] and "imitation lets the model and its own weights learn in turn, which ZeRO steps together" in told
    )
