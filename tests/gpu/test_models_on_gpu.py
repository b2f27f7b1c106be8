"""Every model's answers and gradients on a GPU against those on the CPU, and each form of NEZHA's attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dtrain.engines.precision import autocast
from dtrain.models import build, embedding_of
from dtrain.models.nezha import attention
from dtrain.recipe.models import Architecture, of_type
from dtrain.students.stacked_bilstm import forward_bilstm
from dtrain.students.stacked_textcnn import forward_textcnn
from tests.gpu.here import DEVICE, ON_GPU

pytestmark = pytest.mark.gpu

TINY = {"size": "tiny", "hidden": 64, "heads": 4, "vocabulary_size": 100}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "textcnn": {"embedding": 16, "filters": 8},
    "bilstm": {"embedding": 16, "hidden": 8},
    "text_rcnn": {"embedding": 16, "hidden": 8},
    "fasttext": {"embedding": 16, "buckets": 50},
    "bert": TINY,
    "nezha": TINY,
    "bert_cnn": {"encoder": {"type": "bert", **TINY}, "filters": 4},
    "multi_exit": {"encoder": {"type": "bert", **TINY}, "exits": [1, 2]},
}
TAGGERS: dict[str, dict[str, Any]] = {
    "tagger": {"embedding": 16, "lstm": 8},
    "idcnn": {"embedding": 16, "filters": 8},
}


def model(kind: str, keys: dict[str, Any], labels: list[str]) -> nn.Module:
    torch.manual_seed(0)
    section = {"type": kind, **keys}
    spec = TypeAdapter(of_type(section, Architecture)).validate_python(section)
    return build(spec, vocabulary=100, labels=labels, pad_id=0, max_length=40).eval()


def batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(3, 100, (6, 30), generator=draw), torch.ones(6, 30, dtype=torch.long)
    for row, length in enumerate((30, 4, 17, 9, 30, 1)):
        mask[row, length:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def answers(found: nn.Module, inputs: dict[str, Tensor], device: str) -> tuple[Tensor, list[Tensor]]:
    there = copy.deepcopy(found).to(device)
    output = there(**{name: tensor.to(device) for name, tensor in inputs.items()})
    values = output.logits if hasattr(output, "logits") else output.emissions
    factor = torch.linspace(-1, 1, values.numel()).view(values.shape).to(device)
    weights = [p for p in there.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((values * factor).sum(), weights, allow_unused=True)
    return values.detach().cpu(), [g.cpu() for g in gradients if g is not None]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(kind: str) -> None:
    found, inputs = model(kind, CLASSIFIERS[kind], ["a", "b", "c"]), batch()
    here, there = answers(found, inputs, "cpu"), answers(found, inputs, DEVICE)
    torch.testing.assert_close(there[0], here[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there[1], here[1], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", TAGGERS)
def test_taggers(kind: str) -> None:
    found, inputs = model(kind, TAGGERS[kind], ["O", "B-X", "I-X"]), batch()
    here, there = answers(found, inputs, "cpu"), answers(found, inputs, DEVICE)
    torch.testing.assert_close(there[0], here[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there[1], here[1], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["textcnn", "bilstm", "bert", "nezha"])
def test_half_precision_is_near(kind: str, precision: str) -> None:
    if not ON_GPU and precision == "fp16":
        pytest.skip("float16 is for GPUs")
    found, inputs = model(kind, CLASSIFIERS[kind], ["a", "b", "c"]), batch()
    exact = answers(found, inputs, "cpu")[0]
    with autocast(precision, torch.device(DEVICE)):
        rounded = answers(found, inputs, DEVICE)[0]
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("length", [1, 17, 65, 66, 130, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_nezhas_attention_by_doubled_heads_and_by_bands(length: int, masked: bool) -> None:
    """Relative distances are clipped at 64: up to 65 tokens NEZHA's attention doubles the heads, beyond that it takes
    the keys in bands.
    """
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 16, generator=draw) for _ in range(3))
    keep = torch.ones(2, 1, 1, length, dtype=torch.bool)
    if masked:
        keep[1, ..., length // 2 + 1 :] = False

    def positions(device: str) -> attention.RelativePositions:
        return attention.RelativePositions.build(
            length, head_size=16, max_distance=64, device=torch.device(device), dtype=torch.float32
        )

    expected, _ = attention.eager_attention(query, key, value, positions("cpu"), keep if masked else None)
    there = [tensor.to(DEVICE) for tensor in (query, key, value)]
    mask = keep.to(DEVICE) if masked else None
    found = attention.relative_attention(*there, positions(DEVICE), mask)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "forward"), [("textcnn", forward_textcnn), ("bilstm", forward_bilstm)])
def test_stacked_students_answer_as_each_alone(kind: str, forward: Any) -> None:
    members = []
    for seed in range(3):
        made = model(kind, CLASSIFIERS[kind] | {"dropout": 0.0}, ["a", "b", "c"])
        torch.manual_seed(seed)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            embedding_of(made).weight[0] = 0.0  # the embedding of padding
        members.append(made.to(DEVICE))
    weights = {
        name: torch.stack([dict(m.named_parameters())[name] for m in members])
        for name, _ in members[0].named_parameters()
    }
    inputs = {name: tensor.to(DEVICE) for name, tensor in batch().items()}
    random = [torch.Generator(DEVICE) for _ in members]
    stacked, _ = forward(members, weights, inputs["input_ids"], inputs["attention_mask"], random)
    alone = torch.stack([member(**inputs).logits for member in members])
    torch.testing.assert_close(stacked, alone, rtol=1e-3, atol=1e-3)


def test_a_compiled_encoder_answers_alike() -> None:
    if not ON_GPU:
        pytest.skip("compiling for a CPU takes a minute, and is tested elsewhere")
    found = model("bert", TINY, ["a", "b"]).to(DEVICE)
    inputs = {name: tensor.to(DEVICE) for name, tensor in batch().items()}
    with torch.inference_mode():
        plain, compiled = found(**inputs).logits, torch.compile(found)(**inputs).logits
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)
