"""What is worth knowing about rows that are well-formed: signs of a slip that only the user can judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dtrain.data.files import PARTS, TABLES, Source, resolve_path
from dtrain.data.problems import Problems, shortened
from dtrain.data.sources import Rows

SHARED = 0.1  # share of a part's rows from which on texts that are in another part are told
CONTRADICTED = 0.01  # share of the training rows from which on texts with several labels are told


def remark_on_sources(sources: list[Source], problems: Problems) -> None:
    """One file in two parts: scores of the one say nothing about the other."""
    parts: dict[str, list[str]] = {}
    for source in sources:
        if source.part in PARTS:
            parts.setdefault(str(resolve_path(source.name).resolve()), []).append(source.part)
    for source in sources:
        used = parts.pop(str(resolve_path(source.name).resolve()), [])
        if len(set(used)) > 1 and set(used) != {"train", "transfer"}:
            problems.remark(f"{source.name}: is used for both {' and '.join(f'data.{part}' for part in used)}")


def remark_on_rows(parts: dict[str, Rows], problems: Problems) -> None:
    """Parts of different files with the same texts, or with many of them, in any order."""
    texts = {part: list(_texts(rows)) for part, rows in parts.items() if part != "transfer"}
    for part, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        if not texts.get(part) or not texts.get(other):
            continue
        known = set(texts[part])
        shared = sum(text in known for text in texts[other])
        if known == set(texts[other]):
            problems.remark(f"data.{part} and data.{other} hold the same texts")
        elif shared > SHARED * len(texts[other]):
            problems.remark(
                f"data.{other}: {shared:,} of {len(texts[other]):,} rows have a text that is also in data.{part}"
            )


def _texts(rows: Rows) -> Iterator[tuple[str, ...]]:
    return zip(rows.text, rows.text_b, strict=True) if rows.text_b else zip(rows.text, strict=True)


def remark_on_labels(train: Rows, sources: list[Source], files: list[str], header: bool, problems: Problems) -> None:
    """Headers that were read as rows, and texts with several labels, among the training rows."""
    tables = {files.index(source.name) for source in sources if source.format in TABLES}
    if not header:
        counts = Counter(train.label)
        firsts = Counter(
            label
            for label, line, file in zip(train.label, train.line, train.file, strict=True)
            if line == 1 and file in tables
        )
        for name in [label for label, count in firsts.items() if label and count == counts[label]]:
            row = train.label.index(name)
            problems.remark(
                f"{files[train.file[row]]}:1: no other row has the label {shortened(name)!r}, and data.header is false: "
                "if this line is a header, set data.header: true and data.columns to its names"
            )
    labels: dict[tuple[str, str], str | None] = {}
    rows_of = Counter[tuple[str, str]]()
    contradictions: dict[tuple[str, str], int] = {}  # text -> its first row with another label than before
    for row, label in enumerate(train.label):
        key = (train.text[row], train.text_b[row] if train.text_b else "")
        rows_of[key] += 1
        if labels.setdefault(key, label) != label:
            contradictions.setdefault(key, row)
    told = sum(rows_of[key] for key in contradictions)
    if told > CONTRADICTED * len(train):
        key, row = next(iter(contradictions.items()))
        problems.remark(
            f"{files[train.file[row]]}:{train.line[row]}: {told:,} of {len(train):,} training rows have a text that also occurs "
            f"with another label; here {shortened(key[0])!r} has the label {train.label[row]!r}, earlier {labels[key]!r}"
        )
