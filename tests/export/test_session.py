"""Exported programs called as the models that they were made from, on texts shorter than they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dtrain.errors import InputError
from dtrain.export.folder import Wish, export_model
from dtrain.export.session import ExportedModel, open_export
from dtrain.export.writing import Writing
from dtrain.models import load
from dtrain.models.decoding import Decoding, Writer
from tests.export.conftest import Model


@pytest.mark.parametrize("name", ["softmax_tagger", "nezha_tagger"])
def test_a_tagger_s_answers_end_where_its_texts_end(name: str, model_folders: dict[str, Model], tmp_path: Path) -> None:
    place = model_folders[name].folder
    export_model(Wish(place, name, "torch"), tmp_path / name)
    model = load(place).eval()
    ids = torch.arange(2 * 6).view(2, 6) + 5
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    with torch.inference_mode():
        expected, found = model(input_ids=ids, attention_mask=mask), ExportedModel(tmp_path / name, model)(ids, mask)
    assert found.mask is not None and torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.logits[found.mask], expected.logits[expected.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["marian_two", "bart"])
def test_an_encoder_decoder_scores_and_writes_as_its_model(
    name: str, model_folders: dict[str, Model], tmp_path: Path
) -> None:
    """Also a source of one token, and targets that end apart; of BART with what its generation_config.json forbids."""
    place = model_folders[name].folder
    export_model(Wish(place, name, "torch"), tmp_path / name)
    model = load(place).eval()
    tokens = model.lm_head.out_features
    ids = torch.arange(3 * 5).view(3, 5) * 7 % tokens
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    asked = {
        "decoder_input_ids": torch.arange(3 * 7).view(3, 7) * 5 % tokens,
        "target_lengths": torch.tensor([7, 2, 5]),
    }
    with torch.inference_mode():
        expected, found = (
            Writer(each, forced=True, decoding=Decoding(100))(ids, mask, **asked).__dict__
            for each in (model, open_export(tmp_path / name, model))
        )
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    assert torch.equal(found["tokens"], expected["tokens"]) and len(expected["tokens"].unique()) > 4
    with pytest.raises(ValueError, match="writes greedily, 100 tokens at most"):
        Writer(open_export(tmp_path / name, model), decoding=Decoding(9))(ids, mask)


@pytest.mark.parametrize(
    "rule", [{"repetition_penalty": 1.5}, {"bad_words_ids": [[5, 6]]}, {"begin_suppress_tokens": [3]}]
)
def test_a_rule_of_writing_that_an_export_does_not_follow(rule: dict, model_folders: dict[str, Model]) -> None:
    model = load(model_folders["marian"].folder)
    model.generation_config.update(**rule)
    with pytest.raises(InputError, match=rf"generation_config.json sets {next(iter(rule))} .*does not follow"):
        Writing(model).settings()
