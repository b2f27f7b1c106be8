"""BiLSTM against torch's LSTM run on each text alone, without padding or packing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.models import build, recurrent
from dtrain.models.bilstm import BiLSTM
from dtrain.recipe.architectures.classifiers import BiLSTMSpec

TEXTS = [[5], [1, 2], [3, 4, 5, 6, 7, 8, 9], [9, 9, 9], [4, 3, 2, 1]]


def model(pooling: str = "final", layers: int = 1, dropout: float = 0.0) -> BiLSTM:
    torch.manual_seed(0)
    spec = BiLSTMSpec.model_validate(
        {
            "type": "bilstm",
            "embedding": 6,
            "hidden": 5,
            "layers": layers,
            "pooling": pooling,
            "dropout": dropout,
        }
    )
    built = build(spec, vocabulary=20, labels=["a", "b", "c"], pad_id=0)
    assert isinstance(built, BiLSTM)
    return built


def padded(texts: list[list[int]], extra: int = 0, fill: int = 0) -> dict[str, torch.Tensor]:
    length = max(map(len, texts)) + extra
    ids = torch.tensor([text + [fill] * (length - len(text)) for text in texts], dtype=torch.int64)
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return {"input_ids": ids.reshape(len(texts), length), "attention_mask": mask.reshape(len(texts), length)}


def alone(lstm: BiLSTM, text: list[int]) -> torch.Tensor:
    states, _ = lstm.lstm(lstm.embedding(torch.tensor(text or [0]))[None])
    if lstm.pooling == "final":
        features = torch.cat([states[0, -1, :5], states[0, 0, 5:]]).tanh()
    elif lstm.pooling == "max":
        features = states[0].max(0).values
    else:
        features = states[0].mean(0)
    return features


@pytest.mark.parametrize("pooling", ["final", "max", "mean"])
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_each_text_alone(pooling: str, layers: int) -> None:
    lstm = model(pooling, layers).eval()
    with torch.no_grad():
        output = lstm(**padded([*TEXTS, []], extra=3))
        features = torch.stack([alone(lstm, text) for text in [*TEXTS, []]])
        torch.testing.assert_close(output.features, features, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output.logits, lstm.classifier(features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["final", "max", "mean"])
@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(1, 19), max_size=9), min_size=1, max_size=5),
    extra=st.integers(0, 12),
    fill=st.integers(0, 19),
)
def test_padding_and_order_change_nothing(pooling: str, texts: list[list[int]], extra: int, fill: int) -> None:
    lstm = model(pooling).eval()
    with torch.no_grad():
        tight = lstm(**padded(texts)).logits
        loose = lstm(**padded(texts, extra)).logits
        assert torch.equal(lstm(**padded(texts, extra, fill)).logits, loose)
        # Products of another shape may be added up in another order, as CPUs see fit.
        torch.testing.assert_close(loose, tight, rtol=0, atol=1e-6)
        torch.testing.assert_close(lstm(**padded(texts[::-1])).logits.flip(0), tight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["final", "max", "mean"])
def test_padding_changes_no_gradient(pooling: str) -> None:
    gradients = []
    for extra in (0, 9):
        lstm = model(pooling)
        lstm(**padded(TEXTS, extra, fill=3)).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in lstm.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_dropout_is_on_the_features_only() -> None:
    lstm = model(dropout=0.9).train()
    first, second = lstm(**padded(TEXTS)), lstm(**padded(TEXTS))
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)


def test_size() -> None:
    # two directions of 4 gates: (6 + 5) * 5 weights and two biases of 5
    assert sum(p.numel() for p in model().parameters()) == 20 * 6 + 2 * 4 * 5 * (6 + 5 + 2) + 10 * 3 + 3


@pytest.mark.parametrize("pooling", ["final", "max", "mean"])
def test_half_autocast(pooling: str) -> None:
    lstm = model(pooling).eval()
    with torch.no_grad():
        exact = lstm(**padded(TEXTS)).logits
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                torch.testing.assert_close(lstm(**padded(TEXTS)).logits.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_where_the_cpu_has_no_half_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with AVX2 alone: torch raises for an LSTM under autocast, forward and backward."""
    whole = torch.lstm

    def without_half(inputs: torch.Tensor, *others: object) -> tuple[torch.Tensor, ...]:
        if torch.is_autocast_enabled("cpu") or inputs.dtype == dtype:
            raise RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive.")
        return whole(inputs, *others)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "lstm", without_half)
    recurrent._has_kernel.cache_clear()
    try:
        lstm = model()
        exact = lstm(**padded(TEXTS)).features
        with torch.autocast("cpu", dtype):
            found = lstm(**padded(TEXTS)).features
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, rtol=0.01, atol=0.01)
        found.float().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in lstm.lstm.parameters())
        with torch.inference_mode():
            states = recurrent.read_both_ways(
                lstm.lstm.to(dtype), torch.randn(2, 3, 6, dtype=dtype), torch.tensor([3, 1])
            )
        assert states.dtype == dtype
    finally:
        recurrent._has_kernel.cache_clear()
