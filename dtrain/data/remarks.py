"""Remarks on well-formed rows: signs of a possible mistake that only the user can judge."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np

from dtrain.data.files import PARTS, TABLES, Source, resolve_path
from dtrain.data.problems import Problems, shortened
from dtrain.data.sources import Rows

SHARED = 0.1  # share of a part's rows above which texts that are also in another part are reported
CONTRADICTED = 0.01  # share of the training rows above which texts with several labels are reported


def remark_on_sources(sources: list[Source], problems: Problems) -> None:
    """Add a remark for each file that is used for two parts, unless these are train and transfer, or for two sides.

    Scores on rows that a model was trained on say nothing about new rows. A file that is given for two sides of the same
    rows makes each line a pair with itself.
    """
    parts: dict[str, list[str]] = {}
    for source in sources:
        if source.part in PARTS:
            parts.setdefault(str(resolve_path(source.name).resolve()), []).append(source.part)
    for source in sources:
        used = parts.pop(str(resolve_path(source.name).resolve()), [])
        if len(set(used)) > 1 and set(used) != {"train", "transfer"}:
            problems.remark(f"{source.name}: is used for both {' and '.join(f'data.{part}' for part in used)}")
    for source in sources:
        sides: dict[Path, list[str]] = {}
        for side, name in source.layout.beside if source.layout is not None else ():
            sides.setdefault(resolve_path(name).resolve(), []).append(side)
        for same in sides.values():
            if len(same) > 1:
                problems.remark(
                    f"data.{source.part}: {source.name} is the file of the sides {' and '.join(same)}: each line is read as a "
                    "pair with itself; name a file of its own for each side, unless both are to read the same text"
                )


def remark_on_rows(parts: dict[str, Rows], problems: Problems) -> None:
    """Add a remark for each two of the parts train, valid and test that share all or many of their texts."""
    compared = [part for part in ("train", "valid", "test") if len(parts.get(part, ()))]
    texts = {part: parts[part].hashes() for part in compared} if len(compared) > 1 else {}
    known = {part: np.unique(found) for part, found in texts.items()}
    for part, other in combinations(texts, 2):
        shared = int(np.isin(texts[other], known[part]).sum())
        if np.array_equal(known[part], known[other]):
            problems.remark(f"data.{part} and data.{other} hold the same texts")
        elif shared > SHARED * len(texts[other]):
            problems.remark(
                f"data.{other}: {shared:,} of {len(texts[other]):,} rows have a text that is also in data.{part}"
            )


def remark_on_labels(train: Rows, sources: list[Source], files: list[str], header: bool, problems: Problems) -> None:
    """Add remarks on training rows that seem to be headers, and on texts that occur with several labels.

    Args:
        files: names of the files that `train.file` counts in.
        header: whether tables were read as having a header.
    """
    tables = {files.index(source.name) for source in sources if source.format in TABLES}
    if not header:
        counts = train.label.counts()
        first_lines = np.flatnonzero((np.array(train.line) == 1) & np.isin(np.array(train.file), list(tables)))
        firsts = Counter(train.label[row] for row in first_lines.tolist())
        for name in [label for label, count in firsts.items() if label and count == counts[label]]:
            row = train.label.index(name)
            problems.remark(
                f"{files[train.file[row]]}:1: no other row has the label {shortened(name)!r}, and data.header is false: "
                "if this line is a header, set data.header: true and data.columns to its names"
            )
    told, row, earlier = _contradicted(train.hashes(), train.label.codes)
    if told > CONTRADICTED * len(train):
        problems.remark(
            f"{files[train.file[row]]}:{train.line[row]}: {told:,} of {len(train):,} training rows have a text that also occurs "
            f"with another label; here {shortened(train.text[row])!r} has the label {train.label[row]!r}, earlier "
            f"{train.label[earlier]!r}"
        )


def _contradicted(texts: np.ndarray, labels: np.ndarray) -> tuple[int, int, int]:
    """Rows whose text occurs with several labels.

    Args:
        texts: a hash of each row's text, uint64 [N].
        labels: the number of each row's label, integer [N].

    Returns:
        The number of such rows; the first row whose label differs from that of the first row with its text; and the
        latter row. Three zeros where there are no such rows.
    """
    order = np.argsort(texts, kind="stable")  # among rows with the same text, the first comes first
    texts = texts[order]
    begins = np.flatnonzero(np.concatenate([np.ones(len(texts[:1]), bool), texts[1:] != texts[:-1]]))
    del texts
    sizes = np.diff(begins, append=len(order))
    first = np.repeat(order[begins], sizes)
    other = labels[order] != labels[first]
    if not other.any():
        return 0, 0, 0
    several = np.logical_or.reduceat(other, begins)
    row = int(order[other].min())
    return int(sizes[several].sum()), row, int(first[order == row][0])
