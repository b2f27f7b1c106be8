"""The parts of a model's output that are stored: top-k compared with brute force, features and tags of each kind of
model.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from dtrain.errors import InputError
from dtrain.knowledge.collect import model_options, pick
from dtrain.knowledge.top_k import largest, spread


def test_top_k_by_hand():
    values, classes = largest(torch.tensor([[0.5, 2.0, 1.0, 2.0]]).log(), 2)
    assert classes.tolist() == [[1, 3]]  # ties are broken by the class number
    torch.testing.assert_close(values.exp(), torch.tensor([[2.0, 2.0, 1.5]]))
    found = spread(values, classes, 4).exp()
    torch.testing.assert_close(found, torch.tensor([[0.75, 2.0, 0.75, 2.0]]))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_top_k_keeps_the_probabilities(k):
    logits = torch.from_numpy(np.random.default_rng(k).normal(scale=5, size=(40, 10))).float()
    values, classes = largest(logits, k)
    found = spread(values, classes, 10).softmax(1).numpy()
    for row, scores in enumerate(logits.numpy().astype(np.float64)):
        expected = np.exp(scores) / np.exp(scores).sum()
        kept = sorted(range(10), key=lambda c: -scores[c])[:k]
        assert classes[row].tolist() == kept
        others = [c for c in range(10) if c not in kept]
        expected[others] = expected[others].sum() / len(others)
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(5))
def test_top_k_hides_nothing_that_is_no_number(bad, place):
    logits = torch.arange(10.0).view(2, 5)
    logits[1, place] = bad
    values, _ = largest(logits, 2)
    assert torch.isfinite(values).all(1).tolist() == [True, False]


def test_features_of_a_transformer_are_the_first_tokens_last_state():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **shape)).eval()
    ids = torch.randint(1, 50, (3, 7))
    assert model_options(model, ["logits"]) == {}
    with torch.no_grad():
        found = pick("features", model(ids, **model_options(model, ["features"])))
        pooled = model.bert.pooler(found[:, None])
        assert torch.equal(pooled, model.bert(ids).pooler_output)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("features", {"logits": torch.zeros(2, 3)}),
        ("emissions", {"logits": torch.zeros(2, 3)}),
        ("marginals", {"logits": torch.zeros(2, 3)}),
        ("logits", {"logits": torch.zeros(2, 4, 3), "mask": torch.ones(2, 4).bool()}),
        ("features", {"logits": torch.zeros(2, 4, 3), "mask": torch.ones(2, 4).bool()}),
    ],
)
def test_an_output_that_a_teacher_has_not_is_named(name, output):
    with pytest.raises(InputError, match=f"knowledge.outputs: this teacher has no {name}"):
        pick(name, SimpleNamespace(**output))
