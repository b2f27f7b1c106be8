"""BERT-CNN and the multi-exit BERT against transformers' own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import BertConfig, BertModel

from dtrain.errors import InputError
from dtrain.models import build
from dtrain.models.textcnn import TextCNN
from dtrain.recipe.models import ModelSpec

ENCODER = {"type": "bert", "hidden": 16, "layers": 4, "heads": 2, "dropout": 0.0}


def make(section: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    spec: Any = TypeAdapter(ModelSpec).validate_python(section)
    return build(spec, vocabulary=30, labels=["a", "b", "c"], pad_id=0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 30, (24, 9), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(9) < torch.randint(1, 10, (24, 1), generator=torch.Generator().manual_seed(3))).long()
    return ids, mask


def test_bert_cnn_is_a_textcnn_over_the_last_states(batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    model = make({"type": "bert_cnn", "encoder": ENCODER, "filters": 5, "dropout": 0.0}).eval()
    plain = TextCNN(
        vocab_size=1, classes=3, pad_token_id=0, embedding=16, filters=5, widths=[2, 3, 4], dropout=0.0
    ).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("encoder")}, strict=False)
    for row in range(len(ids)):
        length = int(mask[row].sum())
        states = model.encoder(ids[row : row + 1, :length]).last_hidden_state
        plain.embedding.weight = torch.nn.Parameter(torch.cat([torch.zeros(1, 16), states[0]]).detach())
        alone = plain(torch.arange(1, length + 1)[None], torch.ones(1, length, dtype=torch.long))
        torch.testing.assert_close(model(ids, mask).features[row], alone.features[0])
        torch.testing.assert_close(model(ids, mask).logits[row], alone.logits[0])


def test_exits_are_classifiers_of_the_layers_states(batch: tuple[Tensor, Tensor]) -> None:
    ids, mask = batch
    model = make({"type": "multi_exit", "encoder": ENCODER, "exits": [2, 1], "dropout": 0.0})
    states = model.encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = model(ids, mask)
    assert model.exits == [1, 2, 4]
    for exit, layer in enumerate(model.exits):
        torch.testing.assert_close(found.exits[exit], model.classifiers[exit](states[layer][:, 0]))
    assert torch.equal(found.logits, found.exits[-1])
    assert found.exit.tolist() == [2] * 24


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_row_leaves_at_the_first_exit_that_is_sure(batch: tuple[Tensor, Tensor], share: float) -> None:
    ids, mask = batch
    model = make({"type": "multi_exit", "encoder": ENCODER, "exits": [1, 2], "confidence": 0.9, "dropout": 0.0})
    with torch.no_grad():
        for classifier in model.classifiers:
            classifier.weight *= 4
    every = model(ids, mask).exits.detach()
    confidence = model.confidence = float(every[:2].softmax(-1).amax(-1).quantile(share)) + 1e-5 * share
    layers: list[int] = []
    for layer in model.encoder.encoder.layer:
        layer.register_forward_pre_hook(lambda _, given: layers.append(len(given[0])))
    with torch.inference_mode():
        found = model.eval()(ids, mask)
    sure = every.softmax(-1).amax(-1) >= confidence
    sure[-1] = True
    expected = sure.int().argmax(0)
    assert torch.equal(found.exit, expected)
    torch.testing.assert_close(found.logits, every[expected, range(24)])
    later = [int((expected >= exit).sum()) for exit in (0, 1, 2, 2)]  # who is still inside at layers 1 to 4
    assert layers == [count for count in later if count]
    assert set(expected.tolist()) == ({0} if share == 0 else {2} if share == 1 else {0, 1, 2})


def test_every_module_is_called_where_ranks_share_the_weights(batch: tuple[Tensor, Tensor]) -> None:
    """A rank whose rows have all left calls what others still call: each call gathers slices of weights from all ranks."""
    ids, mask = batch
    model = make({"type": "multi_exit", "encoder": ENCODER, "exits": [1, 2], "confidence": 0.01, "dropout": 0.0}).eval()
    with torch.inference_mode():
        expected = model(ids, mask)
    called: list[torch.nn.Module] = []
    modules = [*model.encoder.encoder.layer, *model.classifiers]
    for module in modules:
        module.register_forward_hook(lambda module, *_: called.append(module))
    model.every_layer = True
    with torch.inference_mode():
        found = model(ids, mask)
    assert found.exit.tolist() == [0] * 24
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.features, expected.features)
    assert len(called) == len(modules) and set(called) == set(modules)


def test_an_exit_that_a_pretrained_encoder_does_not_have(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model.exits: 5 is more than the 4 layers of the encoder"):
        make({"type": "multi_exit", "encoder": {"type": "bert", "pretrained": str(tmp_path)}, "exits": [5]})
