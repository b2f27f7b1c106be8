"""What hooks take inside transformers, against what the models say themselves and against formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtrain.engines.choose import _checkpoint_activations
from dtrain.models import build
from dtrain.models.inside import shape_of, taking
from dtrain.recipe.models import architectures

LABELS = ["a", "b", "c"]
SHAPE = {"hidden": 24, "layers": 3, "heads": 4, "dropout": 0.0}


def model_of(type: str = "bert", **more: Any) -> nn.Module:
    torch.manual_seed(3)
    spec = architectures()[type].model_validate({"type": type, **(SHAPE if type in ("bert", "nezha") else {}), **more})
    made = build(spec, vocabulary=40, labels=LABELS, pad_id=0)
    for parameter in made.parameters():  # biases and norms begin alike: then nothing would tell layers apart
        nn.init.normal_(parameter, std=0.2)
    return made


def inputs(length: int = 9, padded: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(1, 40, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        ids[1, -padded:], mask[1, -padded:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("type", ["bert", "nezha"])
def test_states_are_those_of_the_model_which_answers_as_ever(type: str) -> None:
    model, given = model_of(type).eval(), inputs()
    told = model(**given, output_hidden_states=True)
    plain = model(**given)
    hooks = [len(module._forward_hooks) for module in model.modules()]  # transformers may have left some
    with taking(model, [*(f"hidden_states/{layer}" for layer in range(4)), "embeddings/0"]) as taken:
        answer = model(**given)
    assert torch.equal(answer.logits, plain.logits)
    for layer, states in enumerate(told.hidden_states):
        assert torch.equal(taken()[f"hidden_states/{layer}"], states)
    assert torch.equal(taken()["embeddings/0"], told.hidden_states[0])
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


@pytest.mark.parametrize("type", ["bert", "nezha"])
def test_scores_are_what_attention_takes_the_softmax_of(type: str) -> None:
    """Of the layers that are asked for alone, from queries and keys, while attention itself stays fused."""
    model, given = model_of(type).eval(), inputs()
    with taking(model, ["attention_scores/1", "attention_scores/3", "queries/1"]) as taken:
        model(**given)
    if type == "bert":
        model.set_attn_implementation("eager")  # type: ignore[operator]
    told = model(**given, output_attentions=True).attentions
    visible = given["attention_mask"][:, None, None, :].bool()
    for layer in (1, 3):
        weights = taken()[f"attention_scores/{layer}"].masked_fill(~visible, -1e9).softmax(-1)
        torch.testing.assert_close(weights, told[layer - 1], rtol=1e-5, atol=1e-6)
    assert taken().keys() == {"attention_scores/1", "attention_scores/3", "queries/1"}
    assert taken()["queries/1"].shape == (2, 4, 9, 6)


def test_scores_of_nezha_have_the_relative_term() -> None:
    """Against a table of every pair's sinusoid, as transformers 4.57 wrote it, beyond the distance of clipping, too."""
    model = model_of("nezha", max_relative_position=4).eval()
    with taking(model, ["queries/2", "keys/2", "attention_scores/2"]) as taken:
        model(**inputs(length=11))
    query, key = taken()["queries/2"], taken()["keys/2"]
    reach, size, length = 4, 6, 11
    table = torch.zeros(2 * reach + 1, size)
    for position in range(2 * reach + 1):
        for at in range(0, size, 2):
            angle = position / 10000 ** (at / size)
            table[position, at], table[position, at + 1] = math.sin(angle), math.cos(angle)
    expected = torch.zeros(2, 4, length, length)
    for i in range(length):
        for j in range(length):
            relative = table[min(max(j - i, -reach), reach) + reach]
            expected[:, :, i, j] = (query[:, :, i] * (key[:, :, j] + relative)).sum(-1) / math.sqrt(size)
    torch.testing.assert_close(taken()["attention_scores/2"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("type", ["bert", "nezha"])
def test_padding_changes_nothing_of_what_is_taken(type: str) -> None:
    model = model_of(type).eval()
    names = ["hidden_states/0", "hidden_states/2", "values/3", "attention_scores/2"]
    found = []
    for padded in (0, 5):
        given = {name: torch.nn.functional.pad(one, (0, padded)) for name, one in inputs(7, 0).items()}
        with taking(model, names) as taken:
            model(**given)
        found.append(taken())
    for name in names:
        whole, longer = found[0][name], found[1][name]
        if name.startswith("attention"):
            longer = longer[..., :7]
        longer = longer[:, :, :7] if name.startswith(("attention", "values")) else longer[:, :7]
        torch.testing.assert_close(longer, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("type", ["bert", "nezha"])
def test_gradients_under_activation_checkpointing(type: str) -> None:
    """What backward computes again is not taken again, and gradients are those without."""

    def gradients(checkpointed: bool) -> list[Tensor]:
        model = model_of(type).train()
        if checkpointed:
            _checkpoint_activations(model)
        with taking(model, ["hidden_states/1", "queries/2", "attention_scores/3"]) as taken:
            model(**inputs())
        found = taken()
        loss = sum(one.square().mean() for one in found.values())
        loss.backward()  # type: ignore[union-attr]
        assert taken().keys() == found.keys()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert len(plain) == len(again) > 20
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("type", "more"),
    [
        ("bert_cnn", {"encoder": {"type": "nezha", **SHAPE}, "filters": 4}),
        ("multi_exit", {"encoder": {"type": "bert", **SHAPE}, "exits": [1, 3]}),
        ("tagger", {"encoder": {"type": "bert", **SHAPE}, "lstm": 4}),
    ],
)
def test_encoders_of_other_models(type: str, more: dict[str, Any]) -> None:
    model = model_of(type, **more).eval()
    assert shape_of(model) == (24, 3, 4)
    with taking(model, ["hidden_states/3", "keys/1"]) as taken:
        model(**inputs())
    assert taken()["hidden_states/3"].shape == (2, 9, 24) and taken()["keys/1"].shape == (2, 4, 9, 6)


def test_scores_are_of_full_precision_under_autocast() -> None:
    model = model_of().eval()
    with torch.autocast("cpu", torch.bfloat16), taking(model, ["attention_scores/1", "queries/1"]) as taken:
        model(**inputs())
        found = taken()
    assert found["queries/1"].dtype == torch.bfloat16 and found["attention_scores/1"].dtype == torch.float32


def test_what_is_not_there() -> None:
    assert shape_of(model_of("bilstm", embedding=4, hidden=4)) is None
    for type, name in (("bilstm", "hidden_states/1"), ("bert", "hidden_states/4"), ("bert", "queries/0")):
        more = {"embedding": 4, "hidden": 4} if type == "bilstm" else {}
        with pytest.raises(ValueError, match=f"has no {name}"), taking(model_of(type, **more), [name]):
            pass
    sure = model_of("multi_exit", encoder={"type": "bert", **SHAPE}, exits=[1], confidence=0.01).eval()
    with taking(sure, ["hidden_states/3"]) as taken:
        sure(**inputs())
    with pytest.raises(ValueError, match="layer 3 was called 0 times"):
        taken()
