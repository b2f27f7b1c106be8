"""Every head against transformers 4.57.6's own NEZHA: outputs and gradients, short and long, padded or not."""

from __future__ import annotations

import pytest
import torch

from dtrain.models.nezha import modeling
from dtrain.models.nezha.attention import doubled_head_attention, turned_attention

LABELS = {
    "NezhaForPreTraining": {"labels": "word_labels", "next_sentence_label": "labels"},
    "NezhaForMaskedLM": {"labels": "word_labels"},
    "NezhaForNextSentencePrediction": {"labels": "labels"},
    "NezhaForSequenceClassification": {"labels": "labels"},
    "NezhaForTokenClassification": {"labels": "token_labels"},
    "NezhaForQuestionAnswering": {"start_positions": "start_positions", "end_positions": "end_positions"},
    "NezhaForMultipleChoice": {"labels": "choice_labels"},
}
LENGTHS = (1, 7, 64, 65, 66, 130, 512)
CASES = [
    (length, padding) for length in LENGTHS for padding in ("full", "padded") if (length, padding) != (1, "padded")
]
OUTPUT_ERROR = 2e-5
GRADIENT_ERROR = 1e-4
# A softmax does not see a shift of all its inputs. So the true gradient of these biases is zero, both sides hold
# round-off, and it is measured against the gradient of a neighbour.
SHIFTS = {
    "key": ("key.bias", "query.bias"),
    "qa_outputs": ("qa_outputs.bias", "qa_outputs.weight"),
    "choice": ("choice.bias", "choice.weight"),
}


def inputs_of(golden, length, padding):
    case = f"{length}/{padding}/"
    return {k.removeprefix(case): v for k, v in golden["inputs"].items() if k.startswith(case)}


def texts_of(inputs):
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def kept_positions(length):
    return sorted({*range(0, length, 7), length - 1})


@pytest.mark.parametrize("reach", [64, 3])
@pytest.mark.parametrize(("length", "padding"), CASES)
def test_heads_and_gradients(build, golden, reach, length, padding):
    inputs, expected = inputs_of(golden, length, padding), golden[f"m{reach}"]
    gradients = {}
    for head, labels in LABELS.items():
        model = build(head, max_relative_position=reach)
        given = texts_of(inputs)
        if head == "NezhaForMultipleChoice":
            given = {name: torch.stack([x, x.roll(1, 0)], 1) for name, x in given.items()}
        output = model(**given, **{name: inputs[source] for name, source in labels.items()})
        output.loss.backward()
        for name, value in output.items():
            if value.dim() == 3 or "start" in name or "end" in name:
                value = value[:, kept_positions(length)]
            wanted = expected[f"{length}/{padding}/{head}/{name}"]
            assert (value - wanted).abs().max() <= OUTPUT_ERROR, (head, name)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                name = name.replace("classifier.", "choice.") if head == "NezhaForMultipleChoice" else name
                gradients[name] = gradients.get(name, 0) + parameter.grad

    case = f"{length}/{padding}/gradient/"
    wanted = {name.removeprefix(case): value for name, value in expected.items() if name.startswith(case)}
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = wanted[name.replace(*SHIFTS.get(name.split(".")[-2], ("", "")))].norm()
        assert (gradients[name] - value).norm() <= GRADIENT_ERROR * scale, name


@pytest.mark.parametrize("reach", [64, 3])
@pytest.mark.parametrize("form", ["fast", "eager"])
@pytest.mark.parametrize(("length", "padding"), CASES)
def test_encoder(build, golden, reach, form, length, padding):
    model = build("NezhaModel", max_relative_position=reach)
    if form == "eager":
        model.set_attn_implementation("eager")
    expected, case = golden[f"m{reach}"], f"{length}/{padding}/NezhaModel/"
    with torch.no_grad():
        output = model(**texts_of(inputs_of(golden, length, padding)))
    wanted = expected[case + "last_hidden_state"]
    assert (output.last_hidden_state[:, kept_positions(length)] - wanted).abs().max() <= OUTPUT_ERROR
    assert (output.pooler_output - expected[case + "pooler_output"]).abs().max() <= OUTPUT_ERROR


@pytest.mark.parametrize("form", [doubled_head_attention, turned_attention])
@pytest.mark.parametrize(("length", "padding"), [case for case in CASES if case[0] <= 65])
def test_encoder_by_the_identity(build, golden, monkeypatch, form, length, padding):
    """The form for accelerators, which a CPU would not choose, and the CPU's own beside it."""
    from dtrain.models.nezha import layers

    monkeypatch.setattr(layers, "relative_attention", form)
    with torch.no_grad():
        output = build("NezhaModel")(**texts_of(inputs_of(golden, length, padding)))
    wanted = golden["m64"][f"{length}/{padding}/NezhaModel/last_hidden_state"]
    assert (output.last_hidden_state[:, kept_positions(length)] - wanted).abs().max() <= OUTPUT_ERROR


@pytest.mark.parametrize("reach", [64, 3])
@pytest.mark.parametrize("padding", ["full", "padded"])
def test_attentions_and_hidden_states(build, golden, reach, padding):
    model = build("NezhaModel", max_relative_position=reach)
    with torch.no_grad():
        output = model(**texts_of(inputs_of(golden, 7, padding)), output_attentions=True, output_hidden_states=True)
    case = f"7/{padding}/NezhaModel/"
    for name in ("attentions", "hidden_states"):
        found, wanted = torch.stack(output[name]), golden[f"m{reach}"][case + name]
        assert (found - wanted).abs().max() <= OUTPUT_ERROR


def test_the_golden_files_tell_positions_apart(build, golden):
    """A model without relative positions would fail here: the comparison has teeth."""
    inputs = texts_of(inputs_of(golden, 66, "full"))
    near, far = (build("NezhaModel", max_relative_position=reach) for reach in (64, 3))
    with torch.no_grad():
        difference = near(**inputs).last_hidden_state - far(**inputs).last_hidden_state
    assert difference.abs().max() > 1000 * OUTPUT_ERROR
    assert modeling.NezhaModel is type(near)
