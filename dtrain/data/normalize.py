"""Normalisation of text, the same for training rows, transfer rows and new texts."""

from __future__ import annotations

import itertools
import re
import unicodedata
from functools import cache

import opencc

from dtrain.recipe.data import Normalization

# Full-width ASCII forms, the ideographic space, and the full-width signs that have a half-width form.
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
HALF_WIDTH |= dict(zip(range(0xFFE0, 0xFFE7), map(ord, "¢£¬¯¦¥₩"), strict=True))
SPACES = re.compile(r"\s+")
DROPPED = "\0"  # takes the place of a dropped character where positions must not change


class Normalizer:
    """Called as `normalizer(text) -> str`.

    The steps, each of them optional, are in this order: simplified characters (OpenCC's t2s), half-width forms and
    removal of invisible characters, white space, lower case.
    """

    def __init__(self, spec: Normalization) -> None:
        self.spec = spec
        table: dict[int, int | None] = {}
        if spec.half_width:
            table |= HALF_WIDTH
        if spec.control:
            table |= dict.fromkeys(_invisible())
        self.table = table

    def __call__(self, text: str) -> str:
        spec = self.spec
        if spec.simplify:
            text = _converter().convert(text)
        if self.table:
            text = text.translate(self.table)
        if spec.whitespace:
            text = SPACES.sub(" ", text).strip()
        return text.lower() if spec.lower else text


class CharacterNormalizer:
    """Called as `normalizer(text) -> str`: the steps of `Normalizer` applied to each character alone.

    The result has the length of the text. A character that would be removed becomes DROPPED, each white-space character
    becomes a space, and where a step makes several characters of one, only the first is kept. Traditional characters
    are simplified without regard to their neighbours.
    """

    def __init__(self, spec: Normalization) -> None:
        self.table = _CharacterTable(spec)

    def __call__(self, text: str) -> str:
        return text.translate(self.table)


class _CharacterTable(dict[int, str]):
    """Code point -> normalised character, computed when it is first looked up."""

    def __init__(self, spec: Normalization) -> None:
        super().__init__()
        self.spec = spec
        # `__missing__` handles white space: a Normalizer strips it from the ends, which would remove a single space.
        self.steps = Normalizer(spec.model_copy(update={"whitespace": False}))

    def __missing__(self, code: int) -> str:
        character = self.steps(chr(code))[:1] or DROPPED
        if self.spec.whitespace and character.isspace():
            character = " "
        self[code] = character
        return character

    def __reduce__(self) -> tuple[type[_CharacterTable], tuple[Normalization]]:
        return _CharacterTable, (self.spec,)


@cache
def _converter() -> opencc.OpenCC:
    # One converter per process; it is no attribute of Normalizer because it cannot be pickled for worker processes.
    return opencc.OpenCC("t2s")


# Code points among which Unicode has control and format characters: planes 0 and 1, and the tags of plane 14. The
# others are ideographs, private or unassigned, and checking them would take every process a fifth of a second.
_PLANES = (range(0x20000), range(0xE0000, 0xE1000))


@cache
def _invisible() -> tuple[int, ...]:
    """Code points of control and format characters (zero-width, direction, soft hyphen, ...) and variation selectors.

    Control characters that are white space (tab, line feed, ...) are left to the white-space step.
    """
    hidden = [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
    for code in itertools.chain(*_PLANES):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf") and not character.isspace():
            hidden.append(code)
    return tuple(hidden)
