"""Trials on fake tensors: the tracker against torch's own, and lines through small models against large ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from dtrain.planning import trial
from dtrain.planning.tracker import LiveBytes, held_by


def config(kind: str, layers: int, hidden: int = 1024) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 64}
    return {"model_type": kind, "vocab_size": 21128, "intermediate_size": 4 * hidden, **shape}


def test_the_tracker_counts_as_torchs_does() -> None:
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(300, 400), nn.GELU(), nn.Linear(400, 7))
        inputs = torch.randn(50, 300)
        theirs, mine = MemTracker(), LiveBytes()
        theirs.track_external(model, inputs)
        mine.hold([*held_by(model), inputs])
        for tracker in (theirs, mine):
            with tracker:
                model(inputs).sum().backward()
            model.zero_grad(set_to_none=True)
        peak = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]
    assert mine.peak.total == pytest.approx(
        peak["Total"], rel=5e-3
    )  # the allocator of GPUs gives out blocks of 512 bytes
    assert mine.now.total < mine.peak.total  # and freed what torch has freed


@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [
        pytest.param("bert", False, marks=pytest.mark.distributed),
        pytest.param("nezha", False, marks=pytest.mark.slow),
        pytest.param("bert", True, marks=pytest.mark.slow),
        pytest.param("nezha", True, marks=pytest.mark.slow),
    ],
)
def test_two_and_four_layers_tell_of_twenty_four(kind: str, checkpointing: bool) -> None:
    of_line = trial.transformer_activations(config(kind, 24), 128, "bf16", checkpointing)
    direct = max(trial._peaks(trial._key(config(kind, 24), 24), 48, 128, "bf16", checkpointing))
    assert of_line.of(48) == pytest.approx(direct, rel=0.02)


@pytest.mark.parametrize(("kind", "checkpointing"), [("bert", False), ("nezha", True)])
def test_two_and_four_layers_tell_of_seven(kind: str, checkpointing: bool) -> None:
    of_line = trial.transformer_activations(config(kind, 7, 256), 64, "bf16", checkpointing)
    assert of_line.most_rows(of_line.of(40)) == 40
    assert of_line.most_rows(0.0) == 0
    direct = max(trial._peaks(trial._key(config(kind, 7, 256), 7), 40, 64, "bf16", checkpointing))
    assert of_line.of(40) == pytest.approx(direct, rel=0.02)


def test_parameters_are_exact() -> None:
    shape = trial.transformer_shape(config("bert", 24))
    with FakeTensorMode():
        model = trial._WithHead(trial._key(config("bert", 24), 24))
        sizes = [p.numel() for p in model.parameters()]
    assert (shape.parameters, shape.tensors, shape.largest) == (sum(sizes), len(sizes), max(sizes))
    assert shape.block * 24 < shape.parameters
