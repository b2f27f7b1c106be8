"""Taggers: texts padded or alone, every part on and off, the five published models, folders, bad recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

import dtrain
from dtrain.data.vocabularies import student_tokenizer
from dtrain.engines.optim import build_optimizer
from dtrain.errors import InputError
from dtrain.models import TaggerOutput, build, embedding_of, load, save_model, weights_fingerprint
from dtrain.models.fusion import DynamicFusion
from dtrain.models.idcnn import IDCNN
from dtrain.models.tagger import Tagger
from dtrain.recipe.data import Vocabulary
from dtrain.recipe.models import ModelSpec
from dtrain.recipe.optimizers import OptimizerSpec

TAGS = ["O", *(f"{part}-{kind}" for kind in ("NAME", "ORG") for part in "BIES")]
SMALL = {"hidden": 16, "layers": 4, "heads": 2}
NEZHA = {"type": "nezha", **SMALL, "max_relative_position": 3}
BERT = {"type": "bert", **SMALL}
# The models of the published table, each a few lines of a recipe away from the next.
PUBLISHED: dict[str, dict[str, Any]] = {
    "BiLSTM-CRF": {"type": "tagger", "embedding": 8, "lstm": 6},
    "BERT-BiLSTM-CRF": {"type": "tagger", "encoder": BERT, "lstm": 6},
    "NEZHA-BiLSTM-CRF": {"type": "tagger", "encoder": NEZHA, "lstm": 6},
    "NEZHA-BiLSTM-CRF+DF": {"type": "tagger", "encoder": NEZHA, "fusion": "dynamic", "lstm": 6},
}
MODELS: dict[str, dict[str, Any]] = PUBLISHED | {
    "concat, no LSTM, softmax": {"type": "tagger", "encoder": BERT, "fusion": "concat", "lstm": None, "crf": False},
    "constrained": {"type": "tagger", "embedding": 8, "lstm": None, "constrain": True},
    "IDCNN-CRF": {"type": "idcnn", "embedding": 8, "filters": 8, "dilations": [1, 2], "blocks": 2},
    "IDCNN, softmax": {"type": "idcnn", "embedding": 8, "filters": 8, "crf": False},
}
TEXTS = [[7, 8, 9, 4, 6], [5], [11, 3, 12, 7, 7, 9, 10], [9, 9]]


def make(section: dict[str, Any], vocabulary: int = 20, max_length: int | None = 16, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    spec: Any = TypeAdapter(ModelSpec).validate_python(section)
    return build(spec, vocabulary=vocabulary, labels=TAGS, pad_id=0, max_length=max_length)


def batch(model: Any, texts: list[list[int]], extra: int = 0, fill: int = 0) -> dict[str, Tensor]:
    """Rows padded on the right; for an encoder between 1 ([CLS]) and 2 ([SEP])."""
    encoder = getattr(model, "encoder", None) is not None
    rows = [[1, *text, 2] if encoder else text for text in texts]
    length = max(map(len, rows)) + extra
    return {
        "input_ids": torch.tensor([row + [fill] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }


def tags_of(texts: list[list[int]], length: int) -> Tensor:
    return torch.tensor([[token % len(TAGS) for token in text] + [-1] * (length - len(text)) for text in texts])


def answer(model: Any, texts: list[list[int]], extra: int = 0, fill: int = 0) -> TaggerOutput:
    length = max(map(len, texts)) + extra
    return model(**batch(model, texts, extra, fill), tags=tags_of(texts, length), marginals=True)


@pytest.mark.parametrize("name", MODELS)
def test_equals_each_text_alone(name: str) -> None:
    """In a batch, in any order, with more padding: what a text gets is its own."""
    model = make(MODELS[name]).eval()
    if "IDCNN" in name:
        # At first, dilated convolutions pass on their own character only. At this spread 13 convolutions keep the size
        # of the states, whose rounding then is the tolerance's on every CPU (0.5 made them a thousand times larger).
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.3)
    together = answer(model, TEXTS, extra=4, fill=13)
    paths = model.decode(together.logits, together.mask)
    assert together.logits.shape == (4, 11, len(TAGS)) and together.logits.dtype == torch.float32
    assert together.nll is not None and together.marginals is not None
    for row, text in enumerate(TEXTS):
        alone = answer(model, [text])
        assert alone.nll is not None and alone.marginals is not None
        here = together.mask[row]
        assert here.sum() == len(text) and here[: len(text)].all()
        torch.testing.assert_close(together.logits[row, here], alone.logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.nll[row], alone.nll[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.marginals[row, here], alone.marginals[0], rtol=1e-4, atol=1e-4)
        assert paths[row, here].tolist() == model.decode(alone.logits, alone.mask)[0].tolist()
        assert paths[row, ~here].eq(-1).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_character_depends_on_its_neighbours_and_specials_get_no_tag(name: str) -> None:
    model = make(MODELS[name]).eval()
    if "IDCNN" in name:
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.5)
    first, second = (answer(model, [[5, 6, token, 8]]).logits[0] for token in (7, 9))
    assert first.shape == (4, len(TAGS)) and not torch.equal(first[2], second[2])
    if name != "constrained":  # a linear layer over the character embeddings
        assert not torch.equal(first[1], second[1]) and not torch.equal(first[3], second[3])


@pytest.mark.parametrize("name", ["concat, no LSTM, softmax", "IDCNN, softmax"])
def test_softmax_decides_each_character_alone(name: str) -> None:
    model = make(MODELS[name]).eval()
    found = answer(model, TEXTS)
    tags = tags_of(TEXTS, 7)
    chance = torch.log_softmax(found.logits, -1)
    expected = [-sum(chance[row, i, tags[row, i]] for i in range(len(text))) for row, text in enumerate(TEXTS)]
    torch.testing.assert_close(found.nll, torch.stack(expected))  # type: ignore[arg-type]
    torch.testing.assert_close(found.marginals, chance)
    assert torch.equal(model.decode(found.logits, found.mask), chance.argmax(-1).masked_fill(~found.mask, -1))


@pytest.mark.parametrize("name", MODELS)
def test_rows_without_tags_have_no_loss(name: str) -> None:
    model = make(MODELS[name]).eval()
    inputs, tags = batch(model, TEXTS), tags_of(TEXTS, 7)
    whole = model(**inputs, tags=tags)
    tags[2] = -1
    part = model(**inputs, tags=tags)
    assert part.nll[2] == 0 and torch.equal(part.nll[[0, 1, 3]], whole.nll[[0, 1, 3]]) and part.marginals is None
    assert model(**inputs).nll is None
    part.nll.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_train_a_step(name: str) -> None:
    """From a recipe's section, with a rate for each part; every parameter has a gradient and moves."""
    model = make(PUBLISHED[name] | {"dropout": 0.0}).train()
    own = "embedding" if name == "BiLSTM-CRF" else "encoder"
    modules = {own: 1e-4, "crf": 1e-1, "lstm": 1e-3, "emissions": 1e-3}
    modules |= {"fusion": 1e-2} if "DF" in name else {}
    optimizer = build_optimizer(model, OptimizerSpec(modules=modules))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = answer(model, TEXTS)
    assert found.nll is not None
    found.nll.sum().backward()
    optimizer.step()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and not torch.equal(p, before[parameter]), parameter
    moved = (model.crf.transitions - before["crf.transitions"]).abs().max()
    torch.testing.assert_close(moved, torch.tensor(1e-1), rtol=0.01, atol=0)
    after = answer(model, TEXTS)
    assert after.nll is not None and after.nll.sum() < found.nll.sum()


@pytest.mark.parametrize("name", ["NEZHA-BiLSTM-CRF+DF", "BiLSTM-CRF", "IDCNN-CRF"])
def test_learns_tags_by_heart(name: str) -> None:
    model = make(MODELS[name] | {"dropout": 0.0}).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = answer(model, TEXTS).nll.sum()  # type: ignore[union-attr]
        loss.backward()
        optimizer.step()
    found = answer(model.eval(), TEXTS)
    assert torch.equal(model.decode(found.logits, found.mask), tags_of(TEXTS, 7))


def test_dynamic_fusion_is_the_formula() -> None:
    fusion = DynamicFusion(3)
    states = tuple(torch.randn(2, 4, 5) for _ in range(3))
    torch.testing.assert_close(fusion(states), sum(states) / 3)
    with torch.no_grad():
        fusion.alpha.copy_(torch.tensor([0.5, -1.0, 2.0]))
        fusion.gamma.fill_(1.7)
    share = torch.tensor([0.5, -1.0, 2.0]).exp()
    share /= share.sum()
    torch.testing.assert_close(fusion(states), 1.7 * sum(w * h for w, h in zip(share, states, strict=True)))


@pytest.mark.parametrize("fusion", ["last", "concat", "dynamic"])
def test_fusion_reads_the_outputs_of_the_layers(fusion: str) -> None:
    """Against transformers' own hidden states, [CLS] and [SEP] cut off."""
    model = make({"type": "tagger", "encoder": BERT, "fusion": fusion, "lstm": None, "crf": False}).eval()
    inputs = batch(model, [[5, 6, 7]])
    layers = model.encoder(**inputs, output_hidden_states=True).hidden_states
    assert len(layers) == 5
    fused = {"last": layers[4], "concat": torch.cat(layers[1:], -1), "dynamic": torch.stack(layers[1:]).mean(0)}[fusion]
    torch.testing.assert_close(model(**inputs).logits, model.emissions(fused[:, 1:4]))


def test_lstm_reads_each_text_both_ways() -> None:
    model = make(PUBLISHED["BiLSTM-CRF"]).eval()
    states, _ = model.lstm(model.embedding(torch.tensor([TEXTS[0]])))
    torch.testing.assert_close(answer(model, TEXTS).logits[0, :5], model.emissions(states[0]))


def test_idcnn_applies_one_block_again_and_again() -> None:
    model = make({"type": "idcnn", "embedding": 4, "filters": 4, "dilations": [1, 2], "blocks": 3}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    states = model.embedding(torch.tensor([TEXTS[2]])).transpose(1, 2)
    states = functional.conv1d(states, model.convolution.weight, model.convolution.bias, padding=1).relu()
    for _ in range(3):
        for layer, dilation in zip(model.block, (1, 2), strict=True):
            states = functional.conv1d(states, layer.weight, layer.bias, padding=dilation, dilation=dilation).relu()
    torch.testing.assert_close(answer(model, [TEXTS[2]]).logits, model.emissions(states.transpose(1, 2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_autocast_rounds_the_encoder_alone(name: str, dtype: torch.dtype) -> None:
    model = make(MODELS[name]).eval()
    exact = answer(model, TEXTS)
    with torch.autocast("cpu", dtype):
        found = answer(model, TEXTS)
    for value in (found.logits, found.nll, found.marginals):
        assert value is not None and value.dtype == torch.float32
    torch.testing.assert_close(found.logits, exact.logits, rtol=0.1, atol=0.1)
    if getattr(model, "encoder", None) is None and name != "IDCNN-CRF" and name != "IDCNN, softmax":
        assert torch.equal(found.logits, exact.logits)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_kept_in_16_bits_runs(name: str) -> None:
    model = make(PUBLISHED[name]).bfloat16()
    found = answer(model, TEXTS)
    assert found.logits.dtype == torch.float32 and found.nll is not None and found.nll.isfinite().all()
    found.nll.sum().backward()


def test_word_embedding_of_every_model() -> None:
    classifiers: dict[str, dict[str, Any]] = {
        "bert": BERT,
        "nezha": NEZHA,
        "bilstm": {"type": "bilstm", "embedding": 8, "hidden": 4},
        "textcnn": {"type": "textcnn", "embedding": 8, "filters": 4},
    }
    for section in (*MODELS.values(), *classifiers.values()):
        model = make(section)
        ids = torch.tensor([[1, 5, 6, 2]])
        seen: list[Tensor] = []
        hook = embedding_of(model).register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        hook.remove()
        weight = embedding_of(model).get_parameter("weight")
        assert len(seen) == 1 and torch.equal(seen[0], weight[ids]) and len(weight) == 20
    with pytest.raises(TypeError, match="no word embedding"):
        embedding_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", MODELS)
def test_folder_round_trip(name: str, tmp_path: Path) -> None:
    model = make(MODELS[name])
    for folder in ("a", "b"):
        save_model(model, tmp_path / folder, None, "# A tagger\n")
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [
            "README.md", "config.json", "model.safetensors",
        ]  # fmt: skip
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    kind = MODELS[name]["type"]
    assert config["model_type"] == f"dtrain-{kind}" and config["id2label"] == {str(i): t for i, t in enumerate(TAGS)}
    if "encoder" in MODELS[name]:
        assert config["encoder"]["model_type"] == MODELS[name]["encoder"]["type"]
        assert config["encoder"]["hidden_size"] == 16 and str(tmp_path) not in json.dumps(config)
    loaded = dtrain.load(tmp_path / "a")
    assert type(loaded) is (IDCNN if kind == "idcnn" else Tagger) and not loaded.training
    assert loaded.config == model.config
    assert weights_fingerprint(loaded) == weights_fingerprint(model)
    found, expected = answer(loaded, TEXTS), answer(model.eval(), TEXTS)
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)  # type: ignore[arg-type]


def test_tags_are_read_in_their_order(tmp_path: Path) -> None:
    """JSON sorts "10" before "2", and the constraint depends on the order."""
    torch.manual_seed(0)
    tags = ["O", *(f"{part}-{kind}" for kind in "VWXYZ" for part in "BIES")]
    spec: Any = TypeAdapter(ModelSpec).validate_python(MODELS["constrained"])
    model: Any = build(spec, vocabulary=20, labels=tags, pad_id=0)
    save_model(model, tmp_path, None, "card")
    loaded: Any = load(tmp_path)
    assert torch.equal(loaded.crf.forbidden_transitions, model.crf.forbidden_transitions)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    return tmp_path / "mlm"


def tagger(path: Path, **keys: Any) -> dict[str, Any]:
    return {"type": "tagger", "encoder": {"type": "bert", "pretrained": str(path), **keys.pop("encoder", {})}, **keys}


def test_pretrained_encoder_is_taken_over(pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make(tagger(pretrained, encoder={"dropout": 0.25}), vocabulary=40)
    assert capfd.readouterr().err == ""
    source = BertForMaskedLM.from_pretrained(pretrained).bert.state_dict()
    ours = model.encoder.state_dict()
    assert source.keys() == ours.keys() and all(torch.equal(ours[name], value) for name, value in source.items())
    assert model.training and model.encoder.training and model.encoder.config.hidden_dropout_prob == 0.25
    save_model(model, tmp_path / "m", None, "card")
    assert str(pretrained) not in (tmp_path / "m" / "config.json").read_text(encoding="utf-8")
    loaded = load(tmp_path / "m")
    assert weights_fingerprint(loaded) == weights_fingerprint(model)
    torch.testing.assert_close(answer(loaded, TEXTS).logits, answer(model.eval(), TEXTS).logits, rtol=0, atol=0)


def test_pretrained_that_does_not_fit_is_refused(pretrained: Path, tmp_path: Path) -> None:
    def problem(section: dict[str, Any], **keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            make(section, **keys)
        (line,) = caught.value.problems
        assert "\n" not in line
        return line

    assert "model.encoder.pretrained: " in problem(tagger(pretrained), vocabulary=41)
    assert "data.max_length: 65 is more than the 64 positions" in problem(tagger(pretrained), max_length=65)
    line = problem(tagger(pretrained, fusion="concat"))
    assert line == "model.fusion: concat needs 4 layers, the encoder has 2"
    assert problem(tagger(tmp_path)).startswith(f"model.encoder.pretrained: {tmp_path}: has no config.json")
    config = (pretrained / "config.json").read_text(encoding="utf-8")
    (pretrained / "config.json").write_text(
        config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'), encoding="utf-8"
    )
    assert "lacks encoder.layer.2." in problem(tagger(pretrained))
    (pretrained / "config.json").write_text(
        config.replace('"intermediate_size": 32', '"intermediate_size": 36'), encoding="utf-8"
    )
    assert "encoder.layer.0.intermediate.dense.bias has another shape" in problem(tagger(pretrained))
    (pretrained / "config.json").write_text(config, encoding="utf-8")
    (pretrained / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded" in problem(tagger(pretrained))


@pytest.mark.parametrize("kind", ["tagger", "idcnn"])
def test_vectors_of_characters_to_begin_with(kind: str, tmp_path: Path) -> None:
    tokenizer = student_tokenizer(Vocabulary(unit="character", min_count=1), [["猫和狗"]])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "v.vec").write_text("2 3\n狗 1 2 3\n鸟 4 5 6\n", encoding="utf-8")
    section = {"type": kind, "embedding": 3, "vectors": str(tmp_path / "v.vec")}
    spec: Any = TypeAdapter(ModelSpec).validate_python(section)
    model = build(spec, vocabulary=len(tokenizer), labels=["O", "B-X"], pad_id=0, tokenizer_path=tmp_path / "tokenizer")
    assert model.embedding.weight[tokenizer.get_vocab()["狗"]].tolist() == [1, 2, 3]  # type: ignore[index,union-attr]
    save_model(model, tmp_path / "model", None, "card")
    assert type(load(tmp_path / "model")) is type(model)  # needs no file of vectors


def test_sections_that_make_no_sense_are_refused() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"type": "tagger", "fusion": "dynamic"}, "fusion: 'dynamic' needs an encoder"),
        ({"type": "tagger", "encoder": BERT, "embedding": 8}, "embedding: an encoder brings its own"),
        ({"type": "tagger", "encoder": BERT, "vectors": "v.vec"}, "vectors: an encoder brings its own"),
        ({"type": "tagger", "crf": False, "constrain": True}, "constrain: needs crf: true"),
        ({"type": "idcnn", "crf": False, "constrain": True}, "constrain: needs crf: true"),
    ]
    for section, message in refused:
        with pytest.raises(ValidationError, match=message):
            make(section)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    def problem(changes: dict[str, Any]) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            load(tmp_path)
        (line,) = caught.value.problems
        assert "\n" not in line
        return line

    save_model(make(PUBLISHED["NEZHA-BiLSTM-CRF+DF"]), tmp_path, None, "card")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    where = f"{tmp_path / 'config.json'}: describes no dtrain-tagger model: "
    assert problem({"encoder": {"model_type": "nonsense"}}).startswith(f"{where}encoder: ")
    assert problem({"encoder": ["bert"]}).startswith(f"{where}encoder: ")
    assert problem({"encoder": config["encoder"] | {"hidden_size": "wide"}}).startswith(f"{where}encoder: ")
    assert problem({"encoder": None}).startswith(where)
    assert problem({"fusion": "all"}) == f"{where}fusion: unknown 'all' (allowed: last, concat, dynamic)"
    assert problem({"lstm": "wide"}).startswith(where)
    assert "emissions.weight: has shape [9, 12], config.json says [9, 16]" in problem({"lstm": None})
    assert "embedding.weight: is missing" in problem({"encoder": None, "embedding": 16, "fusion": "last"})
    shorter = {str(i): tag for i, tag in enumerate(TAGS[:-1])}
    assert "crf.end_transitions: has shape [9], config.json says [8]" in problem({"id2label": shorter})
    config.pop("lstm")
    assert problem({}) == f"{tmp_path / 'config.json'}: lstm: is missing"
    config.pop("encoder")
    assert problem({"lstm": 6}) == f"{tmp_path / 'config.json'}: encoder: is missing"
