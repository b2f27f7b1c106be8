"""Parameter groups and schedules against values worked out by hand and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dtrain.errors import InputError
from dtrain.recipe.training import OptimizerSpec, ScheduleSpec, TrainSpec
from dtrain.training.optim import build_optimizer, parameter_groups, rate, scaled_to_batch


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.encoder_norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def test_vectors_do_not_decay_and_prefixes_have_their_rate() -> None:
    model = Model()
    groups = parameter_groups(model, OptimizerSpec(lr=1e-3, weight_decay=0.1, modules={"encoder": 5e-5}))
    found = {(g["lr"], g["weight_decay"]): [tuple(p.shape) for p in g["params"]] for g in groups}  # type: ignore[attr-defined]
    assert found == {
        (5e-5, 0.0): [(4,)],
        (5e-5, 0.1): [(4, 3)],
        (1e-3, 0.0): [(4,), (4,), (2,)],  # encoder_norm is not encoder
        (1e-3, 0.1): [(2, 4)],
    }


def test_the_longest_prefix_wins() -> None:
    groups = parameter_groups(Model(), OptimizerSpec(modules={"head": 1e-2, "head.bias": 1e-1}))
    assert {g["lr"] for g in groups} == {1e-3, 1e-2, 1e-1}


def test_names_are_those_of_the_model_that_is_pre_trained() -> None:
    wrapped = nn.Module()
    wrapped.lm = Model()
    groups = parameter_groups(wrapped, OptimizerSpec(modules={"encoder": 5e-5}))
    assert sum(len(g["params"]) for g in groups if g["lr"] == 5e-5) == 2  # type: ignore[misc, arg-type]
    with pytest.raises(InputError, match=r"the model has encoder, encoder_norm, head\)"):
        parameter_groups(wrapped, OptimizerSpec(modules={"lm.encoder": 5e-5}))


def test_a_prefix_without_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="optimizer.modules: no parameter starts with 'encodr'"):
        parameter_groups(Model(), OptimizerSpec(modules={"encodr": 1e-2}))


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    optimizer = build_optimizer(model, OptimizerSpec.model_validate({"type": name, "lr": 0.02}))
    inputs, targets = torch.randn(64, 5), torch.randn(64, 1)
    losses = []
    for _ in range(50):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_linear_is_transformers_schedule_one_step_on() -> None:
    """transformers starts its warm-up at rate 0 and ends above 0; ours starts above 0: no step is wasted."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 3, 10)
    ours = rate(ScheduleSpec(type="linear", warmup=3), 10, 1)
    for step in range(10):
        expected = theirs.lr_lambdas[0](step)
        assert ours(step) == pytest.approx(expected if step >= 3 else (step + 1) / 3)


def test_shapes() -> None:
    cosine = rate(ScheduleSpec(type="cosine", warmup=0.0), 100, 1)
    assert cosine(0) == pytest.approx(1.0)
    assert cosine(50) == pytest.approx(0.5)
    assert cosine(99) == pytest.approx(0.000247, abs=1e-5)
    constant = rate(ScheduleSpec(type="constant", warmup=0.2), 10, 1)
    assert [constant(step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    floored = rate(ScheduleSpec(type="linear", warmup=0, floor=0.1), 10, 1)
    assert floored(0) == pytest.approx(1.0)
    assert floored(10) == pytest.approx(0.1)


def test_square_root_scaling_is_the_lamb_papers_table() -> None:
    """You et al. 2019, table 4: from the line of batch 512 follow those of 4k and 32k."""
    for batch, lr, warmup in ((512, 5 / 2**3 * 1e-3, 1 / 320), (4096, 5 / 2**1.5 * 1e-3, 1 / 40), (32768, 5e-3, 1 / 5)):
        spec = scaled_spec(batch)
        optimizer, schedule = scaled_to_batch(spec)
        assert optimizer.lr == pytest.approx(lr)
        assert optimizer.modules["head"] == pytest.approx(2 * lr)
        assert schedule.warmup == pytest.approx(warmup)


def scaled_spec(batch: int) -> TrainSpec:
    scaling = {"lr_scaling": "sqrt", "reference_batch": 512, "lr": 0.000625, "modules": {"head": 0.00125}}
    values = {"name": "t", "model": {"type": "bilstm"}, "schedule": {"warmup": 1 / 320}, "batch_size": batch}
    return TrainSpec.model_validate({**values, "optimizer": scaling})


def test_a_warmup_that_would_never_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"schedule.warmup: 0.003125 of the steps becomes 1 at batch_size 163840"):
        scaled_to_batch(scaled_spec(320 * 512))


def test_scaling_needs_its_reference() -> None:
    with pytest.raises(ValueError, match="one needs the other"):
        OptimizerSpec.model_validate({"lr_scaling": "sqrt"})
