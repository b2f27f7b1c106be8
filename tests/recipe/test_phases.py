"""Phases of a student in a recipe: what they take from it, what is refused, and that a resolved recipe says all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from dtrain.stages.check import check_inputs

ONE: dict[str, Any] = {"name": "one", "rows": ["transfer"], "losses": [{"type": "feature_hint"}], "epochs": 2}
TWO: dict[str, Any] = {"name": "two"}
BERT = {"type": "bert", "size": "tiny", "vocabulary_size": 500}


def load(folder: Path, student: dict[str, Any], **sections: Any) -> Recipe:
    values = {
        "name": "r",
        "output_dir": str(folder / "runs"),
        "data": {"train": "package:samples/train.jsonl", "transfer": "package:samples/transfer.jsonl"},
        "teachers": [{"name": "t", "model": {"type": "textcnn"}}],
        "students": [{"name": "s", "model": {"type": "textcnn"}, **student}],
        **sections,
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_recipe(str(path))


def refused(folder: Path, student: dict[str, Any], **sections: Any) -> str:
    with pytest.raises(InputError) as found:
        check_inputs(load(folder, student, **sections))
    assert not (folder / "runs").exists()
    return "\n".join(found.value.problems)


def test_what_a_phase_leaves_out_is_the_students(tmp_path: Path) -> None:
    two = {**TWO, "batch_tokens": 256, "clip": None, "optimizer": {"lr": 0.01}}
    student = {"phases": [ONE, two], "batch_size": 8, "patience": 2, "epochs": 5, "seed": 2**31 - 1, "metric": "f1"}
    (found,) = load(tmp_path, student).students
    first, second = found.trainings
    assert (first.rows, first.epochs, first.batch_size, first.clip) == (["transfer"], 2, 8, 1.0)
    assert (second.rows, second.epochs, second.batch_size, second.batch_tokens) == (["train", "transfer"], 5, None, 256)
    assert (second.clip, second.optimizer.lr, first.optimizer.lr) == (None, 0.01, 0.001)
    assert [loss.type for loss in second.losses or []] == ["cross_entropy", "soft_targets"]  # as without phases
    assert [(phase.keep, phase.patience) for phase in found.phases or []] == [("last", None), ("best", 2)]
    assert (first.seed, second.seed) == (2**31 - 1, 0)
    assert (first.metric, second.metric, found.metric) == ("f1", "f1", "f1")
    assert found.all_epochs == 7
    assert [loss.type for loss in found.all_losses] == ["feature_hint", "cross_entropy", "soft_targets"]


def test_losses_that_phases_share_are_chosen_by_each(tmp_path: Path) -> None:
    shared = {"losses": [{"type": "soft_targets"}], "phases": [{"name": "one"}, {"name": "two"}]}
    first, second = load(tmp_path, shared).students[0].trainings
    assert first.losses is not None and second.losses is not None
    assert first.losses == second.losses and first.losses[0] is not second.losses[0]


def test_a_resolved_recipe_is_the_same_again(tmp_path: Path) -> None:
    student = {"phases": [ONE, {**TWO, "clip": None}], "epochs": 4, "clip": 2.0, "grid": {"phases.0.epochs": [1, 3]}}
    recipe = load(tmp_path, student)
    assert [s.name for s in recipe.students] == ["s-epochs1", "s-epochs3"]
    assert [s.trainings[0].epochs for s in recipe.students] == [1, 3]
    written = dump_recipe(recipe)
    path = tmp_path / "resolved.yaml"
    path.write_text(written, encoding="utf-8")
    again = load_recipe(str(path))
    assert again == recipe
    assert dump_recipe(again) == written
    assert [Plan(one).model("students", "s-epochs3") for one in (recipe, again)] == [
        Plan(recipe).model("students", "s-epochs3")
    ] * 2
    assert "epochs" not in yaml.safe_load(written)["students"][0]  # what no phase reads any more is not written


def test_fingerprints_of_phases(tmp_path: Path) -> None:
    def prints(**changes: Any) -> list[str]:
        plan = Plan(load(tmp_path, {"phases": [ONE, {**TWO, "epochs": 2, **changes}]}))
        return [plan.phase("s", number) for number in (0, 1)]

    before, after = prints(), prints(clip=None)
    assert before[0] == after[0] and before[1] != after[1]
    assert prints()[1] == Plan(load(tmp_path, {"phases": [ONE, {**TWO, "epochs": 2}]})).model("students", "s")


@pytest.mark.parametrize(
    ("student", "told"),
    [
        ({"phases": []}, "students.0.phases: "),
        ({"phases": [ONE, {**ONE}]}, "students.0.phases.1.name: 'one' is already the name of phases.0"),
        ({"phases": [{"name": "a/b"}]}, "students.0.phases.0.name: must be at most"),
        ({"phases": [{}]}, "students.0.phases.0.name: is missing"),
        ({"phases": [{**ONE, "epoch": 3}]}, "students.0.phases.0.epoch: unknown key; did you mean 'epochs'?"),
        ({"phases": [ONE], "epochs": 3}, "students.0.epochs: is read by no phase"),
        ({"phases": [ONE], "losses": [{"type": "cross_entropy"}]}, "students.0.losses: is read by no phase"),
        ({"phases": [ONE, TWO], "peers": "p"}, "students.0.peers: is not for a student with phases"),
        ({"phases": [ONE, TWO], "noisy": {}}, "students.0.noisy: is not for a student with phases"),
        (
            {"phases": [{**ONE, "losses": [{"type": "cross_entropy"}]}]},
            "students.0.phases.0 (one).rows: transfer rows have no labels for cross_entropy",
        ),
        ({"phases": [{**ONE, "losses": [{"type": "hint"}]}]}, "students.0.phases.0.losses.0.type: unknown loss 'hint'"),
        ({"phases": [{**ONE, "patience": 1}]}, "students.0.phases.0 (one).patience: is not for a phase that keeps its last"),
        ({"phases": [{**TWO, "metric": "f2"}]}, "students.0.phases.0 (two).metric: 'f2' is not for task"),
        ({"phases": [{**TWO, "batch_size": 2, "batch_tokens": 9}]}, "batch_size and batch_tokens exclude each other"),
        (
            {"phases": [{**TWO, "batch_tokens": 9}], "optimizer": {"lr_scaling": "sqrt", "reference_batch": 9}},
            "students.0.phases.0 (two).optimizer.lr_scaling: needs batch_size",
        ),
        ({"phases": [{**TWO, "train": ["a"], "freeze": ["b"]}]}, "students.0.phases.0.freeze: not together with train"),
        ({"phases": [{**TWO, "freeze": []}]}, "students.0.phases.0.freeze: "),
        ({"phases": [{**TWO, "freeze": ["embed"]}]}, "students.s.phases.0.freeze: no parameter starts with 'embed'"),
        (
            {"phases": [{**TWO, "freeze": ["embedding", "convolutions", "classifier"]}]},
            "students.s.phases.0.freeze: leaves no parameter",
        ),
        ({"phases": [{**TWO, "up_to_layer": 1}]}, "students.0.phases.0 (two).up_to_layer: a textcnn has no layers"),
        (
            {"phases": [{**TWO, "up_to_layer": 3}], "model": BERT},
            "students.0.phases.0 (two).up_to_layer: 3 is more than the 2 layers of the model",
        ),
        (
            {"phases": [{**TWO, "train": ["bert.encoder.layer.2"]}], "model": BERT},
            "students.s.phases.0.train: no parameter starts with 'bert.encoder.layer.2' (the model has bert, classifier)",
        ),
        (
            {"parallel": "data", "phases": [{**TWO, "losses": [
                {"type": "feature_hint"}, {"type": "soft_targets", "weight": {"start": 0.0, "end": 1.0}}]}]},
            "students.0.phases.0 (two).losses: at the beginning none that reads the model's head has a weight",
        ),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(tmp_path: Path, student: dict[str, Any], told: str) -> None:
    assert told in refused(tmp_path, student)


def test_a_search_counts_epochs_over_all_phases(tmp_path: Path) -> None:
    student = {"phases": [ONE, {**TWO, "epochs": 2}], "grid": {"seed": [1, 2]}}
    assert "4 is not before the end of student s-seed1, which trains 4 epochs" in refused(
        tmp_path, student, search={"epochs": [4]}
    )
    assert load(tmp_path, student, search={"epochs": [3]}).search is not None


def test_layers_of_a_transformer_by_name_and_number(tmp_path: Path) -> None:
    for choice in ({"up_to_layer": 2}, {"up_to_layer": 0}, {"freeze": ["bert.embeddings", "bert.encoder.layer.1"]}):
        check_inputs(load(tmp_path, {"phases": [{**TWO, **choice}], "model": BERT}))
