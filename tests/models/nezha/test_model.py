"""What a transformers model has to do beside computing: files, Auto classes, padding, checkpointing, resizing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoTokenizer

from dtrain.models import nezha
from dtrain.models.nezha.auto import TASKS
from dtrain.models.nezha.layers import NezhaLayer

Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def registered() -> None:
    nezha.register()


def text(length: int, batch: int = 2) -> Tensor:
    return torch.randint(1, 20, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("task", [None, *TASKS])
def test_round_trip_through_the_auto_classes(build: Build, tmp_path: Path, task: str | None) -> None:
    nezha.register()
    auto = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    model = build(f"NezhaFor{task}" if task else "NezhaModel", max_relative_position=9)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    back, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(back) is type(model) and not any(info.values())
    assert back.config.max_relative_position == 9 and back.config.model_type == "nezha"
    before, after = model.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_new_model_from_its_configuration() -> None:
    shape = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("nezha", **shape, num_labels=5)
    assert isinstance(config, nezha.NezhaConfig)
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(config)
    assert model(text(6)).logits.shape == (2, 6, 5)
    words = model.nezha.embeddings.word_embeddings.weight
    assert words[0].abs().max() == 0 and words[1:].std().item() == pytest.approx(0.02, rel=0.1)


def test_the_tokenizer_of_a_folder_with_a_vocabulary(build: Build, tmp_path: Path) -> None:
    build("NezhaModel").config.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n北\n京\n", encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path)("北京")["input_ids"] == [2, 5, 6, 3]


def test_names_of_released_checkpoints(build: Build) -> None:
    """Those of `sijunhe/nezha-cn-base`, which transformers 4 wrote; tied weights may or may not be in a file."""
    names = set(build("NezhaForPreTraining").state_dict())
    layer = {
        f"nezha.encoder.layer.{index}.{part}.{kind}"
        for index in range(2)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
        for kind in ("weight", "bias")
    }
    others = {
        "nezha.embeddings.word_embeddings.weight",
        "nezha.embeddings.token_type_embeddings.weight",
        "nezha.embeddings.LayerNorm.weight",
        "nezha.embeddings.LayerNorm.bias",
        "nezha.pooler.dense.weight",
        "nezha.pooler.dense.bias",
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    assert names == layer | others


def test_a_stored_position_table_is_ignored(build: Build, tmp_path: Path) -> None:
    model = build("NezhaForMaskedLM")
    table = "nezha.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), table: torch.zeros(3)})
    _, info = nezha.NezhaForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(("length", "pad"), [(20, 9), (60, 5), (60, 6), (80, 70)])
def test_padding_on_either_side_changes_nothing(build: Build, length: int, pad: int) -> None:
    model, ids = build("NezhaModel"), text(length)
    with torch.no_grad():
        alone = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        padding, ones, zeros = ids.new_full((2, pad), 7), torch.ones_like(ids), ids.new_zeros(2, pad)
        right = model(torch.cat([ids, padding], 1), torch.cat([ones, zeros], 1)).last_hidden_state
        left = model(torch.cat([padding, ids], 1), torch.cat([zeros, ones], 1)).last_hidden_state
    assert (right[:, :length] - alone).abs().max() < 1e-5
    assert (left[:, pad:] - alone).abs().max() < 1e-5


def test_a_mask_for_each_query(build: Build) -> None:
    model, ids = build("NezhaModel"), text(90)
    causal = torch.ones(2, 90, 90).tril()
    with torch.no_grad():
        fast = model(ids, causal).last_hidden_state
        eager = model(ids, causal, output_attentions=True)
        shorter = model(ids[:, :50], causal[:, :50, :50]).last_hidden_state
    assert (fast - eager.last_hidden_state).abs().max() < 1e-5
    assert eager.attentions[0].triu(1).abs().max() == 0
    assert (fast[:, :50] - shorter).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # its heir is too new
@pytest.mark.parametrize("length", [12, 100])
def test_gradient_checkpointing_gives_the_same_gradients(
    build: Build, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    ids, gradients, passes = text(length), [], []
    run = NezhaLayer._run
    monkeypatch.setattr(NezhaLayer, "_run", lambda *args: passes.append(args[0]) or run(*args))
    for checkpointing in (False, True):
        model = build("NezhaForMaskedLM").train()  # with dropout: the second pass must draw the same
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        passes.clear()
        model(ids, labels=ids).loss.backward()
        assert len(passes) == (4 if checkpointing else 2)  # of 2 layers
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("length", [12, 100])
def test_embeddings_in_place_of_ids(build: Build, length: int) -> None:
    model, ids = build("NezhaForTokenClassification"), text(length)
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embedded).logits, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        model(ids, attention_mask=torch.ones(2, 3))


def test_longer_than_max_position_embeddings(build: Build) -> None:
    model, ids = build("NezhaModel", max_position_embeddings=8), text(100)
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, build("NezhaModel")(ids).last_hidden_state)


@pytest.mark.filterwarnings("ignore:The new")
@pytest.mark.parametrize("head", ["NezhaForMaskedLM", "NezhaForPreTraining"])
@pytest.mark.parametrize("size", [25, 11])
def test_resizing_the_vocabulary(build: Build, tmp_path: Path, head: str, size: int) -> None:
    model, ids = build(head), text(9) % 11
    with torch.no_grad():
        before = model(ids, return_dict=False)[0]
        model.resize_token_embeddings(size)
        after = model(ids, return_dict=False)[0]
    predictions = model.cls.predictions
    assert model.config.vocab_size == size and after.shape[-1] == size
    assert predictions.decoder.weight is model.get_input_embeddings().weight
    assert predictions.decoder.bias is predictions.bias
    kept = min(size, 20)
    assert (after[..., :kept] - before[..., :kept]).abs().max() < 1e-6
    model.save_pretrained(tmp_path)
    back = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(back(ids, return_dict=False)[0], after)


def test_outputs_on_request(build: Build) -> None:
    model, ids = build("NezhaForSequenceClassification"), text(7)
    output = model(ids, output_attentions=True, output_hidden_states=True)
    assert [tuple(a.shape) for a in output.attentions] == [(2, 2, 7, 7)] * 2
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 7, 16)] * 3
    assert set(model(ids)) == {"logits"}
    assert isinstance(model(ids, return_dict=False), tuple)
    configured = build("NezhaModel", output_hidden_states=True)
    assert len(configured(ids).hidden_states) == 3


def test_other_kinds_of_labels(build: Build) -> None:
    ids = text(6)
    model = nezha.NezhaForSequenceClassification(
        nezha.NezhaConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_labels=1)
    ).eval()
    numbers = torch.tensor([0.5, -1.0])
    output = model(ids, labels=numbers)
    assert output.loss.item() == pytest.approx(((output.logits[:, 0] - numbers) ** 2).mean().item())
    model = build("NezhaForSequenceClassification")
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    output = model(ids, labels=several)
    p = output.logits.sigmoid()
    wanted = -(several * p.log() + (1 - several) * (1 - p).log()).mean()
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_mixed_precision(build: Build) -> None:
    for length in (20, 90):
        model, ids = build("NezhaForMaskedLM"), text(length)
        wanted = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            output = model(ids, labels=ids)
        output.loss.backward()
        assert (output.logits - wanted).abs().max() < 0.1
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest storage that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, size)
        return result


@pytest.mark.parametrize("length", [65, 300])
def test_no_table_of_pairs_times_head(length: int) -> None:
    """One head of 32: a table of [length, length, 32] would be 32 times the scores."""
    model = nezha.NezhaModel(
        nezha.NezhaConfig(
            vocab_size=20, hidden_size=32, num_attention_heads=1, num_hidden_layers=1, intermediate_size=32
        )
    )
    with LargestTensor() as largest:
        model(text(length, batch=1)).last_hidden_state.sum().backward()
    assert largest.elements < 3 * length * length


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "multiple"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "even"),
        ({"max_relative_position": 0}, "at least 1"),
        ({"is_decoder": True}, "encoder"),
        ({"use_relative_position": False}, "BERT"),
    ],
)
def test_impossible_shapes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nezha.NezhaConfig(**values)
    if "num_labels" not in values:
        with pytest.raises(ValueError, match="start and an end"):
            nezha.NezhaForQuestionAnswering(nezha.NezhaConfig(num_labels=3))
