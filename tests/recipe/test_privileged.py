"""Recipes with annotations for teachers, and students that imitate: what is refused, and what decides an identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runtime.distributed import World
from dtrain.runtime.sharding import Sharding
from dtrain.stages.check import check_inputs
from dtrain.students.phases import check_sharding
from tests.students.informed import TAGGER, recipe_of, write_rows

IMITATION = {"type": "imitation", "teachers": ["informed"]}
STUDENT = {"name": "s", "losses": [{"type": "tag_likelihood"}, IMITATION]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("recipes")
    write_rows(found)
    return found


def load(root: Path, *overrides: str, **student: Any) -> Any:
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_of(root, "r", {**STUDENT, **student})), encoding="utf-8")
    return load_recipe(str(path), list(overrides))


REFUSED = [
    ("students.0.model.privileged={size: 4}", "students.0.model.privileged", "is for teachers: a student reads the text alone"),
    ("tasks.events.columns.privileged=null", "teachers.0.model.privileged", "name their column in tasks.events.columns.privileged"),
    ("teachers.0.model.privileged={size: 0}", "teachers.0.model.privileged.size", "greater than 0"),
    ("teachers.0.model.privileged={width: 3}", "teachers.0.model.privileged.width", "unknown key (allowed: size)"),
    ("teachers.0.annotated_by=argument", "teachers.0.annotated_by", "did you mean 'arguments'? (allowed: arguments, s)"),
    ("teachers.0.annotated_by=informed", "teachers.0.annotated_by", "informed reads annotations itself (allowed: arguments, s)"),
    ("teachers.1.annotated_by=s", "teachers.1.annotated_by", "is for a teacher that reads annotations"),
    ("teachers.1.model.classifier=informed", "teachers.1.model.classifier", "is for students"),
    ("students.0.model.classifier=inform", "students.0.model.classifier", "did you mean 'informed'? (allowed: informed)"),
    ("students.0.model={type: tagger, lstm: 5, classifier: informed}", "students.0.model.classifier", "reads 12 features of a character, and the student has 10"),
    ("students.0.model={type: tagger, lstm: 6, crf: false, classifier: informed}", "students.0.model.crf", "must be that of informed, with whose classifier it begins: true"),
    ("students.0.model.lstm=5", "students.0.losses.1 (imitation)", "s has 10 features of a character and its teacher informed 12"),
    ("students.0.model={type: idcnn, filters: 13}", "students.0.losses.1 (imitation)", "s has 13 features of a character"),
    ("teachers.0.model={type: tagger, encoder: {type: bert, layers: 1, hidden: 8, heads: 2}, lstm: null, privileged: {size: 5}}", "students.0.losses.1 (imitation)", "s has 12 features of a character and its teacher informed 13"),
    ("students.0.losses.1.mode=turns", "students.0.losses.1.mode", "'alternating' or 'reversal'"),
    ("students.0.losses.1.discriminator_steps=0", "students.0.losses.1.discriminator_steps", "greater than 0"),
    ("students.0.losses.1.strength=-1", "students.0.losses.1.strength", "greater than 0"),
    ("students.0.teachers=[]", "students.0.losses.1 (imitation)", "needs a teacher"),
    ("students.0.phases=[{name: p, losses: [{type: tag_likelihood}, {type: imitation, hidden: 5}]}, {name: q, losses: [{type: imitation}, {type: tag_likelihood}]}]", "students.0.phases.1 (q).losses.0 (imitation).hidden", "128, but it goes on with the weights of phase 'p', where hidden is 5"),
    ("students.0.phases=[{name: p, train: [], losses: [{type: tag_likelihood}]}, {name: q}]", "students.0.phases.0 (p).train", "[] trains the weights of losses alone, and none of these losses has some"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key", "reason"), REFUSED)
def test_what_is_refused(root: Path, override: str, key: str, reason: str) -> None:
    student = {"losses": None} if "phases" in override else {}
    with pytest.raises(InputError) as caught:
        load(root, override, **student)
    (problem,) = [problem for problem in caught.value.problems if key in problem]
    assert reason in problem


def test_only_head_of_features_needs_more_where_ranks_train_together(root: Path) -> None:
    with pytest.raises(InputError, match="only features have a weight, and with parallel: data"):
        load(root, "students.0.parallel=data", losses=[IMITATION])


def test_a_tagger_of_other_entities_cannot_stand_in(root: Path) -> None:
    recipe = load(root, "teachers.0.annotated_by=s")  # which finds triggers
    with pytest.raises(InputError, match=r"teachers.informed.annotated_by: s finds burn, hit, which are no annotations \(allowed: where, who\)"):  # fmt: skip
        check_inputs(recipe)
    check_inputs(load(root))


def test_who_annotates_decides_the_scores_and_not_the_model(root: Path) -> None:
    with_it, without = (Plan(load(root, *changes)) for changes in ([], ["teachers.0.annotated_by=null"]))
    assert with_it.model("teachers", "informed") == without.model("teachers", "informed")
    assert with_it.evaluation("teachers", "informed") != without.evaluation("teachers", "informed")
    other = Plan(load(root, "teachers.1.epochs=7"))
    assert other.evaluation("teachers", "informed") != with_it.evaluation("teachers", "informed")
    assert other.evaluation("students", "s") == with_it.evaluation("students", "s")


def test_scores_are_found_once_more_when_a_tagger_that_failed_is_there(root: Path) -> None:
    plan = Plan(load(root, "teachers.0.annotated_by=s"))
    before = plan.evaluation("teachers", "informed")
    place = plan.folder.model("students", "s")
    place.mkdir(parents=True)
    failed = place / "failed.json"
    failed.write_text(json.dumps({"fingerprint": plan.model("students", "s"), "reason": "no memory"}), encoding="utf-8")
    try:
        without = plan.evaluation("teachers", "informed")
        assert without == Plan(load(root, "teachers.0.annotated_by=null")).evaluation("teachers", "informed") != before
    finally:
        failed.unlink()
    assert plan.evaluation("teachers", "informed") == before


def test_a_student_depends_on_whose_classifier_it_begins_with(root: Path) -> None:
    alone = {"teachers": [], "losses": [{"type": "tag_likelihood"}], "model": {**TAGGER, "classifier": "informed"}}
    one, other = (Plan(load(root, *changes, **alone)) for changes in ([], ["teachers.0.epochs=7"]))
    assert one.model("students", "s") != other.model("students", "s")


def test_zero_cannot_step_in_turn(root: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(root, "students.0.parallel=data")
    check_sharding(recipe, world)
    monkeypatch.setattr(world, "sharding", Sharding("zero"))
    with pytest.raises(InputError, match="students.s: imitation lets .* learn in turn, which ZeRO steps together"):
        check_sharding(recipe, world)
    check_sharding(load(root, "students.0.parallel=data", "students.0.losses.1.mode=reversal"), world)
