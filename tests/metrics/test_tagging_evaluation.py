"""Taggers scored over ranks: every row once, whole documents, and the same last digit for any number of ranks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOBES

from dtrain.data import EncodedSplit
from dtrain.errors import DtrainError
from dtrain.models import build
from dtrain.recipe.architectures.taggers import TaggerSpec
from dtrain.tasks.tagging.task import Tagging, tag_part
from dtrain.training.workers import Workers
from tests.metrics.test_evaluation import Rank, on_ranks

TYPES = ["LOC", "PER"]
TAGS = ["O", *(f"{letter}-{kind}" for kind in TYPES for letter in "BIES")]


def tagger():
    torch.manual_seed(1)
    spec = TaggerSpec(type="tagger", embedding=6, lstm=4, dropout=0.0)
    model = build(spec, vocabulary=12, labels=TAGS, pad_id=0)
    with torch.no_grad():
        for parameter in model.parameters():  # far from indifferent, so that entities come out
            parameter.mul_(4)
    return model.eval()


MODEL = tagger()


class Gathering(Rank):
    def gather_objects(self, value):
        self.slots[self.rank] = value
        self.barrier.wait(timeout=30)
        found = list(self.slots)
        self.barrier.wait(timeout=30)
        return found


def ranks(size, work):
    return on_ranks(size, lambda rank: work(Gathering(rank.rank, rank.size, rank.barrier, rank.slots)))


def part_of(rows):
    """Rows of (length, labelled, continues the document before)."""
    lengths = [length for length, _, _ in rows]
    random = np.random.default_rng(sum(lengths))
    labelled = []
    documents = []
    for i, (_, has, continues) in enumerate(rows):
        joins = continues and i > 0
        documents.append(documents[-1] if joins else i)
        labelled.append(labelled[-1] if joins else has)  # a document is labelled as a whole
    tags = [
        random.integers(0, len(TAGS), n) if has else np.full(n, -1) for n, has in zip(lengths, labelled, strict=True)
    ]
    texts = ["".join(map(chr, random.integers(65, 90, n))) for n in lengths]
    return EncodedSplit(
        ids=np.arange(len(rows)) + 50,
        labels=np.where(labelled, 0, -1),
        tokens=random.integers(1, 12, sum(lengths)).astype(np.int32),
        types=None,
        offsets=np.cumsum([0, *lengths]),
        pad_id=0,
        load_rows=lambda: [{"text": text} for text in texts],
        tags=np.concatenate(tags).astype(np.int16),
        documents=np.array(documents) * 3,
        starts=np.zeros(len(rows), dtype=np.int32),
    )


def sequences(part):
    """Gold and best tags of whole documents, by a plain loop over rows."""
    gold, best = {}, {}
    for row in np.flatnonzero(part.labels >= 0):
        with torch.no_grad():
            output = MODEL(**part.collate(np.array([row])))
            tags = MODEL.decode(output.logits, output.mask)[0]
        document = part.documents[row]
        gold.setdefault(document, []).extend(TAGS[t] for t in part.collate_tags(np.array([row]))[0])
        best.setdefault(document, []).extend(TAGS[t] for t in tags)
    return list(gold.values()), list(best.values())


drawn = st.lists(st.tuples(st.integers(1, 7), st.booleans(), st.booleans()), min_size=1, max_size=14)


# seqeval's own, where tags form no entity
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered in scalar divide")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn.filter(lambda rows: rows[0][1]))
@example([(5, True, False)])  # one row: three of four ranks have none
@example([(3, True, False)] * 3 + [(3, True, True)])  # batches of three rows and one, of one document
def test_scores_equal_seqeval_for_any_number_of_ranks(rows):
    part = part_of(rows)

    def work(world):
        # Each rank has a model of its own: moving an LSTM to a device is not for two threads at once.
        return tag_part(copy.deepcopy(MODEL), part, Workers.of(world, "fp32", 10), 2)

    (alone,) = ranks(1, work)
    for size in (2, 3, 4):  # with fewer batches than ranks, some ranks have none
        for other in ranks(size, work):
            assert torch.equal(other.entities, alone.entities)
            assert (other.loss, other.correct, other.rows) == (alone.loss, alone.correct, alone.rows)
            assert [(row, tags.tolist()) for row, tags in other.examples] == [
                (row, tags.tolist()) for row, tags in alone.examples
            ]
    gold, best = sequences(part)
    ours = Tagging(TAGS, TYPES).record(MODEL, part, Workers.of(Gathering(0, 1, None, None), "fp32", 10, shared=False))
    if any(tag != "O" for tags in gold + best for tag in tags):  # else seqeval has nothing to average
        theirs = classification_report(gold, best, mode="strict", scheme=IOBES, output_dict=True, zero_division=0)
        for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert ours["scores"][name] == theirs["micro avg"][key]
            for kind, scores in theirs.items():
                if kind in TYPES:
                    assert ours["per_type"][kind][name] == scores[key]
    right = sum(g == b for gs, bs in zip(gold, best, strict=True) for g, b in zip(gs, bs, strict=True))
    assert ours["scores"]["accuracy"] == right / sum(map(len, gold))
    assert ours["scores"]["characters"] == sum(map(len, gold))


def test_loss_is_the_mean_over_characters():
    part = part_of([(3, True, False), (5, True, False), (2, False, False)])
    tagged = tag_part(MODEL, part, Workers.of(Gathering(0, 1, None, None), "fp32", shared=False), 2)
    with torch.no_grad():
        each = [
            MODEL(**part.collate(np.array([row])), tags=part.collate_tags(np.array([row]))).nll.item() for row in (0, 1)
        ]
    assert tagged.loss == pytest.approx(sum(each) / 8, rel=1e-5)
    assert tagged.rows == 2 and tagged.characters == 8


def test_a_row_tagged_twice_or_never_is_an_error():
    part = part_of([(n, True, False) for n in (3, 1, 4, 1, 5, 2)])

    def work(rank):
        confused = Gathering(0, 2, None, None)  # both ranks believe to be the first
        confused.sum, confused.gather_objects = rank.sum, rank.gather_objects
        with pytest.raises(DtrainError, match=r"were not scored once: ids 5\d \([02] times\)"):
            tag_part(copy.deepcopy(MODEL), part, Workers.of(confused, "fp32", 4), 2)

    ranks(2, work)
