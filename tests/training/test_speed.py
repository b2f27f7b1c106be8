"""Model FLOPs compared with torch's own FLOP counter, and means between two readings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dtrain.engines.speed import Speed, listed_peak, matmul_rate, model_flops, peak_flops

CPU = torch.device("cpu")


def test_model_flops_are_those_that_torch_counts() -> None:
    """For the forward and backward pass of a BERT; pooler and classifier compute one token per row, which the formula
    leaves out.
    """
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
    speed = Speed((1e12, 1e10), CPU, "fp32", 2, seconds=10.0)
    speed.add(np.array([3, 5], dtype=np.int16))
    speed.add(np.array([2]))
    found = speed.look(12.0)
    assert found["rows_per_second"] == 1.5
    assert found["tokens_per_second"] == 5.0
    assert found["model_tflops"] == pytest.approx(5.0 + (9 + 25 + 4) / 100 / 2)
    # No data sheet gives the peak of this CPU, so utilisation is relative to the measured rate.
    assert found["utilisation"] == pytest.approx(found["model_tflops"] * 1e12 / (2 * matmul_rate(CPU, "fp32")))
    speed.add(np.array([7]))
    assert speed.look(13.0)["rows_per_second"] == 1.0


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        # Names that contain other names, and devices whose rate is measured.
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("Tesla V100S-PCIE-32GB", None),
        ("", None),
    ],
)
def test_a_device_has_the_peak_of_its_own_data_sheet(name: str, tflops: int | None) -> None:
    assert listed_peak(name) == (None if tflops is None else tflops * 1e12)


def test_the_rate_of_a_device_without_a_data_sheet_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that advances by 10 ms, with a matrix product between two readings."""
    ticks = itertools.count()
    monkeypatch.setattr("dtrain.engines.speed.time.perf_counter", lambda: next(ticks) * 0.01)
    matmul_rate.cache_clear()
    assert peak_flops(CPU, "bf16") == pytest.approx(2 * 1024**3 / 0.01)
    assert next(ticks) < 100, "a fifth of a second"
    matmul_rate.cache_clear()
