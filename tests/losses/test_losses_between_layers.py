"""Losses between the layers of two transformers: what they are given, their weights, padding, and how a batch is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dtrain.data.batch import Batch
from dtrain.errors import InputError
from dtrain.losses import find_loss, relations, states
from dtrain.losses.layers import Shapes
from dtrain.losses.objective import LossSum, Objective, build_losses
from dtrain.losses.over_rows import AllRows, pooled, similarity_difference
from dtrain.models import build
from dtrain.models.inside import from_embeddings, shape_of, taking
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.models import ModelSpec
from dtrain.tasks.classification.task import Classification

LENGTHS = (1, 7, 3, 5)  # a row of one token among them
PARTS = ("embeddings", "hidden_states", "queries", "keys", "values", "attention_scores")
STUDENT = {"type": "bert", "layers": 2, "hidden": 8, "heads": 2, "intermediate": 16, "dropout": 0.0}
TEACHER = {"type": "nezha", "layers": 4, "hidden": 12, "heads": 2, "intermediate": 16, "dropout": 0.0}

# Every loss on what is inside transformers, with the keys that its test gives it.
LOSSES: dict[str, dict[str, Any]] = {
    "hidden_mse": {},
    "hidden_cosine": {},
    "embedding_mse": {},
    "hidden_hint": {"layers": [[1, 2]]},
    "vid": {"variance": 2.0},
    "attention_mse": {},
    "attention_kl": {},
    "value_relations": {},
    "qkv_relations": {"relation_heads": 4},
    "attention_transfer": {"beta": 3.0, "power": 4.0},
    "fsp": {"layers": [[0, 0], [1, 2], [2, 4]]},
    "similarity_preserving": {},
    "gradient_transfer": {"beta": 3.0},
}


def make(section: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    spec: Any = TypeAdapter(ModelSpec).validate_python(section)
    model = build(spec, vocabulary=30, labels=["a", "b", "c"], pad_id=0).double()
    with torch.no_grad():
        for parameter in model.parameters():  # else attention is all but uniform
            parameter.mul_(4.0)
    return model


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return make(STUDENT, 1)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return make(TEACHER, 2).eval()


def losses_of(name: str, student: nn.Module, teacher: nn.Module, **changes: Any) -> LossSum:
    own, theirs = shape_of(student), shape_of(teacher)
    assert own is not None and theirs is not None
    torch.manual_seed(5)
    spec = LossSpec.model_validate({"type": name, **LOSSES.get(name, {}), **changes})
    return build_losses([spec], None, Shapes(own, {"t": theirs})).double()


def batch(losses: LossSum, teacher: nn.Module, rows: list[int], longer: int = 0) -> Batch:
    """Some rows, padded to the longest of them and `longer` more, with what the losses read of the teacher."""
    lengths = [LENGTHS[row] for row in rows]
    tokens = torch.randint(1, 30, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(max(lengths) + longer) < torch.tensor(lengths)[:, None]
    ids = torch.zeros_like(mask, dtype=torch.int64)
    ids[mask] = torch.cat([tokens[row, : LENGTHS[row]] for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    labels = torch.tensor(rows) % 3
    asked = losses.outputs_of("t")
    if asked == ["embedding_gradients/0"]:
        with from_embeddings(teacher) as found:
            logits = teacher(**inputs).logits
        answers = dict(zip(asked, gradient_of(logits, labels, found), strict=True))
    else:
        with torch.no_grad(), taking(teacher, asked) as taken:
            teacher(**inputs)
        answers = taken()
    return Batch(
        np.array(rows), np.array(rows), inputs, {"labels": labels}, torch.tensor([row != 2 for row in rows]),
        torch.ones(len(rows), dtype=torch.int64), {"t": answers},
    )  # fmt: skip


def gradient_of(logits: Tensor, labels: Tensor, embeddings: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), embeddings)


def objective(student: nn.Module, losses: LossSum) -> Objective:
    return Objective(student, losses, Classification(["a", "b", "c"], []).ask)


def value(student: nn.Module, teacher: nn.Module, losses: LossSum, rows: list[int], longer: int = 0) -> Tensor:
    return objective(student, losses)(batch(losses, teacher, rows, longer))[0]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


EVERY = list(range(len(LENGTHS)))


def test_every_loss_is_tested_here() -> None:
    from dtrain.losses import loss_names

    inside = {name for name in loss_names() if find_loss(name).inside and find_loss(name).function.__module__.startswith("dtrain.")}  # fmt: skip
    assert inside == LOSSES.keys()


def by_formula(name: str, s: Mapping[str, Tensor], t: Mapping[str, Tensor], mask: Tensor, losses: LossSum) -> Tensor:
    """The values, from all that is inside of both models and from the weights of the loss."""
    maps = getattr(losses.stateful[name], "maps", []) if name in losses.stateful else []

    def joined(one: Tensor) -> Tensor:
        return torch.cat(list(one.unbind(1)), dim=-1)

    if name in ("hidden_mse", "vid", "attention_mse", "attention_transfer"):  # uniform: (1, 2), (2, 4)
        pairs = [(1, 2), (2, 4)]
        if name == "attention_mse":
            found = [relations.scores_difference(s[f"attention_scores/{a}"], t[f"attention_scores/{b}"], mask) for a, b in pairs]  # fmt: skip
        elif name == "attention_transfer":
            found = [1.5 * relations.activation_maps(s[f"hidden_states/{a}"], t[f"hidden_states/{b}"], mask, 4.0) for a, b in pairs]  # fmt: skip
        elif name == "hidden_mse":
            found = [states.squared_difference(maps[i](s[f"hidden_states/{a}"]), t[f"hidden_states/{b}"], mask) for i, (a, b) in enumerate(pairs)]  # fmt: skip
        else:
            regressors: Any = losses.stateful["vid"]
            found = [
                states.gaussian(
                    regressors.means[i](s[f"hidden_states/{a}"]),
                    regressors.spreads[i].alpha,
                    t[f"hidden_states/{b}"],
                    mask,
                    1e-5,
                )
                for i, (a, b) in enumerate(pairs)
            ]
        return (found[0] + found[1]) / 2
    if name == "hidden_cosine":
        return states.angle(maps[0](s["hidden_states/2"]), t["hidden_states/4"], mask)
    if name == "embedding_mse":
        return states.squared_difference(maps[0](s["embeddings/0"]), t["embeddings/0"], mask)
    if name == "hidden_hint":
        return states.hint(maps[0](s["hidden_states/1"]), t["hidden_states/2"], mask)
    if name == "attention_kl":
        return relations.attention_divergence(s["attention_scores/2"], t["attention_scores/4"], mask)
    if name == "value_relations":
        return relations.relation_divergence(joined(s["values/2"]), joined(t["values/4"]), mask, 2)
    if name == "qkv_relations":
        kinds = ("queries", "keys", "values")
        return sum(relations.relation_divergence(joined(s[f"{k}/2"]), joined(t[f"{k}/4"]), mask, 4) for k in kinds)  # type: ignore[return-value]
    if name == "fsp":
        mapped = [maps[i](s[f"hidden_states/{layer}"]) for i, layer in enumerate((0, 1, 2))]
        flows = [
            relations.flow_difference(
                mapped[i], mapped[i + 1], t[f"hidden_states/{2 * i}"], t[f"hidden_states/{2 * i + 2}"], mask
            )  # fmt: skip
            for i in range(2)
        ]
        return (flows[0] + flows[1]) / 2
    assert name == "similarity_preserving"
    everyone = AllRows(torch.ones(len(mask), dtype=torch.bool), lambda rows: rows)
    return similarity_difference(pooled(s["hidden_states/2"], mask), pooled(t["hidden_states/4"], mask), everyone)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "gradient_transfer"])
def test_it_is_its_formula_on_the_layers_it_names(name: str, student: nn.Module, teacher: nn.Module) -> None:
    losses = losses_of(name, student, teacher)
    found = batch(losses, teacher, EVERY)
    inside = {}
    for whose, model, layers in (("s", student, 2), ("t", teacher, 4)):
        names = [f"{kind}/{layer}" for kind in PARTS for layer in range(layers + 1) if kind == "hidden_states" or bool(layer) != (kind == "embeddings")]  # fmt: skip
        with taking(model, names) as taken:
            model(**found.inputs)
        inside[whose] = taken()
    total, sums, counts = objective(student, losses)(found)
    expected = by_formula(name, inside["s"], inside["t"], found.inputs["attention_mask"].bool(), losses).sum()
    torch.testing.assert_close(total, expected)
    assert total.item() == pytest.approx(sums[name].item()) and counts[name] == len(LENGTHS)
    assert total.item() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_padding_and_micro_batches_change_nothing(name: str, student: nn.Module, teacher: nn.Module) -> None:
    """Values and gradients, those of the loss's own weights included. A loss over pairs of rows is not cut."""
    losses = losses_of(name, student, teacher)
    whole = objective(student, losses)
    value(student, teacher, losses, EVERY).backward()
    expected = gradients(whole)
    cuts = [[EVERY]] if find_loss(name).over_pairs_of_rows else [[EVERY], [[0], [1, 2], [3]], [[3, 1, 0], [2]]]
    for longer, cut in enumerate(cuts, start=1):
        for rows in cut:
            value(student, teacher, losses, rows, longer).backward()
        found = gradients(whole)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_its_weights_are_the_losses_own_and_learn(name: str, student: nn.Module, teacher: nn.Module) -> None:
    losses = losses_of(name, student, teacher)
    own = dict(losses.named_parameters())
    mapped = ("hidden_mse", "hidden_cosine", "embedding_mse", "hidden_hint", "fsp")
    assert bool(own) == (name in (*mapped, "vid", "gradient_transfer"))
    value(student, teacher, losses, EVERY).backward()
    assert all(p.grad is not None and p.grad.any() for p in own.values())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    gradients(objective(student, losses))
    # Of one width the maps are gone, unless they are asked for; mu and alpha stay.
    pairs = {"layers": [[1, 1], [2, 2]]} if find_loss(name).layered else {}
    alike = losses_of(name, student, student, **pairs)
    assert bool(dict(alike.named_parameters())) == (name == "vid")
    if name in mapped:
        assert dict(losses_of(name, student, student, **pairs, map="always").named_parameters())


@pytest.mark.parametrize("variance", [2.0, 1e-4, 1000.0])
def test_variances_begin_where_they_are_told(variance: float, student: nn.Module, teacher: nn.Module) -> None:
    regressors: Any = losses_of("vid", student, teacher, variance=variance).stateful["vid"]
    for spread in regressors.spreads:
        found = nn.functional.softplus(spread.alpha) + 1e-5
        torch.testing.assert_close(found, torch.full((12,), variance, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher: nn.Module) -> None:
    for name in LOSSES:
        if name == "vid":  # a likelihood
            continue
        given = {"layers": [[1, 1]]} if name == "hidden_hint" else {"layers": [[0, 0], [3, 3]]} if name == "fsp" else {}
        losses = losses_of(name, teacher, teacher, **given)
        assert value(teacher, teacher, losses, EVERY).item() == pytest.approx(0, abs=1e-10), name


def test_vid_is_a_normal_likelihood(student: nn.Module, teacher: nn.Module) -> None:
    """Beside torch's own, which has the constant 1/2 log 2 pi a channel that the loss leaves out."""
    losses = losses_of("vid", student, teacher, layers="last")
    one = batch(losses, teacher, [1])
    with taking(student, ["hidden_states/2"]) as taken:
        student(**one.inputs)
    ((mean, alpha),) = losses.stateful["vid"]([taken()["hidden_states/2"]])
    normal = torch.distributions.Normal(mean, (nn.functional.softplus(alpha) + 1e-5).sqrt())
    expected = -normal.log_prob(one.teachers["t"]["hidden_states/4"]).sum(-1).mean() - 12 * math.log(2 * math.pi) / 2
    torch.testing.assert_close(objective(student, losses)(one)[0], expected)


def test_transfer_of_gradients(student: nn.Module, teacher: nn.Module) -> None:
    """Each row by itself, from gradients that autograd finds; the row without a label is left out."""
    losses = losses_of("gradient_transfer", student, teacher)
    total = objective(student, losses)(batch(losses, teacher, EVERY))[0]
    expected = 0.0
    for row in (0, 1, 3):
        one = batch(losses, teacher, [row])
        with from_embeddings(student) as found:
            logits = student(**one.inputs).logits
        (own,) = gradient_of(logits, one.targets["labels"], found)
        apart = losses.stateful["gradient_transfer"](own) - one.teachers["t"]["embedding_gradients/0"]
        expected += 1.5 * apart.norm().item()
    assert total.item() == pytest.approx(expected) and expected > 0.01


@pytest.mark.parametrize("section", [STUDENT, TEACHER], ids=["bert", "nezha"])
@pytest.mark.parametrize("longer", [0, 100])
def test_second_derivatives(section: dict[str, Any], teacher: nn.Module, longer: int) -> None:
    """Against differences, of weights below, in and above attention; NEZHA has other attention from 66 tokens on."""
    model = make(section, 1)
    losses = losses_of("gradient_transfer", model, teacher)
    given = batch(losses, teacher, EVERY, longer)
    whole = objective(model, losses)
    whole(given)[0].backward()
    names = ("word_embeddings.weight", "layer.0.attention.self.query.weight", "layer.1.intermediate.dense.weight", "classifier.weight")  # fmt: skip
    parameters = {end: p for name, p in model.named_parameters() for end in names if name.endswith(end)}
    assert len(parameters) == len(names)
    for parameter in parameters.values():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
            ends.append(whole(given)[0].item())
            with torch.no_grad():
                parameter -= step * direction
        slope = (ends[0] - ends[1]) / 2e-6
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-5, abs=1e-7)
        assert abs(slope) > 1e-6
    assert all(module.config._attn_implementation != "eager" for module in model.modules() if hasattr(module, "config"))


def test_normalised_layers_are_equally_active_in_squares(student: nn.Module, teacher: nn.Module) -> None:
    """A new layer's normalisation has neither scale nor shift of its own: with p = 2 there is nothing to learn.

    The maps then differ by rounding alone, which must not be followed.
    """
    losses = losses_of("attention_transfer", student, teacher, power=2.0)
    total = value(student, teacher, losses, EVERY)
    total.backward()
    assert total.item() == 0
    assert not any(gradient.any() for gradient in gradients(student).values())


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "qkv_relations", "relation_heads": 3}, r"relation_heads: must divide the widths of both models, 8 and 12, found 3 \(allowed: 1, 2, 4\)"),
        ({"type": "fsp", "layers": "last"}, "layers: a flow leads from one layer to another: two pairs at least, found 1"),
        ({"type": "hidden_mse", "layers": [[3, 4]]}, "layers: the student has no layer 3"),
        ({"type": "attention_kl", "layers": [[0, 1]]}, "layers: the student has no layer 0"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit(student: nn.Module, teacher: nn.Module, changes: dict[str, Any], message: str) -> None:
    name = changes.pop("type")
    with pytest.raises(InputError, match=message):
        losses_of(name, student, teacher, **changes)


def test_heads_that_must_agree(student: nn.Module) -> None:
    other = make({**TEACHER, "heads": 3}, 2)
    for name in LOSSES:
        if name in ("attention_mse", "attention_kl", "value_relations"):
            with pytest.raises(InputError, match=r"2 attention heads, its teacher 3"):
                losses_of(name, student, other)
        else:
            losses_of(name, student, other)


def test_a_hint_says_which_layers() -> None:
    with pytest.raises(ValueError, match="layers: field required"):
        LossSpec.model_validate({"type": "hidden_hint"}).parameters()
