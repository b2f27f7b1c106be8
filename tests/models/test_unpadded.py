"""BERT without padding gives BERT's answers; where it cannot be had, the reason is told."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from dtrain.errors import InputError
from dtrain.models.unpadded import UnpaddedBert, check_unpadded, unpadded

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
LENGTHS = [5, 1, 9, 9, 3]


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=4, **SHAPE)).eval()


def text_by_text(query, key, value, bounds, longest):
    """Attention of each text to itself, as its definition says."""
    assert longest == max(LENGTHS)
    pieces = []
    for start, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
        q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
        pieces.append(functional.scaled_dot_product_attention(q, k, v).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("types", [False, True])
def test_answers_are_those_of_the_padded_model(types):
    model = bert()
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    batch = {"input_ids": torch.randint(1, 50, mask.shape) * mask, "attention_mask": mask.long()}
    if types:
        batch["token_type_ids"] = (torch.randint(0, 2, mask.shape) * mask).long()
    with torch.inference_mode():
        expected = model(**batch, output_hidden_states=True)
        found = UnpaddedBert(model, text_by_text).eval()(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.features, expected.hidden_states[-1][:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("types", "capability", "precision", "reason"),
    [
        (["bert", "nezha", "textcnn"], (9, 0), "bf16", r"is for teachers of type bert \(found: nezha, textcnn\)"),
        (["bert"], None, "bf16", r"needs a GPU of compute capability 8.0 or more \(found: cpu\)"),
        (["bert"], (7, 5), "bf16", r"needs a GPU of compute capability 8.0 or more \(found: cuda\)"),
        (["bert"], (8, 0), "fp32", r"needs knowledge.precision bf16 or fp16 \(found: fp32\)"),
    ],
)
def test_where_it_cannot_be_had_the_reason_is_told(types, capability, precision, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(InputError, match=f"^knowledge.unpadded: {reason}"):
        check_unpadded(torch.device("cuda" if capability else "cpu"), precision, types)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = bert().cuda()
    lengths = torch.tensor(LENGTHS, device="cuda")
    mask = torch.arange(max(LENGTHS), device="cuda") < lengths[:, None]
    batch = {"input_ids": torch.randint(1, 50, mask.shape, device="cuda") * mask, "attention_mask": mask.long()}
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        expected = model(**batch).logits
        found = unpadded(model).eval()(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
