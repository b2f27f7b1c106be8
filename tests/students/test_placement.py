"""The estimated cost of a student: defined for every architecture, and larger if there is more to compute."""

from __future__ import annotations

import pytest

from dtrain.recipe.training import Student
from dtrain.students.placement import cost

SMALL = {"type": "bert", "size": "tiny"}
WIDER = {
    "textcnn": {"filters": 512},
    "bilstm": {"hidden": 1024},
    "siamese": {"hidden": 512},
    "text_rcnn": {"hidden": 512},
    "fasttext": {"embedding": 600},
    "bert": {"size": "base"},
    "nezha": {"size": "base"},
    "bert_cnn": {"encoder": SMALL, "filters": 512},
    "multi_exit": {"encoder": {"type": "bert", "size": "small"}, "exits": [1, 4]},
    "tagger": {"lstm": 256},
    "idcnn": {"filters": 256},
}
PLAIN = {"bert_cnn": {"encoder": SMALL}, "multi_exit": {"encoder": {"type": "bert", "size": "mini"}, "exits": [1, 4]}}


def student(**model: object) -> Student:
    return Student.model_validate({"name": "s", "model": model})


@pytest.mark.parametrize("kind", WIDER)
def test_every_structure_costs_more_when_wider(kind: str) -> None:
    plain = cost(student(type=kind, **PLAIN.get(kind, {})), None)
    assert 0 < plain < cost(student(type=kind, **WIDER[kind]), None)
