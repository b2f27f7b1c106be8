"""Normalisation of text: the same for training rows, transfer rows and new text to predict."""

from __future__ import annotations

import itertools
import re
import unicodedata
from functools import cache

import opencc

from dtrain.recipe.data import Normalization

# Full-width ASCII forms, the ideographic space, and the full-width signs that have a half-width twin.
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
HALF_WIDTH |= dict(zip(range(0xFFE0, 0xFFE7), map(ord, "¢£¬¯¦¥₩"), strict=True))
SPACES = re.compile(r"\s+")
DROPPED = "\0"  # stands for a character that normalisation drops, where positions count


class Normalizer:
    """Calls as `normalizer(text) -> str`; the steps and their order are those of the recipe's section."""

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
    """Calls as `normalizer(text) -> str` of the same length: the same steps, each character for itself.

    A character that would vanish becomes DROPPED, every white space one blank; where a step would make several
    characters of one, the first is kept. Traditional characters are simplified without regard to their neighbours.
    """

    def __init__(self, spec: Normalization) -> None:
        self.table = _CharacterTable(spec)

    def __call__(self, text: str) -> str:
        return text.translate(self.table)


class _CharacterTable(dict[int, str]):
    """Code point -> normalised character, worked out when it is first seen."""

    def __init__(self, spec: Normalization) -> None:
        super().__init__()
        self.spec = spec
        # White space is handled here: a Normalizer strips it from the ends, and a single blank would vanish.
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
    # One converter for each process, kept outside of Normalizer because it cannot be pickled for worker processes.
    return opencc.OpenCC("t2s")


# Where Unicode has control and format characters: planes 0, 1 and the tags of plane 14. The other 15 hold ideographs,
# private characters or nothing, and a look at each of them would take every process a fifth of a second.
_PLANES = (range(0x20000), range(0xE0000, 0xE1000))


@cache
def _invisible() -> tuple[int, ...]:
    """Control and format characters (zero-width, direction, soft hyphen, byte-order mark) and variation selectors.

    Controls that are white space (tab, line feed, ...) are left to the white-space step.
    """
    hidden = [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
    for code in itertools.chain(*_PLANES):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf") and not character.isspace():
            hidden.append(code)
    return tuple(hidden)
