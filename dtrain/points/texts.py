"""Choosing the texts that are measured, and finding their foreground and background tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtrain.data import EncodedSplit
from dtrain.data.encode import Encoder
from dtrain.data.normalize import Normalizer
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError
from dtrain.points.foreground import KEY, marked, of_tokens, spread, words_of_rows
from dtrain.recipe.points import KnowledgePoints
from dtrain.tasks.prepared import PreparedTask


@dataclass(frozen=True)
class Texts:
    """The chosen texts, encoded with one tokenizer.

    Attributes:
        part: the encoded part that holds the texts.
        rows: positions of the texts in `part`, int64 [N].
        foreground, background: for each text, which of its tokens are foreground or background, bool [tokens]; each has
            at least one.
        pieces: for each text, the characters of each token; empty for special tokens.
    """

    part: EncodedSplit
    rows: np.ndarray
    foreground: list[np.ndarray]
    background: list[np.ndarray]
    pieces: list[list[str]]


def choose_texts(spec: KnowledgePoints, of: PreparedTask) -> dict[int, list[str]]:
    """The words of the texts to measure, by position in the part.

    The texts are evenly spaced among those with a foreground and a background.

    Raises:
        InputError: there are no rows of the part, or fewer than two such texts.
    """
    if spec.part not in of.data.parts:
        raise InputError(f"{KEY}.part: there are no {spec.part} rows (found: {', '.join(of.data.parts)})")
    rows, files = of.data.rows(spec.part), of.data.info["files"]
    lines = zip(rows["file"], rows["line"], strict=True)
    words = words_of_rows(spec, of.section, [(files[file], line) for file, line in lines])
    normalize = Normalizer(of.section.normalize)
    seconds = rows["text_b"] if "text_b" in rows.column_names else None
    chosen: dict[int, list[str]] = {}
    normal: dict[str, str] = {}
    for number, (text, own) in enumerate(zip(rows["text"], words, strict=True)):
        for word in own:
            if word not in normal:
                normal[word] = normalize(word)
        found = [normal[word] for word in own if normal[word]]
        marks = np.concatenate([marked(each, found) for each in (text, *([seconds[number]] if seconds else []))])
        if marks.any() and not marks.all():
            chosen[number] = found
    if len(chosen) < 2:
        where = spec.words or f"column {spec.keywords!r}"
        raise InputError(
            f"{KEY}: {len(chosen)} of {len(rows):,} {spec.part} rows hold some word of {where} and other text beside it; "
            "at least 2 are needed"
        )
    places = list(chosen)
    return {places[number]: chosen[places[number]] for number in spread(len(places), spec.rows)}


def read_texts(spec: KnowledgePoints, of: PreparedTask, tokenizer: str, chosen: dict[int, list[str]]) -> Texts:
    """The chosen texts, encoded; those of which truncation leaves no foreground or no background are left out.

    Raises:
        InputError: fewer than two texts are left, or the prepared rows were encoded with another tokenizer.
    """
    part, rows = of.data.part(spec.part, tokenizer), of.data.rows(spec.part).select(list(chosen))
    texts = [list(rows["text"])] + ([list(rows["text_b"])] if "text_b" in rows.column_names else [])
    encoder = Encoder(load_tokenizer(of.data.tokenizer_path(tokenizer)), of.section.max_length, len(texts) == 2)
    places = np.array(list(chosen), dtype=np.int64)
    kept: list[int] = []
    foreground, background, pieces = [], [], []
    for number, spans in enumerate(encoder.spans(*texts)):
        row = [text[number] for text in texts]
        marks = [marked(text, chosen[int(places[number])]) for text in row]
        front, back = of_tokens(spans, marks)
        if len(front) != part.lengths[places[number]]:
            raise InputError(
                f"{of.data.folder}: tokens of the {spec.part} rows are not those of {tokenizer}'s tokenizer"
            )
        if not front.any() or not back.any():
            continue
        kept.append(number)
        foreground.append(front)
        background.append(back)
        pieces.append([row[which][start:end] if which >= 0 else "" for which, start, end in spans])
    if len(kept) < 2:
        raise InputError(f"{KEY}: {len(kept)} texts have a foreground and a background in the tokens of {tokenizer}")
    return Texts(part, places[kept], foreground, background, pieces)
