"""Rows whose targets a teacher generated: its best sequences, or the candidates that are nearest to the references.

These are sequence-level distillation and sequence-level interpolation (Kim and Rush 2016, 1606.07947, sections 3.2 and
3.3).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np

from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.encode import Encoder
from dtrain.data.written import load_writer
from dtrain.knowledge.reader import StoreReader
from dtrain.metrics.translation import nearest
from dtrain.models.decoding import NO_TOKEN
from dtrain.recipe.sides import side_of, vocabulary_of

INTERPOLATED = "interpolated"


def taught_rows(kind: str, data: PreparedData, tokenizer: str, teacher: str, store: StoreReader) -> EncodedSplit:
    """The rows of a teacher's store, encoded with `tokenizer`, with its sequences as targets.

    Args:
        kind: `sequences`: the best sequence of every training and transfer row; `interpolated`: for each training row
            the candidate with the highest smoothed sentence-BLEU against the reference, over tokens of the teacher.
        tokenizer: name of the student's tokenizer.
        teacher: name of the tokenizer of the sequences; if its target vocabulary is not that of `tokenizer`, the
            sequences are decoded and encoded again.
        store: the teacher's knowledge store.

    Raises:
        StoreError: a row has no sequences there.
    """
    there = data.parts_read(tokenizer)
    names = [name for name in ("train", "transfer") if name in there and (kind != INTERPOLATED or name == "train")]
    rows = EncodedSplit.concat([data.part(name, tokenizer) for name in names])
    own, theirs = side_of(tokenizer), side_of(teacher)
    if own != theirs:  # the teacher has sequences only for rows that have both sides
        rows = rows.take(np.flatnonzero(store.holds(rows.ids)))
    tokens, _ = store.candidates(rows.ids)
    chosen = np.zeros(len(rows), dtype=np.int64)
    if kind == INTERPOLATED:
        gold = EncodedSplit.concat([data.part(name, teacher) for name in names])
        gold = gold if own == theirs else gold.take(np.flatnonzero(np.isin(gold.ids, rows.ids)))
        references = gold.collate_targets(np.arange(len(gold))).numpy()
        chosen = np.array([_nearest(own, reference) for own, reference in zip(tokens, references, strict=True)])
    best = tokens[np.arange(len(rows)), chosen]
    written = [tokens[tokens != NO_TOKEN] for tokens in best]
    if vocabulary_of(teacher) != vocabulary_of(tokenizer):
        written = _read_again(written, data, tokenizer, teacher)
    return replace(
        rows,
        labels=np.zeros(len(rows), dtype=np.int64),
        targets=np.fromiter(chain.from_iterable(written), dtype=np.int32),
        target_offsets=np.cumsum([0, *map(len, written)]),
        known_prefix=np.zeros(len(rows), dtype=bool),
    )


def _nearest(candidates: np.ndarray, reference: np.ndarray) -> int:
    words = [" ".join(map(str, own[own != NO_TOKEN])) for own in (*candidates, reference)]
    return nearest(words[:-1], words[-1])


def _read_again(written: list[np.ndarray], data: PreparedData, tokenizer: str, teacher: str) -> list[np.ndarray]:
    """Sequences of tokens of the teacher's tokenizer, decoded and encoded with the student's."""
    theirs, own = (load_writer(data.tokenizer_path(name)) for name in (teacher, tokenizer))
    encoder = Encoder(own, data.part(data.parts_read(tokenizer)[0], tokenizer).max_length, pairs=False)
    texts = theirs.batch_decode([tokens.tolist() for tokens in written], skip_special_tokens=True)
    return [np.array(ids, dtype=np.int32) for ids in encoder([text.strip() for text in texts]).ids]
