"""A model and the discriminator of its loss that are trained alternately, compared step by step with two separate
optimizers.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.engines.engine import Engine, Turn
from dtrain.engines.optim import build_optimizer
from dtrain.losses.objective import Objective, build_losses
from dtrain.models import build
from dtrain.recipe.architectures.taggers import TaggerSpec
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.optimizers import OptimizerSpec
from dtrain.runtime.distributed import World
from dtrain.tasks.tagging.task import Tagging

LABELS = ["O", "B-x", "I-x", "E-x", "S-x"]
WEIGHT, STRENGTH, CLIP = 0.5, 0.7, 0.3
IMITATION = {"type": "imitation", "hidden": 3, "weight": WEIGHT, "strength": STRENGTH}
TURNS: list[Turn] = ["losses", "losses", "model", "losses", "losses", "model"]


def batch() -> Batch:
    torch.manual_seed(2)
    ids = torch.tensor([[3, 5, 7, 4], [6, 3, 0, 0]])
    mask = ids != 0
    return Batch(
        rows=np.arange(2),
        ids=np.arange(2),
        inputs={"input_ids": ids, "attention_mask": mask.long()},
        targets={"tags": torch.tensor([[1, 3, 0, 4], [0, 4, -1, -1]])},
        labelled=torch.tensor([True, True]),
        units=mask.sum(1),
        teachers={"t": {"token_features": torch.randn(2, 4, 6)}},
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_each_learns_in_its_own_steps_alone(world: World, precision: str) -> None:
    """SGD with momentum, so that a step of the other would be visible in the momentum, and with clipping of the norm.

    No part of this model is computed in half precision; fp16 only adds a loss scale, which is removed before clipping.
    """
    torch.manual_seed(1)
    spec = TaggerSpec.model_validate({"type": "tagger", "embedding": 5, "lstm": 3, "dropout": 0.0})
    model = build(spec, vocabulary=9, labels=LABELS, pad_id=0, max_length=8)
    terms = [LossSpec(type="tag_likelihood"), LossSpec.model_validate(IMITATION)]
    losses = build_losses(terms, {"token_features": 6, "teachers.token_features": 6})
    own, one = copy.deepcopy(model), copy.deepcopy(losses.stateful["imitation"])
    objective = Objective(model, losses, Tagging(LABELS, ["x"]).outputs)
    optimizer = OptimizerSpec(type="sgd", lr=0.5, momentum=0.9, weight_decay=0.0)
    engine = Engine(world, objective, build_optimizer(objective, optimizer), data_parallel=False, precision=precision)
    given, clipped = batch(), 0
    by_hand = {
        side: torch.optim.SGD(of.parameters(), lr=0.5, momentum=0.9) for side, of in (("model", own), ("losses", one))
    }
    theirs, mask = given.teachers["t"]["token_features"], given.inputs["attention_mask"].bool()

    def mean(values: Tensor) -> Tensor:  # over the six characters
        return torch.where(mask, values, 0.0).sum() / 6

    for turn in TURNS:
        with engine.autocast():
            loss = engine.model(given, 0.0)[0] / 6
        engine.backward(loss)
        norm, applied = engine.step(CLIP, turn)
        assert applied
        output = own(**given.inputs, tags=given.targets["tags"])
        chance, other = (torch.sigmoid(one(features)) for features in (output.states, theirs))
        if turn == "losses":
            chance = torch.sigmoid(one(output.states.detach()))
            loss = WEIGHT * mean(-other.log() - (1 - chance).log())
        else:
            loss = output.nll.sum() / 6 + WEIGHT * STRENGTH * mean(-chance.log())
        side = own if turn == "model" else one
        gradients = torch.autograd.grad(loss, list(side.parameters()))
        for parameter, gradient in zip(side.parameters(), gradients, strict=True):
            parameter.grad = gradient
        expected = torch.nn.utils.clip_grad_norm_(side.parameters(), CLIP)
        clipped += int(expected > CLIP)
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=1e-7)
        by_hand[turn].step()
        for found, wanted in ((model, own), (losses.stateful["imitation"], one)):
            torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=1e-5, atol=1e-6)
    assert 0 < clipped < len(TURNS)
