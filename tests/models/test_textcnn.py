"""TextCNN against the definition written out in numpy, a text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.models import build
from dtrain.models.textcnn import TextCNN
from dtrain.recipe.architectures.classifiers import TextCNNSpec

LABELS = ["a", "b", "c"]


def model(widths: tuple[int, ...] = (2, 3, 5), dropout: float = 0.5) -> TextCNN:
    torch.manual_seed(0)
    spec = TextCNNSpec(type="textcnn", embedding=6, filters=7, widths=list(widths), dropout=dropout)
    built = build(spec, vocabulary=20, labels=LABELS, pad_id=0)
    assert isinstance(built, TextCNN)
    return built


def padded(texts: list[list[int]], extra: int = 0, fill: int = 0) -> dict[str, torch.Tensor]:
    length = max(map(len, texts)) + extra
    ids = torch.tensor([text + [fill] * (length - len(text)) for text in texts], dtype=torch.int64)
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return {"input_ids": ids.reshape(len(texts), length), "attention_mask": mask.reshape(len(texts), length)}


def by_definition(cnn: TextCNN, text: list[int]) -> tuple[np.ndarray, np.ndarray]:
    weights = {name: tensor.double().numpy() for name, tensor in cnn.state_dict().items()}
    pooled = []
    for number, width in enumerate(cnn.widths):
        vectors = [weights["embedding.weight"][token] for token in text]
        vectors += [np.zeros(6)] * (width - len(text))
        kernel, bias = weights[f"convolutions.{number}.weight"], weights[f"convolutions.{number}.bias"]
        windows = [
            bias + sum(kernel[:, :, offset] @ vectors[start + offset] for offset in range(width))
            for start in range(max(1, len(text) - width + 1))
        ]
        pooled.append(np.maximum(np.stack(windows), 0).max(0))
    features = np.concatenate(pooled)
    return weights["classifier.weight"] @ features + weights["classifier.bias"], features


TEXTS = [[5], [1, 2], [3, 4, 5, 6, 7, 8, 9], [9, 9, 9], [4, 3, 2, 1], [1, 2, 3, 4, 5], []]


@pytest.mark.parametrize("extra", [0, 1, 30])
def test_equals_the_definition(extra: int) -> None:
    cnn = model().eval()
    with torch.no_grad():
        output = cnn(**padded(TEXTS, extra))
    for row, text in enumerate(TEXTS):
        logits, features = by_definition(cnn, text)
        np.testing.assert_allclose(output.logits[row], logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(output.features[row], features, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 19), max_size=9), min_size=1, max_size=5),
    st.integers(0, 12),
    st.integers(0, 19),
)
def test_padding_changes_nothing(texts: list[list[int]], extra: int, fill: int) -> None:
    cnn = model().eval()
    with torch.no_grad():
        tight = cnn(**padded(texts)).logits
        loose = cnn(**padded(texts, extra, fill)).logits
        alone = torch.cat([cnn(**padded([text])).logits for text in texts])
    torch.testing.assert_close(loose, tight, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, tight, rtol=0, atol=1e-6)


def test_padding_changes_no_gradient() -> None:
    gradients = []
    for extra in (0, 17):
        cnn = model(dropout=0.0)
        cnn(**padded(TEXTS, extra, fill=3)).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in cnn.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)
    assert not gradients[0]["embedding.weight"][0].any()


def test_dropout_is_on_the_pooled_features_only() -> None:
    cnn = model(dropout=0.9).train()
    batch = padded(TEXTS)
    first, second = cnn(**batch), cnn(**batch)
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)


def test_size() -> None:
    # 20*6 embeddings; for each width w 7*6*w + 7; 3 classes of 21 features + 3
    assert sum(p.numel() for p in model().parameters()) == 120 + 42 * (2 + 3 + 5) + 21 + 66
    assert not model().embedding.weight[0].any()
    spread = TextCNNSpec(type="textcnn", embedding=100)
    weight = build(spec=spread, vocabulary=500, labels=LABELS, pad_id=3).embedding.weight  # type: ignore[union-attr]
    assert not weight[3].any() and abs(weight[4:].std().item() - 1) < 0.02


def test_half_autocast() -> None:
    cnn = model().eval()
    with torch.no_grad():
        exact = cnn(**padded(TEXTS)).logits
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                torch.testing.assert_close(cnn(**padded(TEXTS)).logits.float(), exact, rtol=0.05, atol=0.05)
