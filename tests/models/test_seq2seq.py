"""Encoder-decoders: what they write is what transformers' own `generate` writes, row by row; folders are whole or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from dtrain.data import EncodedSplit
from dtrain.data.written import complete_tokenizer, learnt_tokenizer, save_tokenizer
from dtrain.errors import InputError
from dtrain.models import build, load, save_model
from dtrain.models.decoding import NO_TOKEN, Decoding, Writer
from dtrain.recipe.architectures.seq2seq import BartSpec, MarianSpec
from dtrain.training.workers import Workers

SPECS = {
    "marian": MarianSpec(type="marian", hidden=16, layers=2, decoder_layers=1, heads=2),
    "bart": BartSpec(type="bart", hidden=16, layers=1, heads=2),
}


def made(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build(SPECS[kind], vocabulary=40, labels=["target"], pad_id=0, max_length=10).eval()
    with torch.no_grad():  # else tiny weights write the same token again and again
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.mul_(12)
    return model


def rows(count: int = 9) -> EncodedSplit:
    draw = np.random.default_rng(0)
    lengths, written = draw.integers(1, 8, count), draw.integers(0, 6, count)
    return EncodedSplit(
        ids=np.arange(count),
        labels=np.where(written, 0, -1),
        tokens=draw.integers(4, 40, lengths.sum()).astype(np.int32),
        types=None,
        offsets=np.cumsum([0, *lengths]),
        pad_id=0,
        load_rows=lambda: None,  # type: ignore[arg-type, return-value]
        targets=draw.integers(4, 40, written.sum()).astype(np.int32),
        target_offsets=np.cumsum([0, *written]),
        start_id=2,
        max_length=10,
    )


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("search", [Decoding(10), Decoding(10, 4, 3, 0.6)], ids=["greedy", "beam"])
def test_batches_over_workers_write_what_generate_writes_alone(kind: str, search: Decoding) -> None:
    # In float64: batches round otherwise than rows alone, and of two tokens as likely as each other either may win.
    model, part = made(kind).double(), rows()
    workers = Workers(torch.device("cpu"), 2, batch_tokens=12)

    def keep(output: object) -> tuple[Tensor, ...]:
        return (output.tokens, *(() if output.scores is None else (output.scores,)))  # type: ignore[attr-defined]

    found = {
        row: [tensor[place] for tensor in answer]
        for batch, answer in workers.outputs(Writer(model, decoding=search), part, keep)
        for place, row in enumerate(batch.tolist())
    }
    assert not any(module.training for module in model.modules())
    for row in range(len(part)):
        ids = torch.from_numpy(part.tokens[part.offsets[row] : part.offsets[row + 1]].astype(np.int64))[None]
        options = {"num_beams": search.beam, "num_return_sequences": search.candidates} if search.beam > 1 else {}
        alone = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False,
            length_penalty=search.length_penalty, return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        tokens = found[row][0]
        assert tokens.shape == (search.candidates if search.beam > 1 else 1, 10)
        for own, theirs in zip(tokens.tolist(), alone.sequences[:, 1:].tolist(), strict=True):
            theirs = theirs[: theirs.index(3) + 1]
            assert own == theirs + [NO_TOKEN] * (10 - len(theirs))
        if search.beam > 1:
            assert torch.allclose(found[row][1], alone.sequences_scores, atol=1e-9)


def test_teacher_forcing_gives_the_logits_of_each_token_given_those_before() -> None:
    model, part = made("marian"), rows()
    batch = part.collate(np.arange(len(part)))
    with torch.inference_mode():
        output = Writer(model, forced=True)(**batch)
        assert output.mask.sum(1).tolist() == part.target_lengths.tolist()
        row = int(np.argmax(part.target_lengths))
        prefix = torch.tensor([[2, *part.targets[part.target_offsets[row] :][: part.target_lengths[row] - 1]]])
        ids = batch["input_ids"][row : row + 1, : part.lengths[row]]
        alone = model(input_ids=ids, decoder_input_ids=prefix).logits[0]
    assert torch.allclose(output.logits[row, : len(alone)], alone, atol=1e-5)
    targets = part.collate_targets(np.arange(len(part)))
    assert targets.shape == output.mask.shape and torch.equal(targets >= 0, output.mask)


@pytest.mark.parametrize("kind", SPECS)
def test_folders_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    save_model(model, tmp_path, None, "a card")
    again, theirs = load(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    weights = model.state_dict()
    for found in (again, theirs):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in found.state_dict().items())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_model": 32}))
    with pytest.raises(InputError, match=r"model.safetensors: .*: has shape"):
        load(tmp_path)


def test_a_type_that_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"is_encoder_decoder": True, "model_type": ["bart"]}))
    with pytest.raises(InputError, match=r"config.json: model_type: unknown \['bart'\]"):
        load(tmp_path)


def test_two_vocabularies() -> None:
    spec = MarianSpec(type="marian", hidden=16, layers=1, heads=2, vocabularies="two")
    assert spec.two_vocabularies and spec.reading != SPECS["marian"].reading
    pretrained = MarianSpec(type="marian", pretrained="some/folder")
    assert not pretrained.two_vocabularies and pretrained.model_dump() == {
        "type": "marian", "pretrained": "some/folder", "dropout": None
    }  # fmt: skip


def test_a_student_has_as_many_tokens_as_the_model_whose_tokenizer_it_reads_with(tmp_path: Path) -> None:
    tokenizer = learnt_tokenizer(40, [["a b c d e"]], [["一二三"]], True, two=True)
    complete_tokenizer(tokenizer, "none", {"decoder_start_token_id": 60, "eos_token_id": 3, "vocab_size": 64})
    save_tokenizer(tokenizer, tmp_path)
    shape: Any = {"labels": ["target"], "pad_id": 0, "max_length": 10, "tokenizer_path": tmp_path}
    found = build(SPECS["marian"], vocabulary=64, **shape)
    # The section says nothing of two vocabularies: the tokenizer does, as it came.
    assert found.config.decoder_vocab_size == 64 and found.get_output_embeddings().weight.shape[0] == 64
    with pytest.raises(InputError, match="a bart has one vocabulary"):
        build(SPECS["bart"], vocabulary=64, **shape)


def test_a_generation_config_may_ask_for_several_and_name_no_end(tmp_path: Path) -> None:
    model = made("bart")
    model.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    asked = {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "eos_token_id": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked | {"decoder_start_token_id": None}))
    found = build(
        BartSpec(type="bart", pretrained=str(tmp_path)), vocabulary=40, labels=["target"], pad_id=0, max_length=10
    ).eval()
    batch = rows().collate(np.arange(9))
    ours = [Writer(each, decoding=Decoding(10))(**batch).tokens for each in (model, found)]
    assert ours[0].shape == (9, 1, 10) and torch.equal(*ours)
