"""The golden files of `make_golden.py`, and small models that hold their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dtrain.models import nezha

GOLDEN = Path(__file__).parent / "golden"
SHAPE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 2,
}


def read(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="session")
def golden() -> dict[str, dict[str, Tensor]]:
    return {name: read(name) for name in ("weights", "inputs", "m64", "m3")}


@pytest.fixture
def build(golden: dict[str, dict[str, Tensor]]) -> Callable[..., nezha.NezhaPreTrainedModel]:
    """`build(head, **config)`: that head with the golden weights, in eval mode."""

    def make(head: str, **config: object) -> nezha.NezhaPreTrainedModel:
        model = getattr(nezha, head)(nezha.NezhaConfig(**{**SHAPE, **config})).eval()
        weights = dict(golden["weights"])
        if head == "NezhaForMultipleChoice":
            weights |= {f"classifier.{part}": weights[f"choice.{part}"] for part in ("weight", "bias")}
        if head == "NezhaModel":
            weights = {name.removeprefix("nezha."): tensor for name, tensor in weights.items()}
        missing = model.load_state_dict(weights, strict=False).missing_keys
        assert all("decoder" in name for name in missing), missing
        return model

    return make
