"""Entities and their scores against seqeval's strict mode, for any tags and any way of splitting the rows."""

import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES
from seqeval.scheme import Entities as Reference

from dtrain.data.schemes import number_tags, read_spans
from dtrain.metrics import count_entities, entities, entity_scores, per_type, spans

TYPES = ["PER", "LOC", "ORG", "公司", "x", "job", "A1", "B-C", "z", "NAME", "year"]  # not in the order of the names


def names(types):
    return ["O", *(f"{place}-{kind}" for kind in types for place in "BIES")]


@st.composite
def sequences(draw):
    """Gold and predicted tags of rows, valid or not, with runs long enough to hit; and rows cut over 1 to 4 ranks."""
    types = draw(st.integers(1, len(TYPES)))
    used = draw(st.lists(st.integers(0, types - 1), min_size=1, max_size=3, unique=True))
    piece = st.one_of(
        st.integers(0, 4 * types).map(lambda tag: [tag]),
        st.builds(
            lambda kind, inside: [1 + 4 * kind, *[2 + 4 * kind] * inside, 3 + 4 * kind],
            st.sampled_from(used),
            st.integers(0, 3),
        ),
    )
    row = st.lists(piece, max_size=6).map(lambda pieces: sum(pieces, []))
    gold = draw(st.lists(row, min_size=1, max_size=8))
    predicted = []
    for tags in gold:
        changed = list(tags)
        if tags:
            for place, tag in draw(
                st.lists(st.tuples(st.integers(0, len(tags) - 1), st.integers(0, 4 * types)), max_size=3)
            ):
                changed[place] = tag
        predicted.append(changed)
    cuts = sorted(draw(st.lists(st.integers(0, len(gold)), max_size=3)))
    bounds = [0, *cuts, len(gold)]
    return TYPES[:types], gold, predicted, list(zip(bounds, bounds[1:], strict=False))


def flat(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return np.array(sum(rows, []), dtype=np.int16), offsets


def by_seqeval(gold, predicted, types):
    named = names(types)
    return [[[named[tag] for tag in row] for row in rows] for rows in (gold, predicted)]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sequences())
def test_scores_equal_seqeval_for_any_split(drawn):
    types, gold, predicted, ranks = drawn
    counts = torch.zeros(len(types), 3, dtype=torch.int64)
    for first, last in ranks:
        tags, offsets = flat(gold[first:last])
        counts += count_entities(tags, flat(predicted[first:last])[0], offsets, len(types))
    found = entity_scores(counts, types)

    wanted = by_seqeval(gold, predicted, types)
    how = {"mode": "strict", "scheme": IOBES, "zero_division": 0}
    assert found["precision"] == precision_score(*wanted, **how)
    assert found["recall"] == recall_score(*wanted, **how)
    assert found["f1"] == f1_score(*wanted, **how)
    each = precision_recall_fscore_support(*wanted, average=None, scheme=IOBES, zero_division=0)
    if len(each[0]):
        for key, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert found[f"{key}_macro"] == score(*wanted, average="macro", **how)
        assert found["f1_weighted"] == f1_score(*wanted, average="weighted", **how)
    assert found["entities"] == each[3].sum()

    seen = Reference(wanted[0], IOBES).unique_tags | Reference(wanted[1], IOBES).unique_tags
    table = per_type(counts, types)
    assert list(table) == types
    for number, kind in enumerate(sorted(seen)):
        assert list(table[kind].values()) == [values[number] for values in each]
    assert all(set(table[kind].values()) == {0} for kind in set(types) - seen)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=6))
def test_entities_are_seqevals(rows):
    named = names(["X", "Y"])
    wanted = Reference([[named[tag] for tag in row] for row in rows], IOBES).entities
    found = entities(*flat(rows))
    assert [(r, "XY"[t], s, e) for r, t, s, e in zip(*found, strict=True)] == [
        (one.sent_id, one.tag, one.start, one.end) for row in wanted for one in row
    ]
    for row, own in zip(rows, wanted, strict=True):
        assert spans(np.array(row, dtype=np.int16)) == [("XY".index(one.tag), one.start, one.end) for one in own]


# The letters of a user's scheme, and seqeval's name of it; bmes is bioes with another letter.
SCHEMES = {
    "iob1": ("BI", IOB1),
    "bio": ("BI", IOB2),
    "bioes": ("BIES", IOBES),
    "bmes": ("BMES", IOBES),
    "bilou": ("BILU", BILOU),
}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(list(SCHEMES)))
def test_scores_equal_seqeval_in_the_users_scheme(data, scheme):
    letters, reference = SCHEMES[scheme]
    tag = st.sampled_from(["O", *(f"{letter}-{kind}" for letter in letters for kind in "XY")])
    pairs = data.draw(st.lists(st.lists(st.tuples(tag, tag | st.none()), max_size=10), min_size=1, max_size=5))
    gold = [[tag for tag, _ in row] for row in pairs]
    predicted = [[other or tag for tag, other in row] for row in pairs]

    def numbers(rows):
        each = [number_tags(read_spans(row, scheme), len(row), {"X": 0, "Y": 1}) for row in rows]
        return np.concatenate(each)

    offsets = np.cumsum([0, *map(len, gold)])
    found = entity_scores(count_entities(numbers(gold), numbers(predicted), offsets, 2), ["X", "Y"])
    wanted = [[[tag.replace("M", "I") for tag in row] for row in rows] for rows in (gold, predicted)]
    micro = precision_recall_fscore_support(*wanted, average="micro", scheme=reference, zero_division=0)
    assert [found[key] for key in ("precision", "recall", "f1", "entities")] == list(micro)
    weighted = precision_recall_fscore_support(*wanted, average="weighted", scheme=reference, zero_division=0)
    assert found["f1_weighted"] == weighted[2]


def test_many_types_are_averaged_as_seqeval_does():
    # From eight numbers on, numpy adds pairwise: the order of the types matters in the last digit.
    types = [f"t{(37 * number) % 41}" for number in range(41)]
    made = np.random.default_rng(3)
    gold = [made.integers(0, 165, 40).tolist() for _ in range(300)]
    predicted = [[tag if made.random() < 0.8 else int(made.integers(0, 165)) for tag in row] for row in gold]
    tags, offsets = flat(gold)
    found = entity_scores(count_entities(tags, flat(predicted)[0], offsets, 41), types)
    wanted = by_seqeval(gold, predicted, types)
    for average, suffix in (("macro", "_macro"), ("weighted", "_weighted")):
        assert found[f"f1{suffix}"] == f1_score(*wanted, average=average, mode="strict", scheme=IOBES)
    assert 0.3 < found["f1_macro"] < 0.9


def test_worked_by_hand():
    #        B-X E-X  O  S-Y  B-X I-X | E-X  S-X
    gold = [1, 3, 0, 8, 1, 2] + [3, 4]
    # the first is right, S-Y is taken for S-X, and one more is found at the end
    predicted = [1, 3, 0, 4, 0, 0] + [8, 4]
    counts = count_entities(np.array(gold), np.array(predicted), np.array([0, 6, 8]), 2)
    assert counts.tolist() == [[2, 3, 2], [0, 1, 1]]  # B-X I-X does not go on in the next row
    found = entity_scores(counts, ["X", "Y"])
    assert (found["precision"], found["recall"], found["f1"]) == (2 / 4, 2 / 3, pytest.approx(4 / 7))
    assert found["f1_macro"] == pytest.approx((4 / 5 + 0) / 2)
    assert found["f1_weighted"] == pytest.approx((2 * 4 / 5 + 0) / 3)
    assert per_type(counts, ["X", "Y"])["X"] == {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2}


def test_scores_of_no_entities_are_zero():
    found = entity_scores(
        count_entities(np.zeros(5, dtype=int), np.zeros(5, dtype=int), np.array([0, 5]), 2), ["X", "Y"]
    )
    assert set(found.values()) == {0}
    empty = count_entities(np.zeros(0, dtype=np.int16), np.zeros(0, dtype=np.int16), np.array([0]), 2)
    assert empty.tolist() == [[0, 0, 0], [0, 0, 0]] and empty.dtype == torch.int64


def test_ten_million_characters_take_seconds():
    made = np.random.default_rng(0)
    tags = made.integers(0, 17, 10_000_000).astype(np.int16)
    offsets = np.arange(0, 10_000_001, 50)
    before = time.perf_counter()
    counts = count_entities(tags, tags, offsets, 4)
    assert time.perf_counter() - before < 20  # about 1.5 s alone on a slow core
    assert (counts[:, 0] == counts[:, 2]).all() and counts.sum() > 3_000_000


def test_refuses_what_it_cannot_count():
    two = np.array([0, 2])
    with pytest.raises(ValueError, match="gold tag -1 is not in 0..8"):
        count_entities(np.array([0, -1]), np.array([0, 0]), two, 2)
    with pytest.raises(ValueError, match="predicted tag 9 is not in 0..8"):
        count_entities(np.array([0, 1]), np.array([0, 9]), two, 2)
    with pytest.raises(ValueError, match="must both be"):
        count_entities(np.array([0, 1]), np.array([0]), two, 2)
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2], []):
        with pytest.raises(ValueError, match="offsets must rise"):
            entities(np.array([0, 0]), np.array(offsets))
    with pytest.raises(ValueError, match="tag -1"):
        spans(np.array([-1, 0]))
    with pytest.raises(ValueError, match=r"counts \[1, 3\] must be \[2 types, 3\]"):
        entity_scores(torch.zeros(1, 3, dtype=torch.int64), ["X", "Y"])
