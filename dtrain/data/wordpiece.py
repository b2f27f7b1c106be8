"""A WordPiece vocabulary from word counts: byte-pair merges, with ties broken alphabetically.

The trainer of `tokenizers` makes the same merges, but breaks ties by the order of a hash map, so that two runs on the
same text can give different vocabularies (seen with version 0.23.3, also with one thread).
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping

MARK = "##"  # prefix of a piece that continues a word
Pair = tuple[str, str]


def train_wordpiece(words: Mapping[str, int], size: int, min_count: int = 2) -> list[str]:
    """A vocabulary for `words` (word -> count): single characters by count, then merged pieces in order of the merges.

    Characters that occur `min_count` times are kept, up to three quarters of `size`: without a mark, and with one if
    they occur inside a word. Then the most frequent pair of adjacent pieces is merged, until there are `size` pieces,
    or no pair occurs `min_count` times.
    """
    characters = Counter[str]()
    for word, count in words.items():
        for piece in [*word, *_spell(word)[1:]]:
            characters[piece] += count
    kept = sorted((p for p in characters if characters[p] >= min_count), key=lambda p: (-characters[p], p))
    pieces = kept[: max(1, size * 3 // 4)]
    known = set(pieces)
    # A word with a character outside of the vocabulary becomes [UNK] as a whole, so its pieces are not merged.
    spellings = [
        (spelled, words[w]) for w in sorted(words) if known.issuperset(spelled := _spell(w)) and len(spelled) > 1
    ]

    counts: dict[Pair, int] = defaultdict(int)
    holders: dict[Pair, set[int]] = defaultdict(set)
    for index, (spelled, count) in enumerate(spellings):
        for pair in zip(spelled, spelled[1:], strict=False):
            counts[pair] += count
            holders[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap and len(pieces) < size:
        negative, pair = heapq.heappop(heap)
        if -negative != counts[pair]:
            continue  # an outdated count; the pair was pushed again with its current one
        if -negative < min_count:
            break
        merged = pair[0] + pair[1].removeprefix(MARK)
        if merged not in known:
            known.add(merged)
            pieces.append(merged)
        changed: set[Pair] = set()
        for index in holders.pop(pair):
            spelled, count = spellings[index]
            after = _merge(spelled, pair, merged)
            for old in zip(spelled, spelled[1:], strict=False):
                counts[old] -= count
                changed.add(old)
            for new in zip(after, after[1:], strict=False):
                counts[new] += count
                holders[new].add(index)
                changed.add(new)
            spellings[index] = (after, count)
        counts[pair] = 0
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
    return pieces


def _spell(word: str) -> list[str]:
    return [word[0], *(MARK + character for character in word[1:])]


def _merge(spelled: list[str], pair: Pair, merged: str) -> list[str]:
    """The pieces of a word after every occurrence of `pair`, from the left, was replaced by `merged`."""
    after: list[str] = []
    position = 0
    while position < len(spelled):
        if tuple(spelled[position : position + 2]) == pair:
            after.append(merged)
            position += 2
        else:
            after.append(spelled[position])
            position += 1
    return after
