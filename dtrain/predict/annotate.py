"""Annotating texts with the entities of a tagger, for a teacher that reads annotations with the text.

texts -> the tagger's entities -> the same texts with these entities as annotations
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dtrain.data import EncodedSplit
from dtrain.data.annotations import strangers
from dtrain.data.schemes import Span, number_tags
from dtrain.errors import InputError
from dtrain.models import load
from dtrain.predict.blocks import blocks_of, find_answers
from dtrain.predict.folder import read_folder
from dtrain.predict.texts import prepared_texts
from dtrain.tasks.answers import Texts
from dtrain.training.workers import Workers


class Annotator:
    """Annotates texts with the entities that a tagger finds, over all ranks of `workers`; every rank gets all of them.

    Args:
        place: the tagger's model folder.
        types: the types of annotations that the teacher knows.
        workers: the ranks that share the texts.

    Raises:
        InputError: the tagger finds entities of other types.
    """

    def __init__(self, place: Path, types: list[str], workers: Workers) -> None:
        known = read_folder(place)
        self.types, self.workers, self.answers = types, workers, known.answers
        self.model = load(place)
        problem = strangers(place.name, self.answers.types(self.model), types)
        if problem:
            raise InputError(problem)
        self._read = self.answers.reader(place, known.normalize, known.max_length)

    def __call__(self, texts: Texts) -> Texts:
        """The same texts, with the tagger's entities as annotations."""
        plain = blocks_of(replace(texts, privileged=[]))
        found = find_answers(self.answers, self.model, self._read, plain, self.workers)
        return replace(
            texts, privileged=[[Span(e["start"], e["end"], e["type"]) for e in entities] for entities in found]
        )

    def rows(self, part: EncodedSplit) -> EncodedSplit:
        """Prepared rows (pieces of documents), with the tagger's entities in place of their annotations."""
        texts = self(prepared_texts(part))
        numbers = {name: number for number, name in enumerate(self.types)}
        tags: Iterator[np.ndarray] = (
            number_tags(spans, len(text), numbers) for text, spans in zip(texts.text, texts.privileged, strict=True)
        )
        return replace(part, privileged=np.concatenate([np.zeros(0, dtype=np.int16), *tags]))
