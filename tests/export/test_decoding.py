"""The search of an exported tagger, in numpy, against the model's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dtrain.metrics.spans_text import answer_spans
from dtrain.models.crf import LinearChainCRF

TAGS = ["O", *(f"{place}-{kind}" for kind in "XYZ" for place in "BIES")]
TYPES = ["X", "Y", "Z"]


@pytest.fixture
def script():
    pytest.importorskip("onnxruntime")
    from dtrain.tasks.tagging import exported

    return exported


def decider(script, crf: LinearChainCRF | None):
    model = script.Model.__new__(script.Model)
    model.settings = {"crf": None, "types": TYPES}
    if crf is not None:
        start, end, moves = (values.detach().numpy() for values in crf.scores())
        model.settings["crf"], model.start, model.end, model.moves = {}, start, end, moves
    return model


@pytest.mark.parametrize("constrain", [False, True])
def test_best_tags_and_their_probabilities(script, constrain: bool) -> None:
    torch.manual_seed(constrain)
    crf = LinearChainCRF(TAGS, constrain)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    model = decider(script, crf)
    for length in (1, 2, 3, 17, 60):
        emissions = 2 * torch.randn(1, length, len(TAGS))
        mask = torch.ones(1, length, dtype=torch.bool)
        tags, sure = model.decide(emissions[0].numpy())
        wanted = crf.best_path(emissions, mask)[0]
        assert tags == wanted.tolist()
        expected = crf.log_marginals(emissions, mask)[0].gather(1, wanted[:, None])[:, 0].detach().numpy()
        np.testing.assert_allclose(sure, expected, atol=1e-4)


def test_without_a_crf(script) -> None:
    emissions = np.random.default_rng(1).normal(size=(9, len(TAGS))).astype(np.float32)
    tags, sure = decider(script, None).decide(emissions)
    assert tags == emissions.argmax(1).tolist()
    np.testing.assert_allclose(sure, torch.from_numpy(emissions).log_softmax(1).amax(1).numpy(), atol=1e-6)


def test_spans_are_those_of_the_package(script) -> None:
    """Of any tags, also those that no valid sequence has."""
    model, drawn = decider(script, None), np.random.default_rng(2)
    for _ in range(300):
        tags = drawn.choice(len(TAGS), size=12, p=[0.2, *[0.8 / 12] * 12])
        if drawn.random() < 0.5:  # runs of one type, so that long entities come up
            tags = np.where(tags > 0, (tags - 1) % 4 + 1, 0)
        sure = np.log(drawn.uniform(0.1, 1, size=12))
        wanted = answer_spans("abcdefghijkl", tags, TYPES, sure)
        found = model.spans("abcdefghijkl", tags.tolist(), sure.tolist())
        assert found == [{**answer, "score": round(answer["score"], 6)} for answer in wanted]
