"""Which rows a noisy student sees, and how often a token of theirs is blanked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.augment.noisy import blank_tokens, confident, noisy_rows
from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.batch import Batch
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Noisy
from dtrain.runfolder import RunFolder
from dtrain.stages.prepare import prepare
from dtrain.tasks.classification.task import Classification

# classes 0 0 0 1 0 1 2
PROBABILITIES = torch.tensor(
    [[0.9, 0.1, 0], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1], [0.1, 0.9, 0], [0.7, 0.3, 0], [0.4, 0.5, 0.1], [0, 0.3, 0.7]]
)


def test_the_sure_ones() -> None:
    assert confident(PROBABILITIES, 0.0, False).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert confident(PROBABILITIES, 0.7, False).tolist() == [0, 2, 3, 4, 6]
    assert confident(PROBABILITIES, 0.95, True).tolist() == []


def test_balanced() -> None:
    # 7 rows of 3 classes: 3 each. Of class 0 the surest three, of 1 both and the surest again, of 2 its one three times
    assert confident(PROBABILITIES, 0.0, True).tolist() == [0, 2, 3, 3, 4, 5, 6, 6, 6]
    # without class 2: 4 rows of 2 classes
    assert confident(PROBABILITIES[:6], 0.7, True).tolist() == [0, 2, 3, 3]


def blanked(rows: EncodedSplit, share: float) -> Batch:
    """All rows in one batch, as a training step is given them."""
    batch = Classification(["a", "b", "c"], []).collate(rows, np.arange(len(rows)), {"logits"})
    return blank_tokens(batch, share=share, part=rows)


class Store:
    """Answers log-probabilities of rows 100, 101, ..."""

    def read(self, kind: str, ids: np.ndarray) -> torch.Tensor:
        return (PROBABILITIES.clamp(min=1e-9))[ids - 100].log()


def part() -> EncodedSplit:
    """Two labelled rows, then seven without; row n has n + 1 tokens, all n + 10."""
    lengths = np.arange(1, 10)
    return EncodedSplit(
        ids=np.concatenate([[0, 1], np.arange(100, 107)]),
        labels=np.array([1, 0] + [-1] * 7),
        tokens=np.repeat(np.arange(10, 19), lengths).astype(np.int32),
        types=None,
        offsets=np.concatenate([[0], lengths.cumsum()]),
        pad_id=0,
        load_rows=lambda: SimpleNamespace(select=list),  # type: ignore[arg-type,return-value]
    )


def test_rows_keep_what_is_theirs() -> None:
    stores: Any = {"t": Store()}
    rows = noisy_rows(part(), stores, Noisy(confidence=0.0, token_noise=0.0))
    assert rows.ids.tolist() == [0, 1, 100, 102, 103, 103, 104, 105, 106, 106, 106]
    assert rows.labels.tolist() == [1, 0] + [-1] * 9
    batch = rows.collate(np.arange(len(rows)))
    for place, number in enumerate([0, 1, 2, 4, 5, 5, 6, 7, 8, 8, 8]):
        assert batch["input_ids"][place].tolist() == [10 + number] * (number + 1) + [0] * (8 - number)
    assert list(rows.rows()) == [0, 1, 2, 4, 5, 5, 6, 7, 8, 8, 8]
    with pytest.raises(InputError, match=r"noisy\.confidence: no transfer row reaches 0\.95"):
        noisy_rows(part(), stores, Noisy(confidence=0.95))


def test_what_stands_around_texts_is_never_blanked() -> None:
    whole = EncodedSplit(
        ids=np.array([0, 100]),
        labels=np.array([1, -1]),
        tokens=np.array([2, 7, 8, 3, 9, 3, 2, 1, 4, 3], dtype=np.int32),  # [CLS] a b [SEP] c [SEP]; [UNK] [MASK]
        types=None,
        offsets=np.array([0, 6, 10]),
        pad_id=0,
        load_rows=lambda: SimpleNamespace(select=list),  # type: ignore[arg-type,return-value]
        frame=(2, 3),
    )
    stores: Any = {"t": Store()}
    rows = noisy_rows(whole, stores, Noisy(confidence=0.0, token_noise=0.999999))
    assert blanked(rows, 0.999999).inputs["input_ids"].tolist() == [[2, 0, 0, 3, 0, 3], [2, 0, 0, 3, 0, 0]]


def test_the_frame_of_prepared_rows(tmp_path: Path) -> None:
    rows = [{"text": f"ab{n}", "b": f"cd{n}", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"task": "pairs", "train": str(tmp_path / "train.jsonl"), "columns": {"text_b": "b"}}
    recipe = Recipe.model_validate(
        {"name": "r", "data": data, "students": [{"name": "s", "model": {"type": "siamese"}}]}
        | {"teachers": [{"name": "t", "model": {"type": "bert", "size": "tiny", "vocabulary_size": 100}}]}
    )
    folder = RunFolder(tmp_path / "runs")
    prepare(recipe, folder, "rows", lambda name: name)
    for name in ("students", "t"):
        prepared = PreparedData.open(folder)
        vocabulary = load_tokenizer(prepared.tokenizer_path(name)).get_vocab()
        wanted = tuple(sorted({vocabulary["[CLS]"], vocabulary["[SEP]"]}))
        part = prepared.part("train", name)
        assert part.frame == EncodedSplit.concat([part, part]).frame == wanted
        around = 1 if name == "students" else 3  # a [SEP] b, or [CLS] a [SEP] b [SEP]
        assert np.isin(part.tokens, wanted).sum() == around * len(part)


def test_tokens_are_blanked_anew_each_time() -> None:
    stores: Any = {"t": Store()}
    rows = noisy_rows(part(), stores, Noisy(token_noise=0.25))
    torch.manual_seed(0)
    batches = [blanked(rows, 0.25).inputs for _ in range(200)]
    tokens = torch.stack([batch["input_ids"] for batch in batches])
    mask = batches[0]["attention_mask"].bool()
    assert all(torch.equal(batch["attention_mask"], batches[0]["attention_mask"]) for batch in batches)
    assert (tokens[:, mask] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(tokens[0], tokens[1])
    torch.manual_seed(0)
    assert torch.equal(blanked(rows, 0.25).inputs["input_ids"], tokens[0])
