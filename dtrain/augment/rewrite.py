"""One text into another: words masked, replaced by others of their part of speech, or an n-gram alone kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from random import Random

from dtrain.augment.words import Word
from dtrain.data.encode import MASK
from dtrain.recipe.data import Augment


class Lexicon:
    """Words of a corpus by part of speech, drawn in proportion to how often they come."""

    def __init__(self, counts: Mapping[Word, int]) -> None:
        by_tag: dict[str, list[tuple[str, int]]] = {}
        for word, count in sorted(counts.items()):  # whatever order they were counted in
            if word.tag:
                by_tag.setdefault(word.tag, []).append((word.text, count))
        self._words = {
            tag: ([text for text, _ in words], list(accumulate(count for _, count in words)))
            for tag, words in by_tag.items()
        }

    @classmethod
    def of(cls, texts: Iterable[list[Word]]) -> Lexicon:
        """Of texts cut into words."""
        return cls(Counter(word for words in texts for word in words))

    def draw(self, tag: str, random: Random) -> str | None:
        """A word of this part of speech, or None where there is none."""
        if tag not in self._words:
            return None
        words, cumulative = self._words[tag]
        return random.choices(words, cum_weights=cumulative)[0]


def rewrite(words: list[Word], spec: Augment, lexicon: Lexicon, random: Random) -> list[str]:
    """A made-up text (Tang et al. 2019, section 3.3): each word is masked with `p_mask`, else replaced with `p_pos`;

    then, with `p_ng`, only n words in a row are kept, n drawn from 1 .. `max_ngram`.
    """
    assert spec.p_pos is not None  # filled by the schema
    made = []
    for word in words:
        chance = random.random()
        replaced = None
        if chance < spec.p_mask:
            replaced = MASK
        elif chance < spec.p_mask + spec.p_pos:
            replaced = lexicon.draw(word.tag, random)
        made.append(word.text if replaced is None else replaced)
    if random.random() < spec.p_ng and made:
        n = min(random.randint(1, spec.max_ngram), len(made))
        start = random.randrange(len(made) - n + 1)
        made = made[start : start + n]
    return made
