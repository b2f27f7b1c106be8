"""Evaluation over ranks: every row once, and the same last digit for any number of ranks."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, log_loss
from torch import nn

from dtrain.data import EncodedSplit
from dtrain.errors import DtrainError
from dtrain.metrics import scores
from dtrain.tasks.classification.scoring import count_part, evaluate_part
from dtrain.training.workers import Workers

CLASSES = 5


class Rank:
    """One rank of a world whose ranks are threads; sums meet at a barrier, as all-reduce does."""

    device, threads = torch.device("cpu"), 1

    def __init__(self, rank, size, barrier, slots):
        self.rank, self.size, self.barrier, self.slots = rank, size, barrier, slots

    def sum(self, tensor):
        self.slots[self.rank] = tensor
        self.barrier.wait(timeout=30)
        total = sum(self.slots[1:], self.slots[0].clone())
        self.barrier.wait(timeout=30)
        return total


def on_ranks(size, work):
    barrier, slots = Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(Rank(rank, size, barrier, slots)), range(size)))


class MeanOfEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(30, 16), nn.Linear(16, CLASSES)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.out(mean) * 10)


MODEL = MeanOfEmbeddings()


def part_of(lengths, labels):
    tokens = np.random.default_rng(len(lengths)).integers(1, 30, sum(lengths)).astype(np.int32)
    return EncodedSplit(
        ids=np.arange(len(lengths)) + 100,
        labels=np.array(labels, dtype=np.int64),
        tokens=tokens,
        types=None,
        offsets=np.cumsum([0, *lengths]),
        pad_id=0,
        load_rows=lambda: None,
    )


def answers_of_plain_loop(part):
    with torch.no_grad():
        return torch.cat([MODEL(**part.collate(np.array([i]))).logits for i in range(len(part))]).double()


rows = st.lists(st.tuples(st.integers(1, 9), st.integers(-1, CLASSES - 1)), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows.filter(lambda rows: any(label >= 0 for _, label in rows)))
@example([(9, 0)])  # one row: three of four ranks have none
@example([(3, label) for label in (0, 1, 2, 3, 0)])  # batches of four rows and one
def test_scores_do_not_depend_on_the_number_of_ranks(drawn):
    part = part_of([length for length, _ in drawn], [label for _, label in drawn])

    def work(world):
        return count_part(MODEL, part, Workers.of(world, "fp32", 12), CLASSES)

    ((confusion, loss),) = on_ranks(1, work)
    for size in (2, 3, 4):  # with fewer batches than ranks, some ranks have none
        for other, other_loss in on_ranks(size, work):
            assert torch.equal(other.counts, confusion.counts)
            assert other_loss == loss

    labelled = part.labels >= 0
    logits, gold = answers_of_plain_loop(part)[torch.from_numpy(labelled)], part.labels[labelled]
    predicted = logits.argmax(1).numpy()
    assert confusion.counts.tolist() == confusion_matrix(gold, predicted, labels=range(CLASSES)).tolist()
    assert scores(confusion)["f1"] == f1_score(gold, predicted, average="macro", zero_division=0)
    # Float32 rounding differs with the batch that a row is in.
    assert loss == pytest.approx(log_loss(gold, logits.softmax(1), labels=range(CLASSES)), rel=1e-4, abs=1e-6)


def test_one_rank_alone_scores_all_rows():
    part = part_of([3, 1, 4, 1, 5], [0, 1, 2, 3, 4])
    world = Rank(1, 4, None, None)  # nobody else takes part: a sum would fail
    alone = evaluate_part(MODEL, part, Workers.of(world, "fp32", shared=False), CLASSES)
    assert alone["rows"] == 5
    ((confusion, loss),) = on_ranks(1, lambda world: count_part(MODEL, part, Workers.of(world, "fp32"), CLASSES))
    assert alone == {**scores(confusion), "loss": loss}


def test_model_gets_its_training_mode_back():
    MODEL.train()
    part = part_of([3, 1], [0, 1])
    evaluate_part(MODEL, part, Workers.of(Rank(0, 1, Barrier(1), [None]), "fp32"), CLASSES)
    assert MODEL.training


def test_a_row_scored_twice_or_never_is_an_error():
    part = part_of([3, 1, 4, 1, 5, 2], [0, 1, 2, 3, 4, 0])

    def work(rank):
        confused = Rank(0, 2, None, None)  # both ranks believe to be the first
        confused.sum = rank.sum
        with pytest.raises(DtrainError, match=r"were not scored once: ids 10\d \([02] times\)"):
            count_part(MODEL, part, Workers.of(confused, "fp32", 4), CLASSES)

    on_ranks(2, work)


def test_no_labelled_row_is_an_error():
    part = part_of([3, 1], [-1, -1])
    with pytest.raises(ValueError, match="no labelled rows"):
        evaluate_part(MODEL, part, Workers.of(Rank(0, 1, Barrier(1), [None]), "fp32"), CLASSES)
