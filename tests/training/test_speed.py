"""Model FLOPs against torch's own counter of what is computed, and means between two looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dtrain.training.speed import Speed, model_flops


def test_model_flops_are_those_that_torch_counts() -> None:
    """Of a BERT's forward and backward; pooler and classifier multiply one token a row, which the formula does not see."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256
    )
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config)
    rows, length = 4, 32
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=torch.ones(rows, length, dtype=torch.long)).logits.sum().backward()
    per_token, per_pair = model_flops(model)
    expected = per_token * rows * length + per_pair * rows * length**2
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_looks_are_means_of_what_came_between() -> None:
    speed = Speed((1e12, 1e10), torch.device("cpu"), "fp32", 2, seconds=10.0)
    speed.add(np.array([3, 5], dtype=np.int16))
    speed.add(np.array([2]))
    found = speed.look(12.0)
    assert found["rows_per_second"] == 1.5
    assert found["tokens_per_second"] == 5.0
    assert found["model_tflops"] == pytest.approx(5.0 + (9 + 25 + 4) / 100 / 2)
    assert "utilisation" not in found  # no data sheet says what this CPU can do
    speed.add(np.array([7]))
    assert speed.look(13.0)["rows_per_second"] == 1.0
