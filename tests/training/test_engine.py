"""How an engine handles weights, on the device and on the host."""

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
    """The meta device stands for a full GPU: no part of the model can be copied from it."""
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


@pytest.mark.parametrize("clip", [None, 1e3, 0.5])
@pytest.mark.parametrize("scale", [1.0, float("nan"), float("inf")])
def test_gradients_are_clipped_as_torch_does_to_the_bit(world: World, clip: float | None, scale: float) -> None:
    """Also gradients below the limit, which are not multiplied, and gradients that are NaN."""
    torch.manual_seed(0)
    found = []
    for ours in (True, False):
        model = torch.nn.Linear(30, 20)
        torch.manual_seed(1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
            parameter.grad = torch.randn_like(parameter)
        model.bias.grad *= scale
        engine = Engine(world, model, build_optimizer(model, OptimizerSpec()), data_parallel=False, precision="fp32")
        if ours:
            norm, applied = engine.step(clip)
            assert applied
        else:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf") if clip is None else clip)
            engine.optimizer.step()
        found.append([norm, *(p.detach() for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_gradients_below_the_limit_are_not_touched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 2)
    engine = Engine(world, model, build_optimizer(model, OptimizerSpec()), data_parallel=False, precision="fp32")
    calls: list[float] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", lambda parameters, limit, norm: calls.append(limit))
    for clip in (None, 1e3, 0.5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        engine.step(clip)
    assert calls == [0.5]
