"""Synthetic texts: words are masked or replaced by others of the same part of speech, or only an n-gram is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from random import Random

from dtrain.augment.words import Word
from dtrain.data.encode import MASK
from dtrain.recipe.data import Augment


class Lexicon:
    """The words of a corpus by part of speech, drawn in proportion to their counts."""

    def __init__(self, counts: Mapping[Word, int]) -> None:
        by_tag: dict[str, list[tuple[str, int]]] = {}
        for word, count in sorted(counts.items()):  # independent of the order in which words were counted
            if word.tag:
                by_tag.setdefault(word.tag, []).append((word.text, count))
        self._words = {
            tag: ([text for text, _ in words], list(accumulate(count for _, count in words)))
            for tag, words in by_tag.items()
        }

    @classmethod
    def of(cls, texts: Iterable[list[Word]]) -> Lexicon:
        """The lexicon of texts that are split into words."""
        return cls(Counter(word for words in texts for word in words))

    def draw(self, tag: str, random: Random) -> str | None:
        """A random word of this part of speech, or None where there is none."""
        if tag not in self._words:
            return None
        words, cumulative = self._words[tag]
        return random.choices(words, cum_weights=cumulative)[0]


def rewrite(words: list[Word], spec: Augment, lexicon: Lexicon, random: Random) -> list[str]:
    """The words of a synthetic text (Tang et al. 2019, section 3.3).

    Each word is masked with probability `p_mask`, or replaced by one of its part of speech with probability `p_pos`.
    Then, with probability `p_ng`, only an n-gram of consecutive words is kept, with n drawn from 1 .. `max_ngram`.
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
