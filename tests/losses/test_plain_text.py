"""Losses at masked positions: by hand, beside transformers, and that how rows are cut changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from dtrain.losses.objective import build_losses
from dtrain.losses.plain_text import mlm, vocabulary_kl
from dtrain.models.with_vocabulary import WithVocabulary
from dtrain.recipe.losses import LossSpec

ROWS = torch.tensor([0, 0, 2, 3])  # the second row has no masked position
LABELS = torch.tensor([1, 0, 2, 1])
LABELLED = torch.ones(4, dtype=torch.bool)


def scores(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    even = torch.zeros(4, 3, dtype=torch.float64)
    log3 = torch.log(torch.tensor(3.0, dtype=torch.float64))
    assert torch.allclose(
        mlm(even, LABELS, ROWS, LABELLED), log3 * torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    )
    sure = torch.tensor([[0.0, 1.0, 0.0]] * 4, dtype=torch.float64).log().clamp(min=-1e9)
    # KL of a teacher that is sure of one of three tokens: log 3, at T = 2 times 4
    told = vocabulary_kl(even, sure * 2, ROWS, LABELLED, temperature=2.0)
    assert torch.allclose(told, 4 * log3 * torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64))


def test_gradients() -> None:
    own, theirs = scores(1).requires_grad_(), scores(2)
    assert torch.autograd.gradcheck(lambda s: mlm(s, LABELS, ROWS, LABELLED), own)
    assert torch.autograd.gradcheck(lambda s: vocabulary_kl(s, theirs, ROWS, LABELLED, temperature=3.0), own)
    (at_itself,) = torch.autograd.grad(vocabulary_kl(own, own.detach(), ROWS, LABELLED).sum(), own)
    assert torch.allclose(at_itself, torch.zeros_like(at_itself))


def test_of_several_teachers_their_mean() -> None:
    own, theirs = scores(1), torch.stack([scores(2), scores(3)])
    mean = (theirs / 2).softmax(-1).mean(0)
    assert torch.allclose(
        vocabulary_kl(own, theirs, ROWS, LABELLED), vocabulary_kl(own, mean.log() * 2, ROWS, LABELLED)
    )


def test_the_mean_over_masked_tokens_is_transformers() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm = BertForMaskedLM(BertConfig(**shape, intermediate_size=16, hidden_dropout_prob=0.0)).eval()
    ids = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([1, 4, 7, 13])
    labels = torch.tensor([3, 2, 1, 0])
    asked = torch.full((15,), -100).index_put((places,), labels).view(3, 5)
    expected = lm(input_ids=ids, labels=asked).loss.detach()
    own = WithVocabulary(lm, lm.cls)(ids, places).vocabulary
    assert own is not None
    losses = build_losses([LossSpec(type="mlm")])
    units = torch.tensor([2, 1, 1])
    known = {"vocabulary": own, "masked_labels": labels, "masked_rows": places // 5}
    total, sums, counts = losses(known, {}, torch.ones(3, dtype=torch.bool), units)
    assert torch.allclose(total / units.sum(), expected)
    assert float(sums["mlm"] / counts["mlm"]) == pytest.approx(float(expected))
    assert WithVocabulary(lm, lm.cls, vocabulary=7)(ids, places).vocabulary.shape == (4, 7)  # type: ignore[union-attr]
