"""The noise that tokens bear, against models whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtrain.knowledge.kinds import find_kind
from dtrain.models import build
from dtrain.points.noise import ENTROPY, MOST, NoiseSearch, NoisyModel, entropies
from dtrain.recipe.models import EncoderSpec
from dtrain.recipe.training import Student

SEARCH = NoiseSearch(share=0.1, steps=40, samples=4)


class Linear(nn.Module):
    """f(x) = sum_i a_i W x_i: position i is read a_i times as much as position 0."""

    def __init__(self, weights: list[float], embedding: int = 32, features: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, embedding)
        self.matrix = nn.Parameter(torch.randn(embedding, features))
        self.read = nn.Parameter(torch.tensor(weights))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        read = self.read[: input_ids.shape[1]] * attention_mask
        return (self.embedding(input_ids) * read[..., None]).sum(1) @ self.matrix


def rows(*lengths: int, width: int = 0) -> dict[str, Tensor]:
    width = max(*lengths, width)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.arange(2, 2 + width).remainder(10).repeat(len(lengths), 1) * mask,
        "attention_mask": mask,
    }


def test_a_linear_model_has_the_entropies_of_its_formula() -> None:
    """s_i^2 = share V / (N |a_i W|^2), by hand, within the noise of 40 steps of 4 draws."""
    torch.manual_seed(0)
    weights = [1.0, 0.5, 2.0, 1.0, 3.0]
    model, inputs, variance = Linear(weights), rows(5, 3), 7.0
    norm = float(model.matrix.detach().square().sum())
    found = entropies(NoisyModel(model, lambda output: output), inputs, variance, SEARCH, [1, 2])
    for row, length in enumerate((5, 3)):
        expected = [0.5 * math.log(0.1 * variance / (length * a * a * norm)) + ENTROPY for a in weights[:length]]
        assert found[row, :length].numpy() == pytest.approx(expected, abs=0.08)


def test_what_a_model_does_not_read_bears_the_most() -> None:
    torch.manual_seed(0)
    model, inputs = Linear([1.0, 0.0, 1.0]), rows(3)
    found = entropies(NoisyModel(model, lambda output: output), inputs, 5.0, SEARCH, [1])
    deviation = float(model.embedding(inputs["input_ids"]).std(correction=0))
    assert float(found[0, 1]) == pytest.approx(math.log(MOST * deviation) + ENTROPY, abs=1e-4)
    assert float(found[0, 0]) < float(found[0, 1]) - 1


def test_a_model_that_is_not_linear_ends_at_the_optimum() -> None:
    """There d E|f(x + t s e) - f(x)|^2 / d log t is 2 share V, here measured with draws of its own."""
    torch.manual_seed(1)
    model = Linear([1.0, 0.5, 2.0, 1.0])
    noisy = NoisyModel(model, lambda output: torch.tanh(output / 8))
    inputs = rows(4)
    sigma = (entropies(noisy, inputs, 3.0, NoiseSearch(0.1, 160, 8), [3]) - ENTROPY).exp()
    draws = torch.randn(4000, 4, 32) * sigma[..., None]
    many, still = {name: tensor.repeat(4000, 1) for name, tensor in inputs.items()}, noisy.features(inputs)
    less, more = ((noisy.features(many, draws * t) - still).square().sum(-1).mean() for t in (0.9, 1.1))
    assert float(more - less) / (math.log(1.1) - math.log(0.9)) == pytest.approx(2 * 0.1 * 3.0, rel=0.1)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    sections: dict[str, Any] = {
        "bert": EncoderSpec(type="bert", layers=1, hidden=16, heads=2),
        "nezha": EncoderSpec(type="nezha", layers=1, hidden=16, heads=2),
    }
    for name, shape in (
        ("bilstm", {"embedding": 8, "hidden": 8}),
        ("textcnn", {"embedding": 8, "filters": 4, "widths": [2, 4]}),
        ("fasttext", {"embedding": 8, "buckets": 20}),
    ):
        sections[name] = Student.model_validate({"name": "s", "model": {"type": name, **shape}}).model
    return {
        name: build(spec, vocabulary=12, labels=["a", "b"], pad_id=0, max_length=16) for name, spec in sections.items()
    }


def feature_of(model: nn.Module) -> tuple[Callable[[Any], Tensor], dict[str, Any]]:
    kind = find_kind("features")
    return kind.pick, dict(kind.options(model))


@pytest.mark.parametrize("name", ["bert", "nezha", "bilstm", "textcnn", "fasttext"])
def test_rows_do_not_depend_on_each_other_nor_on_padding(models: dict[str, nn.Module], name: str) -> None:
    search = NoiseSearch(0.1, 6, 2)
    noisy = NoisyModel(models[name], *feature_of(models[name]))
    together = entropies(noisy, rows(6, 2, 4, width=9), 1.0, search, [1, 2, 3])
    before = {key: tensor.clone() for key, tensor in models[name].state_dict().items()}
    for row, length in enumerate((6, 2, 4)):
        alone = entropies(noisy, rows(length), 1.0, search, [row + 1])
        assert alone[0].numpy() == pytest.approx(together[row, :length].numpy(), abs=2e-4)
    noisy.close()
    assert all(torch.equal(tensor, before[key]) for key, tensor in models[name].state_dict().items())
    assert np.isfinite(together.numpy()).all()
