"""Linear maps that leave out padding in training: the same loss and gradients as with it, from the same draws of dropout."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from dtrain.engines.choose import _checkpoint_activations
from dtrain.models import build
from dtrain.models.inside import taking, trunk_of, trunks
from dtrain.models.packing import _Narrow, _Widen, skip_padding
from dtrain.recipe.architectures.transformers import BertSpec, NezhaSpec
from dtrain.training import model_job
from tests.here import dtrain_here

LENGTHS = (7, 3, 12, 5)
CPU = torch.device("cpu")


def model(kind: str = "bert", **more: Any) -> Any:
    torch.manual_seed(0)
    spec: Any = BertSpec if kind == "bert" else NezhaSpec
    shape = {"hidden": 16, "layers": 2, "heads": 2, "intermediate": 32, "dropout": 0.2, **more}
    return build(spec.model_validate({"type": kind, **shape}), vocabulary=50, labels=["a", "b", "c"], pad_id=0)


def of_transformers(kind: str, **more: Any) -> Any:
    """A tiny classifier of another architecture."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(kind, vocab_size=50, pad_token_id=0, num_labels=3, **shape, **more)
    return AutoModelForSequenceClassification.from_config(config).train()


def batch(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 50, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask.long()}


def gradients(found: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    found.zero_grad()
    loss = torch.nn.functional.cross_entropy(found(**inputs).logits, torch.tensor([0, 1, 2, 0]))
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in found.parameters()])


def layer_products(found: Any, inputs: dict[str, Tensor]) -> int:
    """Floating-point operations of the linear maps of one layer's feed-forward part, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        found(**inputs).logits.sum().backward()
    trunk = trunk_of(found)
    counts = counter.get_flop_counts()
    name = next(key for key, module in found.named_modules() if module is trunk.encoder.layer[0].intermediate)
    return sum(counts[f"{type(found).__name__}.{name}"].values())


@pytest.mark.parametrize("kind", ["bert", "nezha"])
def test_loss_and_gradients_are_those_of_padded_batches(kind: str) -> None:
    padded = model(kind)
    packed = skip_padding(copy.deepcopy(padded), CPU)
    for inputs in (batch(), batch((4, 4, 4, 4)), batch((1, 9, 1, 1))):
        (loss, found), (other, wanted) = gradients(packed, inputs), gradients(padded, inputs)
        torch.testing.assert_close(loss, other, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "nezha"])
def test_products_are_of_tokens_alone(kind: str) -> None:
    padded, packed = model(kind), skip_padding(model(kind), CPU)
    places, tokens = len(LENGTHS) * max(LENGTHS), sum(LENGTHS)
    whole = layer_products(padded, batch())
    assert whole > 0
    assert layer_products(packed, batch()) * places == whole * tokens
    assert layer_products(packed, batch((5, 5, 5, 5))) == layer_products(padded, batch((5, 5, 5, 5)))


def test_nothing_changes_without_gradients_or_where_activations_are_computed_again() -> None:
    packed = skip_padding(model(), CPU)
    seen: list[tuple[int, ...]] = []
    trunk_of(packed).encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda _, args, output: seen.append(tuple(args[0].shape[:-1]))
    )
    packed(**batch())
    with torch.no_grad():
        packed(**batch())
    packed.eval()(**batch())
    packed.train()
    packed(input_ids=batch()["input_ids"])  # no mask
    _checkpoint_activations(packed)
    gradients(packed, batch())
    full = (len(LENGTHS), max(LENGTHS))
    assert seen == [(sum(LENGTHS),), full, full, full, full, full]  # the last is computed twice


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "electra"])
def test_other_encoders_of_the_same_structure(kind: str) -> None:
    padded = of_transformers(kind)
    packed = skip_padding(copy.deepcopy(padded), CPU)
    (loss, found), (other, wanted) = gradients(packed, batch()), gradients(padded, batch())
    assert layer_products(packed, batch()) < layer_products(padded, batch())
    torch.testing.assert_close(loss, other, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_an_encoder_that_reads_neighbours_keeps_its_padding() -> None:
    untouched = skip_padding(of_transformers("convbert", embedding_size=16), CPU)
    assert any(True for _ in trunks(untouched))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in untouched.modules())


def test_on_another_device_nothing_changes() -> None:
    untouched = skip_padding(model(), torch.device("cuda"))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in untouched.modules())


def test_states_and_queries_keep_their_places() -> None:
    names = ["hidden_states/1", "hidden_states/2", "queries/2", "attention_scores/1"]
    padded = model(dropout=0.0)
    packed = skip_padding(copy.deepcopy(padded), CPU)
    found = []
    for each in (padded, packed):
        with taking(each, names) as taken:
            each(**batch())
        found.append(taken())
    mask = batch()["attention_mask"].bool()
    for name in names[:2]:
        torch.testing.assert_close(found[1][name][mask], found[0][name][mask])
    heads = mask[:, None, :].expand(-1, 2, -1)
    torch.testing.assert_close(found[1]["queries/2"][heads], found[0]["queries/2"][heads])
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(-1, 2, -1, -1)
    torch.testing.assert_close(found[1]["attention_scores/1"][pairs], found[0]["attention_scores/1"][pairs])


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    packed = skip_padding(model(dropout=0.0), CPU)
    with pytest.raises(IndexError):
        packed(**batch() | {"input_ids": torch.full((4, 12), 99)})
    (loss, _), (wanted, _) = gradients(packed, batch()), gradients(model(dropout=0.0), batch())
    torch.testing.assert_close(loss, wanted)


def test_a_copy_of_a_model_has_places_of_its_own() -> None:
    packed = skip_padding(model(dropout=0.0), CPU)
    copied = copy.deepcopy(packed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    trunk_of(packed)(**batch((2, 12, 3, 4)))
    (_, found), (_, wanted) = gradients(packed, batch()), gradients(model(dropout=0.0), batch())
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert not torch.equal(copied(**batch()).logits, packed(**batch()).logits)


def test_derivatives_of_derivatives() -> None:
    rows = torch.tensor([4, 0, 3])
    states = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    few = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for function, start in (
        (lambda x: _Narrow.apply(x, rows).square(), states),
        (lambda x: _Widen.apply(x, rows, 5).square(), few),
    ):
        assert torch.autograd.gradcheck(function, start)
        assert torch.autograd.gradgradcheck(function, start)


def test_a_run_trains_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "sun rain dog cat"[: 3 + number % 13], "label": "ab"[number % 13 > 6]} for number in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    packed: list[nn.Module] = []
    real = model_job.skip_padding
    kept = []
    for name, function in (
        ("padded", lambda found, device: found),
        ("packed", lambda found, device: packed.append(real(found, device))),
    ):
        monkeypatch.setattr(model_job, "skip_padding", function)
        recipe = {
            "name": name,
            "output_dir": str(tmp_path),
            "data": {"train": str(tmp_path / "train.jsonl"), "vocabulary": {"min_count": 1}},
            "teachers": [{"name": "t", "model": {"type": "bert", "size": "tiny"}, "epochs": 2, "batch_size": 8}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(recipe))
        for stage in ("prepare", "finetune"):
            dtrain_here(stage, tmp_path / f"{name}.json")
        kept.append(load_file(tmp_path / name / "teachers" / "t" / "model.safetensors"))
    assert len(packed) == 1
    assert any(module._forward_hooks for module in packed[0].modules())
    # The gradient of a key's bias is rounding alone, which an optimizer may make a step of: no answer depends on it.
    seen = [name for name in kept[0] if not name.endswith("key.bias")]
    torch.testing.assert_close(*([weights[name] for name in seen] for weights in reversed(kept)), atol=2e-5, rtol=1e-4)
