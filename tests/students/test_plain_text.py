"""Phases of students on plain text: which text they read and mask, which teacher they are compared with, and what is
kept.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dtrain.data.batch import Batch, ByName
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import DtrainError, InputError
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.pretraining.plain_text import plain_text_of
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare, pretrain
from dtrain.stages.check import check_inputs
from dtrain.students.online import OnlineTeachers
from dtrain.students.phases import places
from dtrain.students.plain_text import vocabulary_of
from dtrain.teachers.online import OnlineTeacher
from dtrain.training import loop
from dtrain.training.state import TrainState
from tests.students.phased import plan_of, write_rows

BERT = {"type": "bert", "layers": 2, "hidden": 16, "heads": 2}
NEZHA = {**BERT, "type": "nezha", "hidden": 8, "layers": 1, "tokenizer": "t"}
MASKED = {
    "name": "masked",
    "rows": ["corpus"],
    "max_length": 16,
    "losses": [{"type": "mlm"}, {"type": "vocabulary_kl", "weight": 5.0}, {"type": "hidden_cosine"}],
    "train": ["nezha.embeddings"],
}
WHOLE = {"name": "whole", "rows": ["corpus"], "max_length": 24, "losses": [{"type": "hidden_mse"}]}
TASK = {"name": "task", "rows": ["train"], "losses": [{"type": "cross_entropy"}], "epochs": 2}
STUDENT = {
    "name": "s",
    "model": NEZHA,
    "batch_size": 16,
    "checkpoint_every": 1,
    "epochs": 1,
    "phases": [MASKED, WHOLE, TASK],
}
SCRATCH = {"name": "t", "model": {**BERT, "vocabulary_size": 200}, "epochs": 1, "batch_size": 8}
FIRST = {**SCRATCH, "model": {"type": "bert", "pretrained": "pretrain"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain-text")
    write_rows(root)
    made = random.Random(1)
    with (root / "text.txt").open("w", encoding="utf-8") as file:
        for _ in range(60):
            file.write(
                "".join(made.choices("球赛队员进攻胜负股票银行利率基金的了，。", k=made.randint(20, 60))) + "\n\n"
            )
    return root


def text(root: Path) -> dict[str, Any]:
    return {"sources": [str(root / "text.txt")], "held_out": 0.1}


def pretraining(root: Path) -> dict[str, Any]:
    phases = [{"max_length": 24, "epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.01}}]
    return {"model": SCRATCH["model"], "corpus": text(root), "phases": phases}


def run(world: World, root: Path, name: str, **sections: Any) -> Plan:
    plan = plan_of(root, name, STUDENT, **{"teachers": [FIRST], "pretrain": pretraining(root), **sections})
    for stage in (
        (pretrain, prepare, finetune, precompute, distill)
        if plan.recipe.pretrain
        else (prepare, finetune, precompute, distill)
    ):
        stage.run(plan.recipe, world, plan.folder)
    return plan


@pytest.fixture(scope="module")
def asked() -> list[tuple[Any, Batch, ByName]]:
    """Records the calls of teachers: the model, the batch, and the outputs."""
    return []


@pytest.fixture(scope="module")
def plan(root: Path, world: World, asked: list[Any]) -> Plan:
    compute = OnlineTeacher._compute

    def told(teacher: OnlineTeacher, batch: Batch) -> ByName:
        answers = compute(teacher, batch)
        asked.append((teacher.inner, batch, answers))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineTeacher, "_compute", told)
        return run(world, root, "first")


def weights(plan: Plan) -> list[dict[str, torch.Tensor]]:
    return [load_file(place.model / "model.safetensors") for place in places(plan.folder, plan.recipe.students[0])]


def test_the_teacher_is_the_model_that_it_started_from(plan: Plan, asked: list[tuple[Any, Batch, ByName]]) -> None:
    pretrained = load_file(plan.folder.pretrained(0) / "model.safetensors")
    tuned = load(plan.folder.model("teachers", "t")).state_dict()
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(pretrained[name], tuned[name])
    for model, _, _ in asked:
        found = {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}
        own = found.get(name, found.get(name.removeprefix("bert.")))
        assert own is not None and torch.equal(own, pretrained[name])


def test_a_teacher_of_plain_text_is_loaded_once_for_groups_in_a_row(plan: Plan, world: World) -> None:
    (student,) = plan.recipe.students
    training, vocabulary = student.trainings[0], vocabulary_of(student, plan)
    teachers = OnlineTeachers(plan, world)
    first = teachers.on_plain_text(training, vocabulary)["t"].model
    teachers.keep_for([student])
    assert teachers.on_plain_text(training, vocabulary)["t"].model is first
    teachers.keep_for([student.trainings[2]])  # rows of its task alone, and no teacher beside it
    assert teachers.on_plain_text(training, vocabulary)["t"].model is not first


def test_teacher_and_student_read_the_same_masked_rows(plan: Plan, asked: list[tuple[Any, Batch, ByName]]) -> None:
    tokenizer = load_tokenizer(plan.folder.data / "corpus" / "tokenizer")
    masked = [(batch, answers) for _, batch, answers in asked if "places" in batch.inputs]
    whole = [batch for _, batch, _ in asked if "places" not in batch.inputs]
    assert masked and whole
    read = chosen = 0
    for batch, answers in masked:
        ids, at = batch.inputs["input_ids"], batch.inputs["places"]
        assert ids.shape[1] == 16
        assert answers["vocabulary"].shape == (len(at), len(tokenizer))
        assert torch.equal(batch.targets["masked_rows"], at // 16)
        assert int(batch.units.sum()) == len(at) or len(at) == 0
        changed = ids.flatten()[at] != batch.targets["masked_labels"]
        read, chosen = read + int(changed.sum()), chosen + len(at)
    assert 0.6 < read / chosen < 1.0  # 80 % [MASK], 10 % another token
    for batch in whole:
        assert batch.inputs["input_ids"].shape[1] == 24
        assert not (batch.inputs["input_ids"] == tokenizer.mask_token_id).any()


def test_the_head_is_trained_and_not_published(plan: Plan) -> None:
    """In a phase that trains only the embeddings, the head is trained, too; the scores on held-out text are kept."""
    masked, whole, task = weights(plan)
    assert not [name for name in {*masked, *whole, *task} if "head" in name or "predictions" in name]
    fixed = [name for name in masked if ".layer." in name]
    assert fixed
    phases = read_json(plan.folder.model("students", "s") / "metrics.json")["phases"]
    assert [(phase["rows"], phase["split"]) for phase in phases] == [
        (["corpus"], "held_out"),
        (["corpus"], "valid"),
        (["train"], "valid"),
    ]
    assert {"perplexity", "accuracy", "loss"} <= phases[0]["scores"].keys()
    first = read_json(places(plan.folder, plan.recipe.students[0])[0].model / "metrics.json")
    assert first["split"] == "held_out"
    embeddings = sum(tensor.numel() for name, tensor in masked.items() if "embeddings" in name)
    head = len(load_tokenizer(plan.folder.data / "corpus" / "tokenizer")) + 8 * 8 + 8 + 2 * 8  # its projection is tied
    assert first["trained_parameters"] == embeddings + head
    history = read_json(plan.folder.model("students", "s") / "history.json")
    assert [entry["split"] for entry in history] == ["train", "held_out", *["train", "valid"] * 3]


@pytest.mark.parametrize(("phase", "step"), [("masked", 3), ("whole", 2)])
def test_stopped_and_continued(
    root: Path, world: World, plan: Plan, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    train_step = loop.train_step

    def failing(state: TrainState) -> None:
        if phase in state.job.title and state.position.step == step:
            raise RuntimeError("too hot")
        train_step(state)

    with monkeypatch.context() as patch, pytest.raises(DtrainError, match="every student failed"):
        patch.setattr(loop, "train_step", failing)
        run(world, root, f"stopped-{phase}")
    stopped = run(world, root, f"stopped-{phase}")
    for one, other in zip(weights(stopped), weights(plan), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_text_of_its_own_for_a_teacher_from_scratch(root: Path, world: World) -> None:
    """The text is read with the teacher's tokenizer; a teacher without a pretrained model takes part itself, but has no
    scores over the vocabulary.
    """
    no_scores = {**MASKED, "losses": [{"type": "mlm"}, {"type": "hidden_cosine"}]}
    student = {**STUDENT, "phases": [no_scores, TASK]}
    plan = plan_of(root, "own", student, teachers=[SCRATCH], corpus=text(root))
    check_inputs(plan.recipe)
    for stage in (prepare, finetune, precompute, distill):
        stage.run(plan.recipe, world, plan.folder)
    assert (plan.folder.data / "corpus-t" / "rows-16").is_dir()
    assert plan.trained("students")
    other = plan_of(root, "own", student, teachers=[SCRATCH], corpus={**text(root), "held_out": 0.2})
    assert not other.trained("students")
    assert other.phase("s", 0) != plan.phase("s", 0)


@pytest.mark.parametrize(
    ("phase", "student", "sections", "told"),
    [
        ({"rows": ["corpus", "train"]}, {}, {}, "phases.0 (masked).rows: 'corpus' is text without labels"),
        ({}, {}, {"corpus": None}, "phases.0 (masked).rows: 'corpus' needs text"),
        ({}, {}, {"corpus": {"separate": True}}, "phases.0 (masked).rows: each token of a row of plain text attends"),
        ({}, {"model": {"type": "textcnn"}}, {}, "phases.0 (masked).rows: 'corpus' is for students that are transformers"),
        ({}, {"adversarial": {"type": "fgm"}}, {}, "phases.0 (masked).rows: 'corpus' is not together with `adversarial`"),
        (
            {"losses": [{"type": "cross_entropy"}]}, {}, {},
            "phases.0 (masked).losses.0 (cross_entropy): is not for plain text, which has no labels (allowed: ",
        ),
        (
            {"losses": [{"type": "vocabulary_kl"}]}, {}, {},
            "phases.0 (masked).losses.0 (vocabulary_kl).teachers: t starts from no pretrained model",
        ),
        ({"rows": ["train"], "max_length": None}, {}, {}, "phases.0 (masked).losses.0 (mlm): is not for task 'classification'"),
        ({"rows": ["train"], "losses": None}, {}, {}, "phases.0 (masked).max_length: is for a phase with rows: [corpus]"),
        ({"metric": "f1"}, {}, {}, "phases.0 (masked).metric: is not for a phase on corpus"),
        ({"keep": "best"}, {}, {}, "phases.0 (masked).keep: a phase on corpus ends with its last weights"),
        ({}, {"rows": ["corpus"]}, {}, "students.0.rows.0: allowed: 'train', 'transfer', 'sequences' or 'interpolated', found 'corpus'"),
        ({}, {"phases": 1}, {}, "students.0.phases.0: the last phase is on corpus"),
        ({}, {}, {"corpus": {"sources": ["nothing.txt"]}}, "corpus.sources.0: nothing.txt: no such file"),
    ],
)  # fmt: skip
def test_refused(root: Path, phase: dict[str, Any], student: dict[str, Any], sections: Any, told: str) -> None:
    first = {**MASKED, "losses": [{"type": "mlm"}], "train": None, **phase}
    if student.get("phases") == 1:
        student = {"phases": [first]}
    values = {**STUDENT, "phases": [first, TASK], **student}
    changed = sections.get("corpus", {})
    corpus = {} if changed is None else {"corpus": {**text(root), **changed}}
    with pytest.raises(InputError) as found:
        check_inputs(plan_of(root, "refused", values, teachers=[SCRATCH], **corpus).recipe)
    assert told in "\n".join(found.value.problems)
    assert not (root / "runs" / "refused").exists()


@pytest.mark.parametrize("model", [{"type": "textcnn"}, SCRATCH["model"]])
def test_a_teacher_may_have_the_name_of_the_student(root: Path, model: dict[str, Any]) -> None:
    phase = {"name": "masked", "rows": ["corpus"], "losses": [{"type": "mlm"}]}
    student = {**SCRATCH, "teachers": [], "phases": [phase, TASK]}
    recipe = plan_of(root, "same-name", student, teachers=[{**SCRATCH, "model": model}], corpus=text(root)).recipe
    read = plain_text_of(recipe, recipe.students[0])
    assert read is not None and read.name == "corpus-t"


def test_a_resolved_recipe_is_the_same_again(root: Path) -> None:
    recipe = plan_of(root, "resolved", STUDENT, teachers=[FIRST], pretrain=pretraining(root)).recipe
    path = root / "written.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
