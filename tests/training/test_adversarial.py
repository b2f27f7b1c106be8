"""Adversarial training compared with the two-pass formulas by hand, with the perturbation as an explicit input."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dtrain.models import build, embedding_of
from dtrain.recipe.adversarial import AdversarialSpec
from dtrain.recipe.models import ModelSpec
from dtrain.training.adversarial import Adversary

SMALL = {"hidden": 16, "layers": 2, "heads": 2, "dropout": 0.0}
TAGS = ["O", "B-X", "I-X", "E-X", "S-X"]
MODELS: dict[str, dict[str, Any]] = {
    "nezha-tagger": {"type": "tagger", "encoder": {"type": "nezha", **SMALL}, "fusion": "dynamic", "dropout": 0.0},
    "tagger": {"type": "tagger", "embedding": 6, "lstm": 5, "dropout": 0.0},
    "idcnn": {"type": "idcnn", "embedding": 6, "filters": 5, "dropout": 0.0},
    "bert": {"type": "bert", **SMALL},
    "nezha": {"type": "nezha", **SMALL},
    "bilstm": {"type": "bilstm", "embedding": 6, "hidden": 5},
    "textcnn": {"type": "textcnn", "embedding": 6, "filters": 5, "widths": [2, 9], "dropout": 0.0},
}
IDS = torch.tensor([[2, 7, 8, 9, 4, 6, 3], [2, 5, 11, 3, 0, 0, 0], [2, 9, 9, 12, 5, 3, 0]])
MASK = (IDS != 0).long()
METHODS = {
    "fgm": AdversarialSpec(type="fgm", epsilon=0.7),
    "fgsm": AdversarialSpec(type="fgsm", epsilon=0.02, weight=0.5),
    "pgd": AdversarialSpec(type="pgd", epsilon=0.5, step_size=0.3, steps=3),
    "relative fgm": AdversarialSpec(type="fgm", norm="relative", epsilon=0.4),
    "relative fgsm": AdversarialSpec(type="fgsm", norm="relative", epsilon=0.3, weight=0.5),
    "relative pgd": AdversarialSpec(type="pgd", norm="relative", epsilon=0.4, step_size=0.25, steps=3),
}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    spec: Any = TypeAdapter(ModelSpec).validate_python(MODELS[kind])
    return build(spec, vocabulary=20, labels=TAGS, pad_id=0, max_length=16).train()


def loss_of(model: Any, rows: slice = slice(None), weights: Tensor | None = None) -> Tensor:
    ids, mask = IDS[rows], MASK[rows]
    if hasattr(model, "decode"):
        specials = 2 if getattr(model, "encoder", None) is not None else 0
        tags = (ids % len(TAGS)).masked_fill(mask == 0, -1)[:, specials:]
        by_row = model(input_ids=ids, attention_mask=mask, tags=tags).nll
    else:
        logits = model(input_ids=ids, attention_mask=mask).logits
        by_row = nn.functional.cross_entropy(logits, ids[:, 1] % len(TAGS), reduction="none")
    return (by_row if weights is None else weights * by_row).sum()


@contextlib.contextmanager
def nowhere(flag: bool) -> Iterator[None]:
    yield


def adversarial_gradients(
    model: nn.Module, spec: AdversarialSpec, scale: float = 1.0, **keys: Any
) -> dict[str, Tensor]:
    adversary = Adversary(spec, model)
    adversary.micro_step(lambda: loss_of(model, **keys), lambda loss: (scale * loss).backward(), nowhere)
    adversary.close()
    return gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def by_hand(model: nn.Module, spec: AdversarialSpec) -> tuple[dict[str, Tensor], Tensor]:
    """The formulas computed row by row and token by token; returns the gradients of the weights and the last
    perturbation.
    """
    seen: dict[str, Tensor] = {}

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen["r"] = seen["given"] if "given" in seen else torch.zeros_like(output)
        seen["r"] = seen["r"].detach().requires_grad_()
        seen["x"] = output.detach()
        return output + seen["r"]

    hook = embedding_of(model).register_forward_hook(add)
    plain = loss_of(model)
    (g,) = torch.autograd.grad(plain, seen["r"], retain_graph=True)
    r = torch.zeros_like(g)
    for step in range(spec.steps if spec.type == "pgd" else 1):
        if step:
            seen["given"] = r
            (g,) = torch.autograd.grad(loss_of(model), seen["r"])
        r = r.clone()
        for row, length in enumerate(MASK.sum(1).tolist()):
            real = g[row, :length]
            unit = size_of(seen["x"][row, :length], spec)
            epsilon, step_size = spec.epsilon * unit, spec.step_size * unit
            if spec.type == "fgsm":
                r[row, :length] = epsilon * torch.sign(real)
            elif spec.type == "fgm":
                r[row, :length] = epsilon * real / torch.linalg.vector_norm(real)
            else:
                moved = r[row, :length] + step_size * real / torch.linalg.vector_norm(real)
                size = float(torch.linalg.vector_norm(moved))
                r[row, :length] = moved * (epsilon / size if size > epsilon else 1.0)
    seen["given"] = r
    (plain + spec.weight * loss_of(model)).backward()
    hook.remove()
    return gradients(model), r


def size_of(x: Tensor, spec: AdversarialSpec) -> float:
    """The unit of epsilon for the real tokens of a row: their norm or, for signs, the mean absolute entry."""
    if spec.norm == "absolute":
        return 1.0
    return float(x.square().mean().sqrt() if spec.type == "fgsm" else torch.linalg.vector_norm(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_the_formula(kind: str, method: str) -> None:
    model, spec = make(kind), METHODS[method]
    expected, _ = by_hand(model, spec)
    found = adversarial_gradients(model, spec)
    loss_of(model).backward()
    plain = gradients(model)
    assert found.keys() == expected.keys() and len(found) > 3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert max(float((found[name] - (1 + spec.weight) * plain[name]).abs().max()) for name in plain) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_never_touched(method: str) -> None:
    model = make("nezha-tagger")
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    versions = {name: p._version for name, p in model.named_parameters()}
    adversarial_gradients(model, METHODS[method])
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name]) and p._version == versions[name]


@pytest.mark.parametrize("method", METHODS)
def test_size_of_a_rows_perturbation(method: str) -> None:
    """The size is over the real tokens of each row."""
    model, spec = make("bert"), METHODS[method]
    seen: list[Tensor] = []
    adversary = Adversary(spec, model)
    hook = embedding_of(model).register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    adversary.micro_step(lambda: loss_of(model), Tensor.backward, nowhere)
    hook.remove()
    assert len(seen) == (4 if spec.type == "pgd" else 2)
    r = seen[-1] - seen[0]
    assert r[MASK == 0].eq(0).all()
    for row, length in enumerate(MASK.sum(1).tolist()):
        size = torch.linalg.vector_norm(r[row])
        epsilon = spec.epsilon * size_of(seen[0][row, :length], spec)
        if spec.type == "fgsm":
            torch.testing.assert_close(r[row, :length].abs(), torch.full((length, 16), epsilon), rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(size, torch.tensor(epsilon), rtol=1e-4, atol=0)
        if spec.norm == "relative":
            share = size / torch.linalg.vector_norm(seen[0][row, :length])
            torch.testing.assert_close(share, torch.tensor(spec.epsilon), rtol=1e-4, atol=0)


@pytest.mark.parametrize("type_", ["fgm", "fgsm", "pgd"])
def test_a_relative_epsilon_does_not_see_the_scale_of_the_embeddings(type_: str) -> None:
    """A model whose embeddings are divided by a factor and then multiplied by it is the same model."""
    torch.manual_seed(0)
    embedding, layer = nn.Embedding(20, 4), nn.Linear(4, 1, bias=False)
    shares = []
    for scale in (1.0, 1 / 64):
        scaled = nn.Embedding.from_pretrained(embedding.weight.detach() * scale, freeze=False)
        model = _Pooled(scaled, layer)
        seen: list[Tensor] = []
        adversary = Adversary(AdversarialSpec(type=type_), model)  # type: ignore[arg-type]
        hook = scaled.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.detach()))

        def forward(model: nn.Module = model, scale: float = scale) -> Tensor:
            return (model(input_ids=IDS, attention_mask=MASK) / scale).square().sum()

        adversary.micro_step(forward, Tensor.backward, nowhere)
        hook.remove()
        shares.append((seen[-1] - seen[0]) / scale)
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-4, atol=1e-7)
    assert shares[0].norm() > 0


def test_sizes_without_a_norm_are_absolute() -> None:
    """As before `norm` was introduced; a resolved section means the same when it is read again."""

    def sizes(**section: Any) -> tuple[str, float, float]:
        spec = AdversarialSpec.model_validate({"type": "pgd", **section})
        assert AdversarialSpec.model_validate(spec.model_dump()) == spec
        assert spec.model_dump(exclude_unset=True) == {"type": "pgd", **section}
        return spec.norm, spec.epsilon, spec.step_size

    assert sizes() == ("relative", 0.1, 0.03)
    assert sizes(norm="absolute") == ("absolute", 1.0, 0.3)
    assert sizes(epsilon=0.5) == ("absolute", 0.5, 0.3)
    assert sizes(step_size=0.2) == ("absolute", 1.0, 0.2)
    assert sizes(epsilon=0.5, norm="relative") == ("relative", 0.5, 0.03)


@pytest.mark.parametrize("method", METHODS)
def test_loss_scaling_changes_the_scale_alone(method: str) -> None:
    model = make("nezha-tagger")
    plain = adversarial_gradients(model, METHODS[method])
    for scale in (2.0**-60, 2.0**24):
        scaled = adversarial_gradients(model, METHODS[method], scale)
        for name, gradient in plain.items():
            torch.testing.assert_close(scaled[name] / scale, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_scaling_keeps_the_gradients_between_in_range(method: str) -> None:
    """With float16 weights the gradients of a small loss would be zero without the scale."""
    embedding, layer = nn.Embedding(20, 4).half(), nn.Linear(4, 1).half()
    model = _Pooled(embedding, layer)

    def forward() -> Tensor:
        return 1e-8 * model(input_ids=IDS, attention_mask=MASK).float().square().sum()

    seen: list[Tensor] = []
    adversary = Adversary(METHODS[method], model)
    hook = embedding.register_forward_hook(lambda module, args, output: seen.append(output.detach().float()))
    adversary.micro_step(forward, lambda loss: (loss * 2.0**20).backward(), nowhere)
    hook.remove()
    moved = [(later - seen[0]).flatten(1).norm(dim=1) for later in seen[1:]]
    assert all(size.gt(0).all() for size in moved)
    if METHODS[method].type == "pgd":
        assert moved[1].gt(1.2 * moved[0]).all()  # the second step moved too


class _Pooled(nn.Module):
    def __init__(self, embedding: nn.Embedding, layer: nn.Linear) -> None:
        super().__init__()
        self.embedding, self.layer = embedding, layer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layer((self.embedding(input_ids) * attention_mask[:, :, None]).sum(1))


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_adds_up(method: str) -> None:
    """Norms are computed for each row, so two micro-batches give the same as one batch of both."""
    model, spec = make("nezha-tagger"), METHODS[method]
    whole = adversarial_gradients(model, spec)
    adversary = Adversary(spec, model)
    for rows in (slice(0, 1), slice(1, 3)):
        adversary.micro_step(functools.partial(loss_of, model, rows), Tensor.backward, nowhere)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_rows_without_a_usable_gradient_are_not_perturbed(method: str, bad: float) -> None:
    model = make("bert")
    weights = torch.tensor([1.0, bad, 1.0])
    seen: list[Tensor] = []
    adversary = Adversary(METHODS[method], model)
    hook = embedding_of(model).register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    adversary.micro_step(lambda: loss_of(model, weights=weights), Tensor.backward, nowhere)
    hook.remove()
    assert torch.equal(seen[-1][1], seen[0][1])
    assert not torch.equal(seen[-1][0], seen[0][0]) and seen[-1].isfinite().all()


def test_returns_the_plain_loss_and_synchronises_once() -> None:
    model = make("tagger")
    events: list[str] = []

    @contextlib.contextmanager
    def region(flag: bool) -> Iterator[None]:
        events.append(f"[{flag}")
        yield
        events.append("]")

    def forward() -> Tensor:
        events.append("forward")
        return loss_of(model)

    def backward(loss: Tensor) -> None:
        events.append("backward")
        loss.backward()

    adversary = Adversary(METHODS["pgd"], model)
    plain = adversary.micro_step(forward, backward, region)
    assert torch.equal(plain, loss_of(model).detach()) and not plain.requires_grad
    first, between, last = "[False forward backward ]", "[False forward ]", "[True forward backward ]"
    assert " ".join(events) == " ".join([first, between, between, last])


def test_nothing_is_perturbed_in_evaluation_or_after_close() -> None:
    model = make("nezha-tagger")
    before = loss_of(model)
    adversary = Adversary(METHODS["fgm"], model)
    adversary.micro_step(lambda: loss_of(model), Tensor.backward, nowhere)
    model.zero_grad()
    assert torch.equal(loss_of(model), before)  # the embeddings are restored between steps

    calls: list[bool] = []

    @contextlib.contextmanager
    def region(flag: bool) -> Iterator[None]:
        calls.append(flag)
        yield

    model.eval()
    loss_of(model).backward()
    plain = gradients(model)
    adversary.micro_step(lambda: loss_of(model), Tensor.backward, region)
    assert calls == [True]
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, plain[name])

    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    adversary.close()
    assert hooks == 2 and not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model = make("tagger")
    before = loss_of(model).detach()
    adversary = Adversary(METHODS["fgm"], model)

    def fails(loss: Tensor) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        adversary.micro_step(lambda: loss_of(model), fails, nowhere)
    assert torch.equal(loss_of(model), before)


def test_two_uses_of_the_embedding_in_a_pass_are_refused() -> None:
    model = make("tagger")
    adversary = Adversary(METHODS["fgm"], model)
    with pytest.raises(RuntimeError, match="twice"):
        adversary.micro_step(lambda: loss_of(model) + loss_of(model), Tensor.backward, nowhere)
