"""TextRCNN, FastText and the siamese BiLSTM against plain loops over single unpadded rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dtrain.data.encode import Encoder
from dtrain.data.vocabularies import student_tokenizer
from dtrain.models import build, load, save_model
from dtrain.models.bilstm import BiLSTM
from dtrain.models.fasttext import MULTIPLIER, FastText
from dtrain.models.siamese import Siamese
from dtrain.models.text_rcnn import TextRCNN
from dtrain.recipe.architectures.classifiers import SiameseSpec
from dtrain.recipe.data import Vocabulary
from dtrain.recipe.models import ModelSpec

SEPARATOR = 2
RCNN: dict[str, Any] = {"embedding": 5, "hidden": 4, "features": 6, "dropout": 0.0}
BAG: dict[str, Any] = {"embedding": 5, "ngrams": 3, "buckets": 64, "dropout": 0.0}
PAIR: dict[str, Any] = {"embedding": 5, "hidden": 4, "layers": 1, "dropout": 0.0}
COMMON: dict[str, Any] = {"vocab_size": 20, "classes": 3, "pad_token_id": 0}
LENGTHS = [7, 1, 0, 2, 5]


def padded(lengths: list[int] = LENGTHS, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of these lengths, with other ids than padding's behind their ends."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 20, (len(lengths), max(lengths) + extra), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return ids, mask


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("make", [lambda: TextRCNN(**COMMON, **RCNN), lambda: FastText(**COMMON, **BAG)])
def test_padding_and_neighbours_change_nothing(make: Any) -> None:
    model = make().double()
    ids, mask = padded(extra=3)
    whole = model(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone.logits[0], whole.logits[row])
        torch.testing.assert_close(alone.features[0], whole.features[row])


def test_a_batch_without_ngrams_reaches_their_table() -> None:
    """DDP waits for the gradient of every parameter."""
    model = FastText(**COMMON, **BAG)
    ids, mask = padded([1, 1, 0])
    model(ids, mask).logits.sum().backward()
    assert model.ngram_embedding is not None and model.ngram_embedding.weight.grad is not None
    assert not model.ngram_embedding.weight.grad.any()


def test_text_rcnn_by_its_equations() -> None:
    model = TextRCNN(**COMMON, **RCNN).double()
    ids = torch.tensor([[4, 9, 7]])
    words = model.embedding(ids[0])
    forward, backward = _cell(model.lstm, ""), _cell(model.lstm, "_reverse")
    left, right = [torch.zeros(4).double()], [torch.zeros(4).double()]
    state = torch.zeros(1, 4).double(), torch.zeros(1, 4).double()
    for word in words[:-1]:
        state = forward(word[None], state)
        left.append(state[0][0])
    state = torch.zeros(1, 4).double(), torch.zeros(1, 4).double()
    for word in words.flip(0)[:-1]:
        state = backward(word[None], state)
        right.insert(0, state[0][0])
    combined = torch.stack([torch.cat(parts) for parts in zip(left, words, right, strict=True)])
    features = model.combine(combined).tanh().amax(0)
    torch.testing.assert_close(model(ids, torch.ones_like(ids)).features[0], features)


def _cell(lstm: nn.LSTM, direction: str) -> nn.LSTMCell:
    cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size).double()
    cell.load_state_dict({name: getattr(lstm, f"{name}_l0{direction}") for name in cell.state_dict()})
    return cell


def test_fasttext_by_its_definition() -> None:
    model = FastText(**COMMON, **BAG).double()
    row = [4, 9, 7, 4]
    assert model.ngram_embedding is not None
    vectors = [model.embedding.weight[token] for token in row]
    for n in (2, 3):
        for start in range(len(row) - n + 1):
            number = 0
            for token in row[start : start + n]:
                number = number * MULTIPLIER + token
            number = (number + 2**63) % 2**64 - 2**63  # int64
            vectors.append(model.ngram_embedding.weight[number % 64])
    found = model(torch.tensor([row]), torch.ones(1, 4, dtype=torch.long))
    torch.testing.assert_close(found.features[0], torch.stack(vectors).mean(0))
    assert found.features.shape[1] == 5


def test_fasttexts_table_has_the_gradient_of_one_look_up_for_each_n() -> None:
    """It is one look-up, for speed. Where two n meet in a bucket their vectors' gradients may be added in another order."""
    model = FastText(**COMMON, **BAG)
    assert model.ngram_embedding is not None
    ids, mask = padded()
    found = model(ids, mask)
    found.features.square().sum().backward()
    table = model.ngram_embedding.weight.detach().requires_grad_()
    total, count = model.embedding(ids * mask).sum(1), mask.sum(1)
    hashed = ids * mask
    for n in (2, 3):
        hashed = hashed[:, :-1] * MULTIPLIER + (ids * mask)[:, n - 1 :]
        whole = torch.arange(hashed.shape[1]) < (mask.sum(1) - n + 1)[:, None]
        total = total + torch.where(whole[..., None], nn.functional.embedding(hashed % 64, table), 0.0).sum(1)
        count = count + (mask.sum(1) - n + 1).clamp(min=0)
    features = total / count.clamp(min=1)[:, None]
    assert torch.equal(features, found.features)
    features.square().sum().backward()
    torch.testing.assert_close(model.ngram_embedding.weight.grad, table.grad, rtol=1e-6, atol=1e-7)


def test_order_matters_to_ngrams_alone() -> None:
    ids = torch.tensor([[4, 9, 7], [7, 9, 4]])
    for ngrams, same in ((1, True), (2, False)):
        model = FastText(**COMMON, **BAG | {"ngrams": ngrams})
        one, other = model(ids, torch.ones_like(ids)).logits
        assert torch.allclose(one, other) == same


@pytest.mark.parametrize("pooling", ["final", "max", "mean"])
def test_siamese_is_one_bilstm_for_both_texts(pooling: str) -> None:
    model = Siamese(**COMMON, **PAIR, separator_id=SEPARATOR, pooling=pooling).double()
    single = BiLSTM(**COMMON, **PAIR, pooling=pooling).double()
    single.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(("embedding", "lstm"))}, False)
    pairs = [([4, 5, 6], [7, 8]), ([9], [3, 4, 5, 6, 7]), ([], [3]), ([3, 3], []), ([4], [SEPARATOR, 5])]
    rows = [[*a, SEPARATOR, *b] for a, b in pairs]
    ids = torch.full((5, 9), 11)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    mask = (torch.arange(9) < torch.tensor(list(map(len, rows)))[:, None]).long()
    found = model(ids, mask).features
    for row, (a, b) in enumerate(pairs):
        u, v = (
            single(torch.tensor([text or [0]]), torch.tensor([[1] * (len(text) or 1)])).features[0] for text in (a, b)
        )
        torch.testing.assert_close(found[row], torch.cat([u, v, (u - v).abs(), u * v]))


def test_a_siamese_student_reads_what_the_students_tokenizer_writes(tmp_path: Path) -> None:
    tokenizer = student_tokenizer(Vocabulary(unit="word", min_count=1), [["a b c", "d e"]])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "vectors.txt").write_text("d 1 2 3\n")
    model = build(
        SiameseSpec(type="siamese", embedding=3, hidden=4, vectors=str(tmp_path / "vectors.txt")),
        vocabulary=len(tokenizer), labels=["x", "y"], pad_id=0, tokenizer_path=tmp_path / "tokenizer",
    ).eval()  # fmt: skip
    assert isinstance(model, Siamese)
    assert model.embedding.weight[tokenizer.get_vocab()["d"]].tolist() == [1, 2, 3]
    assert "vectors" not in model.config  # a model folder needs no file beside it
    (ids,) = Encoder(tokenizer, 16, pairs=True)(["a b"], ["d e"]).ids
    assert ids.count(model.separator_id) == 1
    u, v, difference, product = model(torch.tensor([ids]), torch.ones(1, len(ids))).features[0].chunk(4)
    torch.testing.assert_close(difference, (u - v).abs())
    torch.testing.assert_close(product, u * v)


SPECS: list[dict[str, Any]] = [
    {"type": "text_rcnn", "embedding": 8, "hidden": 8, "features": 8},
    {"type": "fasttext", "embedding": 8, "buckets": 32},
    {"type": "bert_cnn", "encoder": {"type": "bert", "hidden": 8, "layers": 2, "heads": 2}, "filters": 4},
    {"type": "bert_cnn", "encoder": {"type": "nezha", "hidden": 8, "layers": 1, "heads": 2}, "filters": 4},
    {"type": "multi_exit", "encoder": {"type": "bert", "hidden": 8, "layers": 3, "heads": 2}, "exits": [1]},
]


@pytest.mark.parametrize("section", SPECS, ids=lambda section: section["type"])
def test_a_saved_model_answers_the_same(section: dict[str, Any], tmp_path: Path) -> None:
    spec: Any = TypeAdapter(ModelSpec).validate_python(section)
    model = build(spec, vocabulary=20, labels=["a", "b", "c"], pad_id=0).eval()
    save_model(model, tmp_path / "model", None, "a card")
    ids, mask = padded([7, 1, 5])
    again = load(tmp_path / "model")
    assert type(again) is type(model)
    assert torch.equal(again(ids, mask).logits, model(ids, mask).logits)
