"""Parameter groups and schedules compared with values computed by hand and by torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from dtrain.engines.optim import build_optimizer, parameter_groups, rate, scaled_to_batch, step_count
from dtrain.errors import InputError
from dtrain.models import build
from dtrain.recipe.models import ModelSpec
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.training import TrainSpec


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
    wrapped.wrapped_as, wrapped.lm = "lm.", Model()  # as in models.masked_lm
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


@pytest.mark.parametrize("kind", ["bilstm", "bert"])
def test_fused_adamw_is_the_plain_one(kind: str) -> None:
    """Twenty steps with weight decay, a separate learning rate for some parameters and a schedule; equal to 1e-5 of the
    distance moved.
    """
    sections = {
        "bilstm": {"type": "bilstm", "embedding": 16, "hidden": 12, "dropout": 0.0},
        "bert": {"type": "bert", "hidden": 16, "layers": 2, "heads": 2, "dropout": 0.0},
    }
    model_spec: Any = TypeAdapter(ModelSpec).validate_python(sections[kind])
    torch.manual_seed(0)
    model = build(model_spec, vocabulary=50, labels=["a", "b"], pad_id=0, max_length=16)
    plain, begin = copy.deepcopy(model), torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    first = next(iter(model.named_children()))[0]
    spec = OptimizerSpec(lr=3e-3, weight_decay=0.1, betas=(0.8, 0.99), modules={first: 1e-3})
    groups = parameter_groups(plain, spec)
    optimizers = [
        build_optimizer(model, spec),
        torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, foreach=False, fused=False),
    ]
    assert optimizers[0].defaults["fused"]
    for step in range(20):
        ids = torch.randint(1, 50, (8, 10), generator=torch.Generator().manual_seed(step))
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            logits = each(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            nn.functional.cross_entropy(logits, ids[:, 0] % 2).backward()
            for group in optimizer.param_groups:
                group["lr"] *= 0.95
            optimizer.step()
            optimizer.zero_grad()
    found, expected = (torch.nn.utils.parameters_to_vector(each.parameters()) for each in (model, plain))
    assert (found - expected).norm() <= 1e-5 * (expected - begin).norm()


def test_a_step_count_goes_where_its_optimizer_reads_it() -> None:
    """The fused kernel needs it on the parameter's device, wherever the checkpoint was loaded; LAMB needs it on the
    CPU.
    """
    parameter, count = torch.zeros(2, device="meta"), torch.tensor(7.0)
    places = {}
    for name in ("adamw", "lamb"):
        optimizer = build_optimizer(nn.Linear(2, 1), OptimizerSpec.model_validate({"type": name}))
        places[name] = step_count(count, optimizer, parameter).device.type
        own = step_count(count, optimizer, torch.zeros(2))
        assert own == 7 and own.data_ptr() != count.data_ptr()
    assert places == {"adamw": "meta", "lamb": "cpu"}


def test_linear_is_transformers_schedule_one_step_on() -> None:
    """transformers starts its warm-up at a learning rate of 0 and ends above 0; dtrain starts above 0, so that no step
    is wasted.
    """
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
