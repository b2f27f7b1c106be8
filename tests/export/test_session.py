"""Exported programs called as the models that they were made from, on texts shorter than they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dtrain.export.folder import Wish, export_model
from dtrain.export.session import ExportedModel
from dtrain.models import load
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
