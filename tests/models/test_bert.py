"""BERT classifiers: published sizes, shapes of a recipe, and pretrained folders that fit or do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from dtrain.errors import InputError
from dtrain.models import build, load, own, parameter_count, save_model, transformer, weights_fingerprint
from dtrain.models.transformer import without_mask_checks
from dtrain.recipe.architectures.classifiers import TextCNNSpec
from dtrain.recipe.architectures.transformers import BertCNNSpec, BertSpec, NezhaSpec


def tokenizer_folder(folder: Path) -> Path:
    path = folder / "tokenizer"
    path.mkdir()
    (path / "tokenizer_config.json").write_text("{}")
    return path


LABELS = ["news", "sport", "tech"]
SHAPE = {"hidden": 16, "layers": 2, "heads": 2}


def bert(vocabulary: int = 40, max_length: int | None = None, seed: int = 0, **keys: Any) -> Any:
    torch.manual_seed(seed)
    spec = BertSpec.model_validate({"type": "bert", **keys})
    return build(spec, vocabulary=vocabulary, labels=LABELS, pad_id=0, max_length=max_length)


@pytest.mark.parametrize(
    ("size", "count"),
    [  # parameters of google/bert_uncased_L-*_H-*_A-* and bert-base/large-uncased, encoder with pooler
        ("tiny", 4_385_920),
        ("mini", 11_170_560),
        ("small", 28_763_648),
        ("medium", 41_373_184),
        ("base", 109_482_240),
        ("large", 335_141_888),
    ],
)
def test_published_sizes(size: str, count: int) -> None:
    with torch.device("meta"):
        model = bert(vocabulary=30522, size=size)
    assert parameter_count(model.bert) == count
    assert model.config.hidden_size == 64 * model.config.num_attention_heads


def test_shape_of_a_recipe() -> None:
    model = bert(**SHAPE, intermediate=24, dropout=0.3)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert config.intermediate_size == 24 and config.vocab_size == 40 and config.pad_token_id == 0
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == config.classifier_dropout == 0.3
    assert config.id2label == dict(enumerate(LABELS)) and config.label2id["tech"] == 2
    assert config._attn_implementation == "sdpa"
    assert model.training and model.classifier.out_features == 3
    assert bert(hidden=20, heads=4).config.intermediate_size == 80


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match="heads: 3 heads do not divide a hidden size of 16"):
        bert(hidden=16, heads=3)


def test_nezha_is_built_saved_and_loaded(tmp_path: Path) -> None:
    """From a recipe's section to a folder that both `load` and the Auto class read, with equal answers."""
    spec = NezhaSpec.model_validate({"type": "nezha", **SHAPE, "max_relative_position": 3})
    torch.manual_seed(0)
    model = build(spec, vocabulary=40, labels=LABELS, pad_id=0, max_length=16).eval()
    save_model(model, tmp_path / "m", tokenizer_folder(tmp_path), "card")
    ids = torch.randint(1, 40, (2, 9))
    mask = torch.ones_like(ids)
    expected = model(input_ids=ids, attention_mask=mask).logits
    for loaded in (load(tmp_path / "m"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")):
        assert type(loaded).__name__ == "NezhaForSequenceClassification"
        assert loaded.config.max_relative_position == 3
        torch.testing.assert_close(loaded(input_ids=ids, attention_mask=mask).logits, expected)


def test_long_texts_have_positions() -> None:
    assert bert(**SHAPE).config.max_position_embeddings == 512
    assert bert(**SHAPE, max_length=600).config.max_position_embeddings == 600


def test_a_function_of_the_seed() -> None:
    prints = [weights_fingerprint(bert(**SHAPE, seed=seed)) for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_padding_changes_nothing() -> None:
    model = bert(**SHAPE).eval()
    ids, mask = torch.tensor([[5, 6, 7, 0], [8, 9, 3, 4]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    more = torch.tensor([[17] * 5] * 2)
    with torch.no_grad():
        tight = model(input_ids=ids, attention_mask=mask).logits
        loose = model(
            input_ids=torch.cat([ids, more], 1), attention_mask=torch.cat([mask, torch.zeros_like(more)], 1)
        ).logits
    torch.testing.assert_close(loose, tight, rtol=0, atol=1e-6)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    return tmp_path / "mlm"


def test_pretrained_encoder_is_taken_over(pretrained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = bert(pretrained=str(pretrained), dropout=0.25)
    assert "MISSING" not in capfd.readouterr().err
    source = BertForMaskedLM.from_pretrained(pretrained).bert.state_dict()
    ours = model.bert.state_dict()
    assert source and all(torch.equal(ours[name], value) for name, value in source.items())
    assert model.training and model.dtype == torch.float32 and model.classifier.out_features == 3
    assert model.config.id2label == dict(enumerate(LABELS)) and model.dropout.p == 0.25
    again, other = (bert(pretrained=str(pretrained), seed=seed) for seed in (0, 1))
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)


def test_a_head_for_other_labels_is_drawn_anew(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=7, max_position_embeddings=64,
    )  # fmt: skip
    source = BertForSequenceClassification(config)
    source.save_pretrained(tmp_path)
    model = bert(pretrained=str(tmp_path))
    assert model.classifier.weight.shape == (3, 16)
    assert torch.equal(model.bert.pooler.dense.weight, source.bert.pooler.dense.weight)


def test_pretrained_that_does_not_fit_is_refused(pretrained: Path) -> None:
    with pytest.raises(InputError, match="^model.pretrained: .*has 40 token embeddings.* 41 tokens"):
        bert(pretrained=str(pretrained), vocabulary=41)
    with pytest.raises(InputError, match="^data.max_length: 65 is more than the 64 positions"):
        bert(pretrained=str(pretrained), max_length=65)
    assert bert(pretrained=str(pretrained), max_length=64).config.max_position_embeddings == 64


def test_pretrained_that_is_absent_or_damaged_is_refused(pretrained: Path, tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            bert(pretrained=str(path))
        (line,) = caught.value.problems
        assert line.startswith("model.pretrained: ") and "\n" not in line
        return line

    assert "neither a model folder nor a hub model" in problem(tmp_path / "no" / "such" / "folder")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in problem(tmp_path / "empty")
    config = (pretrained / "config.json").read_text()
    (pretrained / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    assert "lacks bert.encoder.layer.2." in problem(pretrained)
    (pretrained / "config.json").write_text(config.replace('"intermediate_size": 32', '"intermediate_size": 36'))
    assert "bert.encoder.layer.0.intermediate.dense.bias has another shape" in problem(pretrained)
    (pretrained / "config.json").write_text(config)
    (pretrained / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded" in problem(pretrained)
    (pretrained / "model.safetensors").unlink()
    torch.save(BertForMaskedLM(BertConfig.from_pretrained(pretrained)).state_dict(), pretrained / "pytorch_model.bin")
    assert "cannot be loaded" in problem(pretrained)


class Asked(TorchDispatchMode):
    """Counts how often the value of a tensor was asked for, which on a GPU waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("hidden", [0, 2])
def test_without_mask_checks_nothing_waits_for_the_device(hidden: int) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(config).eval()
    ids, mask = torch.randint(1, 50, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, 7 - hidden :] = 0
    answers, asked = [], []
    for _ in range(2):
        with torch.inference_mode(), Asked() as mode:
            answers.append(model(input_ids=ids, attention_mask=mask).logits)
        asked.append(mode.times)
        without_mask_checks(model, torch.device("cuda"))
    assert asked[0] > 0
    assert asked[1] == 0
    torch.testing.assert_close(answers[0], answers[1])


def test_transformers_is_imported_for_models_that_have_one_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[bool] = []

    def counted() -> Any:
        imported.append(True)
        return transformer

    monkeypatch.setattr(own, "transformer", counted)
    kind: dict[str, Any] = {"vocabulary": 20, "labels": ["a", "b"], "pad_id": 0}
    own.without_mask_checks(build(TextCNNSpec(type="textcnn"), **kind), torch.device("cuda"))
    assert not imported
    section = {"type": "bert_cnn", "encoder": {"type": "bert", "layers": 1, "hidden": 8, "heads": 2}}
    model = build(BertCNNSpec.model_validate(section), **kind)
    imported.clear()
    own.without_mask_checks(model, torch.device("cuda"))
    assert imported
