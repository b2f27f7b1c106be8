"""Makes the golden files: outputs and gradients of transformers 4.57.6's own NEZHA, the last there was.

    python tests/models/nezha/make_golden.py [VENV]

VENV (a new folder under the temporary one if left out) gets torch 2.13.0 and transformers 4.57.6, never the
environment that runs the tests. The files land in `golden/` beside this script:

    weights.npz   one set of weights for all heads, named as in a checkpoint
    inputs.npz    per length and padding: ids, masks, token types, and the labels of every head
    m64.npz, m3.npz   for max_relative_position 64 and 3, per length and padding: each head's outputs, and the
                  gradients of the sum of all heads' losses
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
PACKAGES = ("torch==2.13.0", "transformers==4.57.6")  # torch first: the CPU build, where one is at hand
SHAPE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 2,
}
LENGTHS = (1, 7, 64, 65, 66, 130, 512)
CHOICES = 2
BATCH = 2
STRIDE = 7  # of the positions whose outputs are kept; the last is kept as well
WITH_ATTENTIONS = 7  # the length whose attention weights and hidden states are kept


def main() -> None:
    """Install what is missing, then run again inside VENV."""
    if sys.argv[1:] == ["--inside"]:
        write_golden()
        return
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="nezha-4.57-"))
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        for package in PACKAGES:
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    subprocess.run([python, __file__, "--inside"], check=True)


def write_golden() -> None:
    import torch
    import transformers

    assert transformers.__version__ == "4.57.6", transformers.__version__
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    generator = np.random.default_rng(12)
    weights = draw_weights(generator)
    np.savez_compressed(GOLDEN / "weights.npz", **weights)
    inputs = draw_inputs(generator)
    np.savez_compressed(GOLDEN / "inputs.npz", **inputs)
    for reach in (64, 3):
        outputs = {}
        for length in LENGTHS:
            for padding in ("full", "padded"):
                if f"{length}/{padding}/input_ids" in inputs:
                    case = f"{length}/{padding}/"
                    mine = {k.removeprefix(case): torch.tensor(v) for k, v in inputs.items() if k.startswith(case)}
                    found = run_heads(reach, weights, mine, length)
                    outputs.update({case + name: value for name, value in found.items()})
        np.savez_compressed(GOLDEN / f"m{reach}.npz", **outputs)


def draw_weights(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights larger than a new model's, so that attention is far from uniform and every bias matters; not so
    large that round-off in 4.57 itself comes near what the tests allow."""
    from transformers.models.deprecated.nezha import NezhaForPreTraining, NezhaForSequenceClassification

    shapes = {}
    for head in (NezhaForPreTraining, NezhaForSequenceClassification):
        shapes.update({name: p.shape for name, p in head(new_config(64)).named_parameters()})
    shapes["qa_outputs.weight"] = (2, SHAPE["hidden_size"])
    shapes["qa_outputs.bias"] = (2,)
    shapes["choice.weight"] = (1, SHAPE["hidden_size"])  # `classifier` of the multiple choice head
    shapes["choice.bias"] = (1,)
    weights = {}
    for name in sorted(shapes):
        value = generator.normal(size=shapes[name])
        if name.endswith("LayerNorm.weight"):
            value = 1 + 0.2 * value
        elif name.endswith("bias"):
            value = 0.2 * value
        else:
            value = 0.3 * value
        weights[name] = value.astype(np.float32)
    return weights


def draw_inputs(generator: np.random.Generator) -> dict[str, np.ndarray]:
    inputs = {}
    for length in LENGTHS:
        for padding in ("full", "padded"):
            if length == 1 and padding == "padded":
                continue
            shape = (BATCH, length)
            mask = np.ones(shape, dtype=np.int64)
            if padding == "padded":
                mask[1, (length + 1) // 2 :] = 0
            case = {
                "input_ids": generator.integers(1, SHAPE["vocab_size"], shape) * mask,
                "attention_mask": mask,
                "token_type_ids": generator.integers(0, 2, shape),
                "token_labels": np.where(mask == 1, generator.integers(0, SHAPE["num_labels"], shape), -100),
                "word_labels": np.where(mask == 1, generator.integers(0, SHAPE["vocab_size"], shape), -100),
                "labels": generator.integers(0, 2, BATCH),
                "start_positions": generator.integers(0, length, BATCH),
                "end_positions": np.array([generator.integers(0, length), length + 1]),  # one outside
                "choice_labels": generator.integers(0, CHOICES, BATCH),
            }
            inputs.update({f"{length}/{padding}/{name}": value for name, value in case.items()})
    return inputs


def run_heads(reach, weights, inputs, length):
    """Outputs of every head at the kept positions, and the summed gradients of every weight."""
    import torch
    from transformers.models.deprecated import nezha

    heads = {
        "NezhaForPreTraining": {"labels": "word_labels", "next_sentence_label": "labels"},
        "NezhaForMaskedLM": {"labels": "word_labels"},
        "NezhaForNextSentencePrediction": {"labels": "labels"},
        "NezhaForSequenceClassification": {"labels": "labels"},
        "NezhaForTokenClassification": {"labels": "token_labels"},
        "NezhaForQuestionAnswering": {"start_positions": "start_positions", "end_positions": "end_positions"},
        "NezhaForMultipleChoice": {"labels": "choice_labels"},
    }
    kept = sorted({*range(0, length, STRIDE), length - 1})
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    found, gradients = {}, {}
    for head, labels in heads.items():
        model = getattr(nezha, head)(new_config(reach, length)).eval()
        renamed = {"choice.weight": "classifier.weight", "choice.bias": "classifier.bias"}
        mine = {
            renamed.get(name, name) if head == "NezhaForMultipleChoice" else name: torch.tensor(value)
            for name, value in weights.items()
            if head != "NezhaForMultipleChoice" or not name.startswith("classifier.")
        }
        missing = model.load_state_dict(mine, strict=False).missing_keys
        assert not [name for name in missing if "decoder" not in name], missing
        if head == "NezhaForMultipleChoice":  # each text against the one before it
            given = {name: torch.stack([x, x.roll(1, 0)], 1) for name, x in texts.items()}
        else:
            given = texts
        with contextlib.redirect_stdout(io.StringIO()):  # 4.57 prints shapes in its multiple choice head
            output = model(**given, **{name: inputs[source] for name, source in labels.items()})
        output.loss.backward()
        for name, value in output.items():
            if value.dim() == 3 or "start" in name or "end" in name:
                value = value[:, kept]
            found[f"{head}/{name}"] = value.detach().numpy()
        for name, parameter in model.named_parameters():
            if head == "NezhaForMultipleChoice":
                name = name.replace("classifier.", "choice.")
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0) + parameter.grad.numpy()
    found.update({f"gradient/{name}": value for name, value in gradients.items()})

    model = nezha.NezhaModel(new_config(reach, length)).eval()
    encoder = {k.removeprefix("nezha."): torch.tensor(v) for k, v in weights.items() if k.startswith("nezha.")}
    model.load_state_dict(encoder)
    with torch.no_grad():
        output = model(**texts, output_attentions=True, output_hidden_states=True)
    found["NezhaModel/last_hidden_state"] = output.last_hidden_state[:, kept].numpy()
    found["NezhaModel/pooler_output"] = output.pooler_output.numpy()
    if length == WITH_ATTENTIONS:
        found["NezhaModel/attentions"] = torch.stack(output.attentions).numpy()
        found["NezhaModel/hidden_states"] = torch.stack(output.hidden_states).numpy()
    return found


def new_config(reach, length=1):
    """Its tables are [length, length, head]: no longer than needed, or making them takes minutes."""
    from transformers.models.deprecated.nezha import NezhaConfig

    return NezhaConfig(max_relative_position=reach, max_position_embeddings=length, **SHAPE)


if __name__ == "__main__":
    main()
