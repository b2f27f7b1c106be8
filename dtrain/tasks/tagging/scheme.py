"""Finding the tagging scheme of a corpus: the one in which the fewest tags are lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dtrain.data.conll import Sentence
from dtrain.data.problems import shortened
from dtrain.data.schemes import OUTSIDE, SCHEMES, Span, outside_entities, parse_tag, read_spans
from dtrain.errors import InputError

ORDER = ("bio", "bioes", "bmes", "bilou", "iob1")  # of schemes that lose the same number of tags, the first is taken
LOST = 0.1  # share of the tags other than O that may be read as O where the recipe names no scheme


def read_among_strays(tags: Sequence[str], scheme: str) -> tuple[list[Span], list[int]]:
    """The entities of a sentence in which some (stray) tags may be of another scheme, and the positions of these tags.

    A stray tag is part of no entity, and neither are the tags that it continues: `B-X E-X` in `bio` is not an entity of
    one token.

    Raises:
        ValueError: a tag is malformed.
    """
    parsed = [parse_tag(tag) for tag in tags]
    strays = [i for i, (prefix, _) in enumerate(parsed) if prefix != OUTSIDE and prefix not in SCHEMES[scheme]]
    if not strays:
        return read_spans(tags, scheme), []
    spans = read_spans([OUTSIDE if i in strays else tag for i, tag in enumerate(tags)], scheme)
    stray = {(i, parsed[i][1]) for i in strays}

    def whole(span: Span) -> bool:
        opened, closed = parsed[span.start][0] != "I", parsed[span.end - 1][0] in "ESLU"
        before, after = (span.start - 1, span.type) in stray, (span.end, span.type) in stray
        return (opened or not before) and (closed or not after)

    return [span for span in spans if whole(span)], strays


def lost_tags(tags: Sequence[str], scheme: str) -> list[int]:
    """Positions whose tag is not O but belongs to no entity."""
    return outside_entities(tags, read_among_strays(tags, scheme)[0])


@dataclass
class TagFile:
    """The tags of one file, and for each scheme that was tried how many of them it loses."""

    name: str
    sentences: Sequence[Sentence]
    lost: dict[str, int] = field(default_factory=dict)

    def tags(self) -> Iterator[list[str]]:
        """The tags of each sentence that has some other than O; sentences with malformed tags are skipped."""
        for sentence in self.sentences:
            if sentence.tags and any(tag != OUTSIDE for tag in sentence.tags) and _well_formed(sentence.tags):
                yield sentence.tags

    def count_lost(self, scheme: str) -> int:
        if scheme not in self.lost:
            self.lost[scheme] = sum(len(lost_tags(tags, scheme)) for tags in self.tags())
        return self.lost[scheme]

    def first_lost(self, scheme: str) -> str:
        """The first tag that a scheme loses, with its place; tags of other schemes come before all others."""
        places = [
            (i not in read_among_strays(sentence.tags, scheme)[1], sentence.line + i, sentence.tags[i])
            for sentence in self.sentences
            if sentence.tags and _well_formed(sentence.tags)
            for i in lost_tags(sentence.tags, scheme)
        ]
        _, line, tag = min(places)
        return f"{self.name}:{line}: {shortened(tag)!r}"


def _well_formed(tags: Sequence[str]) -> bool:
    try:
        for tag in set(tags):
            parse_tag(tag)
    except ValueError:
        return False
    return True


def find_scheme(files: Sequence[TagFile]) -> str:
    """The scheme of all files.

    Raises:
        InputError: a file is in another scheme than the rest, or more than a tenth (`LOST`) of the tags would be lost.
    """
    counts = [Counter(tag for tags in file.tags() for tag in tags if tag != OUTSIDE) for file in files]
    totals = [count.total() for count in counts]
    scheme = _best(files, sum(counts, Counter()))
    for file, count, total in zip(files, counts, totals, strict=True):
        if file.count_lost(scheme) > LOST * total:
            own = _best([file], count)
            if file.count_lost(own) < file.count_lost(scheme) and len(files) > 1:
                shares = {
                    other.name: other.count_lost(scheme) / max(n, 1) for other, n in zip(files, totals, strict=True)
                }
                raise InputError(
                    f"data.scheme: {file.name} is in scheme {own}, but {min(shares, key=lambda name: shares[name])} is in "
                    f"{scheme}, in which {file.first_lost(scheme)} is part of no complete entity; convert one of the files"
                )
    lost = sum(file.count_lost(scheme) for file in files)
    if lost <= LOST * sum(totals):
        return scheme
    prefixes = {parse_tag(tag)[0] for count in counts for tag in count}
    if not any(prefixes <= set(letters) for letters in SCHEMES.values()):
        places = ", ".join(_first_place(prefix, files) for prefix in sorted(prefixes))
        schemes = "; ".join(f"{name} {' '.join([OUTSIDE, *letters])}" for name, letters in SCHEMES.items())
        raise InputError(f"data.scheme: the tags are of no one scheme: found {places} (allowed: {schemes})")
    first = next(file for file in files if file.count_lost(scheme)).first_lost(scheme)
    raise InputError(
        f"data.scheme: {lost:,} of {sum(totals):,} tags are part of no complete entity in {scheme}, the scheme that fits best, and "
        f"would be read as O ({first}); correct the tags, or set data.scheme to read them so"
    )


def _best(files: Sequence[TagFile], counts: Counter[str]) -> str:
    """The scheme that loses the fewest tags.

    The counts of tags give a lower bound for each scheme: tags of other schemes are lost, and in schemes that mark ends
    so are beginnings without an end. Schemes that cannot be the best by this bound are not tried: most corpora are read
    twice, not five times.
    """
    prefixes = Counter[str]()
    for tag, count in counts.items():
        prefixes[parse_tag(tag)[0]] += count

    def least(scheme: str) -> int:
        letters = {meaning: letter for letter, meaning in SCHEMES[scheme].items()}
        strays = sum(count for prefix, count in prefixes.items() if prefix not in SCHEMES[scheme])
        return strays + (abs(prefixes[letters["B"]] - prefixes[letters["E"]]) if "E" in letters else 0)

    best: tuple[int, int] | None = None
    for place in sorted(range(len(ORDER)), key=lambda place: (least(ORDER[place]), place)):
        if best is None or (least(ORDER[place]), place) < best:
            lost = sum(file.count_lost(ORDER[place]) for file in files)
            best = min(best or (lost, place), (lost, place))
    assert best is not None
    return ORDER[best[1]]


def _first_place(prefix: str, files: Sequence[TagFile]) -> str:
    return next(
        f"{tag!r} ({file.name}:{sentence.line + i})"
        for file in files
        for sentence in file.sentences
        for i, tag in enumerate(sentence.tags or ())
        if tag.startswith(f"{prefix}-")
    )
