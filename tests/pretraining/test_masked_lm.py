"""The projection at masked positions is the full one, and documents kept apart are as if each were alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig

import dtrain.models.nezha  # noqa: F401  (registers NEZHA)
from dtrain.models.masked_lm import MaskedLM
from dtrain.tasks.masked_lm.rows import MaskedBatch
from dtrain.tasks.masked_lm.task import answered

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(params=["bert", "nezha"])
def lm(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(**SHAPE) if request.param == "bert" else AutoConfig.for_model("nezha", **SHAPE)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").double()
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    return model


def asked(tokens: torch.Tensor, pieces: torch.Tensor | None = None) -> MaskedBatch:
    places = torch.tensor([1, 4, 9, 10, 17, 23])
    labels = torch.arange(6) + 7
    return MaskedBatch(tokens, places, labels, pieces)


def test_masked_positions_give_the_loss_and_gradients_of_the_full_projection(lm: torch.nn.Module) -> None:
    """The full one is transformers' (and the released heads') own forward, with -100 where nothing is asked."""
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    batch = asked(tokens)
    full = copy.deepcopy(lm)
    labels = torch.full((24,), -100)
    labels[batch.places] = batch.labels
    expected = full(input_ids=tokens, labels=labels.view(2, 12)).loss
    expected.backward()

    wrapped = MaskedLM(lm)
    losses, right = answered(wrapped(**batch.inputs), batch.labels)
    loss = losses.sum() / len(batch.labels)
    loss.backward()
    assert losses.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients = dict(full.named_parameters())
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-9, atol=1e-12)
    scores = full(input_ids=tokens).logits.flatten(0, 1)[batch.places]
    assert torch.equal(right, (scores.argmax(1) == batch.labels).double())


def test_micro_batches_add_up_to_the_whole(lm: torch.nn.Module) -> None:
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(2))
    model, batch = MaskedLM(lm), asked(tokens)
    whole = answered(model(**batch.inputs), batch.labels)[0]
    halves = []
    for row in range(2):
        inside = (batch.places // 12) == row
        half = MaskedBatch(tokens[row : row + 1], batch.places[inside] - 12 * row, batch.labels[inside], None)
        halves.append(answered(model(**half.inputs), half.labels)[0])
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-12, atol=1e-12)


def test_documents_kept_apart_are_scored_as_if_alone(lm: torch.nn.Module) -> None:
    """Two pieces in a row of 12, of 5 and 7 tokens; BERT's positions begin anew with each."""
    tokens = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(3))
    pieces = torch.tensor([[1] * 5 + [2] * 7])
    model = MaskedLM(lm)
    together = model(tokens, torch.arange(12), pieces)
    alone = torch.cat([lm(input_ids=tokens[:, :5]).logits[0], lm(input_ids=tokens[:, 5:]).logits[0]])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    assert not np.allclose(model(tokens, torch.arange(12)).detach(), alone.detach(), atol=1e-3)
