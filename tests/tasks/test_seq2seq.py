"""Writing texts as a task: scores are equal on 1 to 4 ranks; rows of a teacher's sequences; what is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

from datasets import Dataset
from sacrebleu.metrics import BLEU, CHRF
from torch import nn

from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.encode import Encoder
from dtrain.data.vocabularies import load_tokenizer
from dtrain.data.written import learnt_tokenizer, load_writer, save_tokenizer
from dtrain.errors import InputError
from dtrain.models import build
from dtrain.models.decoding import Decoding, Writer
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.architectures.seq2seq import MarianSpec
from dtrain.recipe.schema import Knowledge
from dtrain.runtime.distributed import World
from dtrain.stages import prepare
from dtrain.tasks.seq2seq.answers import Targets
from dtrain.tasks.seq2seq.task import Seq2Seq, as_text
from dtrain.training.workers import Workers
from tests.knowledge.conftest import run_ranks  # which are threads
from tests.test_bad_seq2seq_input import written

SOURCES = [f"{'big ' * (n % 3)}dog number {n % 7}" for n in range(20)]
TARGETS = [f"{'大' * (n % 3)}狗{n % 7}号" for n in range(20)]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> EncodedSplit:
    """Rows, of which every fifth has no target."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = learnt_tokenizer(80, [SOURCES], [TARGETS], True, two=False)
    save_tokenizer(tokenizer, folder)
    encoder = Encoder(tokenizer, 12, pairs=False)
    read, written = encoder(SOURCES).ids, encoder(TARGETS).ids
    written = [ids if n % 5 else [] for n, ids in enumerate(written)]
    return EncodedSplit(
        ids=np.arange(20),
        labels=np.array([0 if ids else -1 for ids in written]),
        tokens=np.concatenate(read).astype(np.int32),
        types=None,
        offsets=np.cumsum([0, *map(len, read)]),
        pad_id=0,
        load_rows=lambda: Dataset.from_dict({"text": SOURCES, "target": TARGETS}),
        tokenizer=folder,
        max_length=12,
        targets=np.concatenate([np.array(ids, dtype=np.int32) for ids in written]),
        target_offsets=np.cumsum([0, *map(len, written)]),
        start_id=2,
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    spec = MarianSpec(type="marian", hidden=16, layers=1, heads=2)
    return build(spec, vocabulary=80, labels=["target"], pad_id=0, max_length=12).eval()


def task() -> Seq2Seq:
    made = Seq2Seq(["target"], [])
    made.words = "zh"
    made.settle(Knowledge(beam=3, length_penalty=0.5))
    return made


def test_scores_are_equal_on_any_number_of_ranks_and_those_of_sacrebleu(part: EncodedSplit, model: nn.Module) -> None:
    records: dict[tuple[int, int], Any] = {}

    def score(world: Any) -> None:
        workers = Workers(world.device, 1, batch_tokens=24, world=world)
        records[world.size, world.rank] = task().record(model, part, workers)

    for ranks in (1, 2, 3, 4):
        assert run_ranks(ranks, score) == [None] * ranks
    expected = records[1, 0]
    assert all(record == expected for record in records.values())
    labelled = [n for n in range(20) if n % 5]
    assert expected["scores"]["rows"] == 16 and len(expected["written"]) == 8
    assert [shown["source"] for shown in expected["written"]] == [SOURCES[n] for n in labelled[:8]]
    tokens = {}
    workers = Workers(torch.device("cpu"), 1)
    for rows, (found,) in workers.outputs(Writer(model, decoding=Decoding(12)), part, lambda o: (o.tokens[:, 0],)):
        tokens |= dict(zip(rows.tolist(), found.numpy(), strict=True))
    assert part.tokenizer is not None
    writer = load_writer(part.tokenizer)
    texts, references = [as_text(writer, tokens[n]) for n in labelled], [TARGETS[n] for n in labelled]
    assert expected["scores"]["bleu"] == BLEU(tokenize="zh").corpus_score(texts, [references]).score / 100
    assert expected["scores"]["chrf"] == pytest.approx(CHRF().corpus_score(texts, [references]).score / 100, rel=1e-15)


@pytest.mark.parametrize("vocabularies", ["shared", "two"])
def test_vocabularies_are_counted_on_the_sides_that_they_are_of(
    vocabularies: str, tmp_path: Path, world: World
) -> None:
    """Pieces of sources and of targets: of the former none was known where both were counted on the latter."""
    recipe = load_recipe(str(written(tmp_path)), [f"teachers.0.model.vocabularies={vocabularies}"])
    folder = Plan(recipe).folder
    prepare.run(recipe, world, folder)
    data = PreparedData.open(folder)
    part, place = data.part("train", "big"), data.tokenizer_path("big")
    read, write = load_tokenizer(place), load_writer(place)
    assert part.targets is not None
    # A number that occurs once is no piece.
    assert all((ids == 1).mean() < 0.25 for ids in (part.tokens, part.targets)) and read.unk_token_id == 1
    assert "文" in write.get_vocab() and ("文" in read.get_vocab()) == (vocabularies == "shared")
    assert "▁number" in read.get_vocab()


def test_a_beam_of_more_hypotheses_than_tokens_is_seen_before_anything_is_trained() -> None:
    task().check_vocabulary("big", 3)
    task().check_vocabulary("students", 0)
    with pytest.raises(InputError, match=r"knowledge.beam: 3 is more than the 2 tokens .* tokenizer of big"):
        task().check_vocabulary("big", 2)


@pytest.mark.parametrize("penalty", [float("nan"), float("inf"), float("-inf")])
def test_a_length_penalty_is_a_number(penalty: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 80}')
    for option, own in (("--beam", "--length-penalty"), ("beam", "length_penalty")):
        with pytest.raises(InputError, match=f"^{own}: {penalty} is not a finite number"):
            Targets().searching(tmp_path, 3, penalty, option)
    for beam in (0, 2.5):
        with pytest.raises(InputError, match=rf"^beam: {beam} is not a positive number of hypotheses"):
            Targets().searching(tmp_path, beam, 1.0, "beam")  # type: ignore[arg-type]
    found = Targets().searching(tmp_path, 3, -4.0, "--beam")
    assert (found.beam, found.length_penalty) == (3, -4.0)


def test_a_batch_is_sources_and_targets_a_place_later(part: EncodedSplit) -> None:
    batch = task().collate(part, np.array([0, 1, 7]), {"token_logits"})
    assert set(batch.inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    given, wanted, mask = (
        batch.inputs["decoder_input_ids"],
        batch.targets["target_tokens"],
        batch.targets["target_mask"],
    )
    assert (given[:, 0] == 2).all() and torch.equal(given[:, 1:][mask[:, 1:]], wanted[:, :-1][mask[:, 1:]])
    assert batch.units.tolist() == [1, *part.target_lengths[[1, 7]]]
    assert batch.labelled.tolist() == [False, True, True] and not mask[0].any()
    alone = task().collate(part, np.array([0]), {"token_logits"})  # a target of no tokens still has a place to decode
    assert alone.inputs["decoder_input_ids"].shape == (1, 1)
