"""Next-sentence prediction: its loss, by hand and by transformers, for any number of ranks; its model, from one checkpoint
to the next; its recipes, and that recipes without it are what they were."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, BertConfig

import dtrain.models.nezha  # noqa: F401  (registers NEZHA)
from dtrain.data import share_of
from dtrain.errors import InputError
from dtrain.models import save_model
from dtrain.models.masked_lm import PairedLM
from dtrain.models.transformer import build_classifier, build_masked_lm
from dtrain.plan import Plan
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.architectures.transformers import BertSpec, NezhaSpec
from dtrain.recipe.corpus import MaskingSpec
from dtrain.recipe.models import EncoderSpec
from dtrain.recipe.schema import Recipe
from dtrain.tasks.masked_lm.masking import MASKABLE, SENTENCE, WORD, WORD_START, Masker
from dtrain.tasks.masked_lm.pairs import PairedRows, write_pairs
from dtrain.tasks.masked_lm.rows import HELD_OUT_EPOCH, MaskedRows, masked_batch, with_pairs
from dtrain.tasks.masked_lm.task import evaluate
from tests.pretraining.conftest import loss_of

CLS, SEP, MASK, VOCABULARY = 2, 3, 4, 60
LENGTH = 16
CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "dropout": 0.0}

Load = Callable[..., Recipe]


def world(rank: int = 0, size: int = 1, add: Callable[[torch.Tensor], torch.Tensor] = lambda t: t) -> Any:
    return SimpleNamespace(rank=rank, size=size, device=CPU, threads=1, sum=add)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> PairedRows:
    """60 documents of 5 sentences of 4 two-token words."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, VOCABULARY, 60 * 40).astype(np.int32)
    flags = np.zeros(len(tokens), np.uint8)
    flags[::2] |= WORD
    flags[::8] |= SENTENCE
    folder = tmp_path_factory.mktemp("rows") / "train"
    write_pairs([(tokens, flags, np.arange(0, len(tokens) + 1, 40))], LENGTH, SEP, folder)
    return PairedRows.open(folder, 3, CLS, SEP)


def masker() -> Masker:
    return Masker(MaskingSpec(), 3, MASK, np.arange(5, VOCABULARY))


class Answers(torch.nn.Module):
    """Scores that follow from the token read, and from the second token of B."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=draw, dtype=torch.float64))
        self.follows = torch.nn.Parameter(torch.randn(VOCABULARY, 2, generator=draw, dtype=torch.float64))

    def forward(
        self, input_ids: torch.Tensor, places: torch.Tensor, segments: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        begins = segments.argmax(dim=1, keepdim=True)
        return self.table[input_ids.flatten()[places]], self.follows[input_ids.gather(1, begins)[:, 0]]


def by_hand(model: Answers, rows: PairedRows, index: np.ndarray, epoch: int) -> dict[str, float]:
    """Means over tokens and over rows, number by number, in float64."""
    tokens, kinds = rows.take(index, epoch)
    chosen = masker().choose(kinds, index, epoch)
    read = masker().replace(tokens, chosen, index, epoch)
    table, follows = model.table.tolist(), model.follows.tolist()
    found: dict[str, list[float]] = {"tokens": [], "right": [], "pairs": [], "pairs_right": []}
    for row in range(len(index)):
        begins = next(n for n in range(LENGTH) if kinds[row, n] & 16)
        asked = [("", table[read[row, n]], tokens[row, n]) for n in range(LENGTH) if chosen[row, n]]
        asked.append(("pairs", follows[read[row, begins]], int(kinds[row, 0] & 32 > 0)))
        for kind, scores, label in asked:
            loss = math.log(math.fsum(math.exp(score) for score in scores)) - scores[label]
            found[kind or "tokens"].append(loss)
            found["pairs_right" if kind else "right"].append(float(scores[label] == max(scores)))
    return {name: math.fsum(values) / len(values) for name, values in found.items()} | {"count": len(found["tokens"])}


def step(task: MaskedRows, model: Any, batch: np.ndarray, rank: int, size: int) -> dict[str, tuple[float, float]]:
    """What a rank adds to a step's loss, over two micro-batches, and the sum and count of each term."""
    totals: dict[str, tuple[float, float]] = {"loss": (0.0, 0.0)}
    for share in share_of(batch, rank, size, 2, 4):
        borrowed = not len(share)  # a rank without rows takes part with one, which counts nothing
        loss, sums, counts = loss_of(task, model, batch[:1] if borrowed else share)
        scale = 0.0 if borrowed else 1.0 / float(task.units[batch].sum())
        parts = {"loss": (loss.item() * scale, 0.0)}
        parts |= {name: (float(sums[name]) * (not borrowed), float(counts[name]) * (not borrowed)) for name in sums}
        for name, (value, count) in parts.items():
            old = totals.get(name, (0.0, 0.0))
            totals[name] = old[0] + value, old[1] + count
    return totals


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_mean_is_over_its_own_global_count(rows: PairedRows, size: int) -> None:
    """Five rows with unlike numbers of masked tokens, on one rank and on more ranks than rows."""
    model, batch, epoch = Answers(), np.array([3, 39, 26, 0, 17]), 2
    expected = by_hand(model, rows, batch, epoch)
    counts = torch.from_numpy(masker().choose(rows.take(batch, epoch)[1], batch, epoch).sum(axis=1))
    assert len(set(counts.tolist())) > 1
    totals: dict[str, tuple[float, float]] = {}
    for rank in range(size):
        task = MaskedRows(rows, masker(), world(rank, size, lambda _: counts), separate=False)
        task.begin_step(batch, epoch, 4)
        for name, (value, count) in step(task, model, batch, rank, size).items():
            old = totals.get(name, (0.0, 0.0))
            totals[name] = old[0] + value, old[1] + count
    assert totals["loss"][0] == pytest.approx(expected["tokens"] + expected["pairs"], rel=1e-12)
    means = {name: sum_ / count for name, (sum_, count) in totals.items() if name != "loss"}
    assert means == pytest.approx(
        {
            "accuracy": expected["right"],
            "masked_loss": expected["tokens"],
            "next_sentence_loss": expected["pairs"],
            "next_sentence_accuracy": expected["pairs_right"],
        },
        rel=1e-12,
    )
    assert totals["next_sentence_loss"][1] == 5 and totals["accuracy"][1] == expected["count"]


def test_a_batch_without_masked_tokens_has_the_loss_of_its_pairs(rows: PairedRows) -> None:
    nothing = Masker(MaskingSpec(share=1e-9), 3, MASK, np.arange(5, VOCABULARY))
    task = MaskedRows(rows, nothing, world(), separate=False)
    batch = np.array([1, 2])
    task.begin_step(batch, 0, 0)
    loss, _, _ = loss_of(task, Answers(), batch)
    assert loss.item() / task.units[batch].sum() == pytest.approx(by_hand_pairs(rows, batch), rel=1e-12)


def by_hand_pairs(rows: PairedRows, batch: np.ndarray) -> float:
    tokens, kinds = rows.take(batch, 0)
    first = [int(row[np.argmax(kind & 16 > 0)]) for row, kind in zip(tokens, kinds, strict=True)]
    scores = [Answers().follows[token].tolist() for token in first]
    labels = [int(kind[0] & 32 > 0) for kind in kinds]
    return sum(math.log(sum(map(math.exp, s))) - s[n] for s, n in zip(scores, labels, strict=True)) / len(batch)


def test_scores_of_held_out_pairs_by_hand_on_one_rank_and_on_three(
    rows: PairedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.tasks.masked_lm.task.BATCH_TOKENS", 5 * LENGTH)
    model = Answers()
    expected = by_hand(model, rows, np.arange(len(rows)), HELD_OUT_EPOCH)
    kept: list[torch.Tensor] = []

    def add(values: torch.Tensor) -> torch.Tensor:
        kept.append(values)
        return torch.stack(kept).sum(dim=0)

    for size in (1, 3):
        kept.clear()
        for rank in range(size):
            found = evaluate(model, rows, masker(), world(rank, size, add), precision="fp32", separate=False)
        assert found == pytest.approx(
            {
                "loss": expected["tokens"] + expected["pairs"],
                "accuracy": expected["right"],
                "perplexity": math.exp(expected["tokens"]),
                "tokens": expected["count"],
                "masked_loss": expected["tokens"],
                "next_sentence_loss": expected["pairs"],
                "next_sentence_accuracy": expected["pairs_right"],
            },
            rel=1e-12,
        )


# --- the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "nezha"])
def test_loss_and_gradients_are_those_of_transformers_own_head(rows: PairedRows, kind: str) -> None:
    """BertForPreTraining's forward (and the one of NEZHA's released heads), with both labels, in float64."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
    shape |= {
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = BertConfig(**shape) if kind == "bert" else AutoConfig.for_model("nezha", **shape)
    lm = AutoModelForPreTraining.from_config(config, attn_implementation="sdpa").double()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    full = copy.deepcopy(lm)

    index, epoch = np.arange(8), 1
    tokens, kinds = rows.take(index, epoch)
    chosen = masker().choose(kinds, index, epoch)
    labels = torch.from_numpy(np.where(chosen, tokens, -100).astype(np.int64))
    read = torch.from_numpy(masker().replace(tokens, chosen, index, epoch))
    other = torch.tensor([int(kind[0] & 32 > 0) for kind in kinds])
    assert 0 < other.sum() < 8
    batch = with_pairs(masked_batch(masker(), tokens, kinds, chosen, index, epoch, separate=False), kinds)
    assert batch.other is not None and torch.equal(batch.other, other)
    expected = full(input_ids=read, token_type_ids=batch.segments, labels=labels, next_sentence_label=other).loss
    expected.backward()

    task = MaskedRows(rows, masker(), world(), separate=False)
    task.begin_step(index, epoch, 0)
    loss = loss_of(task, PairedLM(lm), index)[0] / task.units[index].sum()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients = dict(full.named_parameters())
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name  # every one is used: DDP waits for all
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-9, atol=1e-12)


def spec_of(kind: str, **values: Any) -> EncoderSpec:
    return NezhaSpec(type="nezha", **values) if kind == "nezha" else BertSpec(type="bert", **values)


@pytest.mark.parametrize("kind", ["bert", "nezha"])
def test_from_one_checkpoint_to_the_next(kind: str, tmp_path: Path) -> None:
    """Phases keep all heads, a teacher starts with the pooler, and a checkpoint without the head gets a new one."""
    torch.manual_seed(0)
    made = build_masked_lm(spec_of(kind, **SHAPE), vocabulary=VOCABULARY, pad_id=0, next_sentence=True)
    save_model(made, tmp_path / "pairs", None, "card")
    again = build_masked_lm(
        spec_of(kind, pretrained=str(tmp_path / "pairs")), vocabulary=VOCABULARY, pad_id=0, next_sentence=True
    )
    weights = made.state_dict()
    assert "cls.seq_relationship.weight" in weights
    assert all(again.state_dict()[name].equal(weights[name]) for name in weights)
    teacher = build_classifier(
        spec_of(kind, pretrained=str(tmp_path / "pairs")), vocabulary=VOCABULARY, labels=["a", "b"], pad_id=0
    )
    shared = [name for name in weights if name.startswith(f"{kind}.")]
    assert f"{kind}.pooler.dense.weight" in shared
    assert all(teacher.state_dict()[name].equal(weights[name]) for name in shared)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "pairs").config.vocab_size == VOCABULARY

    alone = build_masked_lm(spec_of(kind, **SHAPE), vocabulary=VOCABULARY, pad_id=0)
    assert not any("pooler" in name or "seq_relationship" in name for name in alone.state_dict())
    save_model(alone, tmp_path / "alone", None, "card")
    torch.manual_seed(1)
    new = build_masked_lm(
        spec_of(kind, pretrained=str(tmp_path / "alone")), vocabulary=VOCABULARY, pad_id=0, next_sentence=True
    ).state_dict()
    assert all(new[name].equal(tensor) for name, tensor in alone.state_dict().items())
    drawn = new["cls.seq_relationship.weight"]
    assert torch.isfinite(drawn).all() and 0.005 < drawn.std() < 0.05  # as a new head is


def test_a_checkpoint_with_one_token_type_is_refused(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1}
    config = BertConfig(**shape, num_attention_heads=2, intermediate_size=24, type_vocab_size=1)
    save_model(AutoModelForMaskedLM.from_config(config), tmp_path / "one", None, "card")
    spec = spec_of("bert", pretrained=str(tmp_path / "one"))
    with pytest.raises(
        InputError, match=r"pretrain.model.pretrained: .*/one: has one token type, and pretrain.next_sent"
    ):
        build_masked_lm(spec, vocabulary=VOCABULARY, pad_id=0, next_sentence=True)
    build_masked_lm(spec, vocabulary=VOCABULARY, pad_id=0)


# --- recipes -------------------------------------------------------------------------------------------


def prints(recipe: Recipe) -> list[str]:
    """Fingerprints of both phases, of whatever text."""
    plan = Plan(recipe)
    plan.__dict__["corpus"] = "text"
    return [plan.pretraining(phase) for phase in range(2)]


def test_recipes_without_it_are_what_they_were(recipe_of: Load, text_files: Path) -> None:
    """Fingerprints, and masks, as format 2 gives them without such a key; a written recipe is that recipe again."""
    recipe = recipe_of()
    before = ["8b65a0a58efbe588bab5aa4561bf369b", "8b12a63478ec7f063f99f4f1c62f8049"]
    assert prints(recipe) == prints(recipe_of(pretrain={"next_sentence": False})) == before
    for made in (recipe, recipe_of(pretrain={"next_sentence": True})):
        (text_files / "written.yaml").write_text(dump_recipe(made), encoding="utf-8")
        again = load_recipe(str(text_files / "written.yaml"))
        assert again == made and prints(again) == prints(made)

    random = np.random.default_rng(0)
    kinds = np.full((50, 40), MASKABLE, np.uint8)
    kinds[random.random(kinds.shape) < 0.6] |= WORD_START
    kinds[:, 0] = 0
    kinds[:, 1] |= WORD_START
    tokens = random.integers(5, 60, kinds.shape)
    digest = hashlib.sha256()
    for ngram in (1, 3):
        drawing = Masker(MaskingSpec(ngram=ngram), 7, 4, np.arange(5, 60))
        for epoch in (0, 3, HELD_OUT_EPOCH):
            chosen = drawing.choose(kinds, np.arange(50), epoch)
            digest.update(chosen.tobytes())
            digest.update(drawing.replace(tokens, chosen, np.arange(50), epoch).tobytes())
    assert digest.hexdigest()[:16] == "1fcdd6323fa1e6c8"


def test_the_key_changes_the_models_and_not_the_text(recipe_of: Load) -> None:
    off, on = recipe_of(), recipe_of(pretrain={"next_sentence": True})
    assert Plan(on).corpus == Plan(off).corpus
    assert not set(prints(on)) & set(prints(off))


@pytest.mark.parametrize(
    ("pretrain", "corpus", "told"),
    [
        (
            {"next_sentence": True},
            {"separate": True},
            "next_sentence: not together with corpus.separate, which hides one",
        ),
        ({"next_sentence": "often"}, {}, "pretrain.next_sentence: input should be a valid boolean"),
        ({"next_sentences": True}, {}, "pretrain.next_sentences: unknown key; did you mean 'next_sentence'?"),
    ],
)
def test_bad_recipes_are_told_in_one_line(
    recipe_of: Load, pretrain: dict[str, Any], corpus: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError) as error:
        recipe_of(pretrain=pretrain, corpus=corpus)
    assert len(error.value.problems) == 1 and told in error.value.problems[0], error.value.problems
