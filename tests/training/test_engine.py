"""What an engine does with weights, on the device and off it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from dtrain.engines.engine import Engine, blank
from dtrain.engines.optim import build_optimizer
from dtrain.models import build
from dtrain.recipe.models import ModelSpec
from dtrain.recipe.optimizers import OptimizerSpec
from dtrain.runtime.distributed import World

MODELS: dict[str, dict[str, Any]] = {
    "bilstm": {"type": "bilstm", "embedding": 6, "hidden": 5},
    "bert": {"type": "bert", "hidden": 16, "layers": 2, "heads": 2},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_to_publish_takes_no_memory_on_the_device(world: World, kind: str) -> None:
    """The meta device stands for a GPU that is full: nothing of the model can be copied from it."""
    spec: Any = TypeAdapter(ModelSpec).validate_python(MODELS[kind])
    model = build(spec, vocabulary=20, labels=["a", "b"], pad_id=0, max_length=16)
    engine = Engine(world, model, build_optimizer(model, OptimizerSpec()), data_parallel=False, precision="fp32")
    weights = {name: tensor + 1 for name, tensor in engine.weights().items()}
    engine.module = blank(engine.module)
    published = engine.with_weights(weights)
    assert published is not engine.module and all(p.is_meta for p in engine.module.parameters())
    found = published.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    ids = torch.tensor([[2, 5, 3]])
    assert published.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 2)
