"""Every architecture for texts answers with a number or with any number of labels, and says so in its config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from dtrain.data import EncodedSplit
from dtrain.losses.objective import build_losses
from dtrain.models import build, describe, load, save_model
from dtrain.models.folder import described
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.models import TEXT_TASKS, ModelSpec, architectures
from dtrain.tasks.answers import model_labels
from dtrain.tasks.base import Task
from dtrain.tasks.multi_label.task import MultiLabel
from dtrain.tasks.regression.scale import Scale
from dtrain.tasks.regression.task import Regression

ENCODER: dict[str, Any] = {"type": "bert", "hidden": 8, "heads": 2, "layers": 1, "intermediate": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "nezha": {**ENCODER, "type": "nezha"},
    "bert_cnn": {"type": "bert_cnn", "encoder": ENCODER, "filters": 2},
    "bilstm": {"type": "bilstm", "embedding": 4, "hidden": 4},
    "textcnn": {"type": "textcnn", "embedding": 4, "filters": 2},
    "text_rcnn": {"type": "text_rcnn", "embedding": 4, "hidden": 4, "features": 4},
    "fasttext": {"type": "fasttext", "embedding": 4, "buckets": 16},
}
LABELS = ["x", "y", "z"]


def test_these_are_all() -> None:
    """`siamese` reads two texts, and is trained in tests/distributed; the others that list these tasks are above."""
    whole = {name for name, spec in architectures().items() if set(TEXT_TASKS) <= set(spec.tasks)}
    assert whole - {"multi_task"} == set(SHAPES)


def rows(values: list[list[float]], dtype: type) -> EncodedSplit:
    lengths = [3, 1, 5, 2]
    return EncodedSplit(
        ids=np.arange(4),
        labels=np.array([0, 0, -1, 0]),
        tokens=np.arange(1, 1 + sum(lengths), dtype=np.int32),
        types=None,
        offsets=np.cumsum([0, *lengths]),
        pad_id=0,
        load_rows=lambda: None,
        values=np.array([value for row in values for value in row], dtype=dtype),
        value_offsets=np.cumsum([0, *map(len, values)]),
    )


NUMBERS, SETS = Regression(["number"], []), MultiLabel(LABELS, [])
NUMBERS.scale = Scale(1.0, 2.0)
SETS.threshold = 0.3
CASES: list[tuple[Task, EncodedSplit, list[str]]] = [
    (NUMBERS, rows([[3.0], [-1.0], [], [1.0]], np.float64), ["squared_error", "feature_cosine"]),
    (SETS, rows([[0, 2], [], [], [1]], np.int32), ["binary_cross_entropy", "feature_cosine"]),
]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("task", "part", "losses"), CASES, ids=["numbers", "sets"])
def test_a_model_learns_and_comes_back_from_its_folder(
    name: str, task: Task, part: EncodedSplit, losses: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    spec: Any = TypeAdapter(ModelSpec).validate_python(SHAPES[name])
    model = build(spec, vocabulary=20, labels=task.labels, pad_id=0, max_length=16)
    describe(model, task.config)
    objective = build_losses([LossSpec(type=name) for name in losses])
    batch = task.collate(part, np.array([3, 0, 2, 1]), objective.needs)
    outputs = task.outputs(model, batch, objective.needs)
    assert outputs["logits"].shape == (4, len(task.labels)) and outputs["features"].dim() == 2
    taught = {"t": {"features": torch.ones_like(outputs["features"])}}
    total, _, counts = objective({**batch.targets, **outputs}, taught, batch.labelled)
    assert counts[losses[0]] == 3 and counts[losses[1]] == 4
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    save_model(model, tmp_path / "model", None, "a card")
    loaded = load(tmp_path / "model")
    assert model_labels(loaded) == task.labels
    assert {key: described(loaded, key, None) for key in task.config} == task.config


def test_targets_stand_beside_their_rows() -> None:
    order = np.array([3, 0, 2, 1])
    (numbers, part, _), (sets, others, _) = CASES
    batch = numbers.collate(part, order, set())
    assert batch.labelled.tolist() == [True, True, False, True]
    assert batch.targets["numbers"].tolist() == [0.0, 1.0, 0.0, -1.0]  # (1 - 1) / 2, (3 - 1) / 2, none, (-1 - 1) / 2
    batch = sets.collate(others, order, set())
    assert batch.targets["label_sets"].tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]
    both = EncodedSplit.concat([part, part])
    values, owner = both.collate_values(np.array([7, 2, 4]))
    assert (values.tolist(), owner.tolist()) == ([1.0, 3.0], [0, 2])
    with pytest.raises(ValueError, match="these rows have no values"):
        replace(part, values=None).collate_values(order)
