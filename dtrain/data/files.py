"""Which files a recipe's data section names, and how each is read (its format)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dtrain.data.problems import Problems
from dtrain.errors import InputError
from dtrain.recipe.data import Data

PARTS = ("train", "valid", "test", "transfer")
CORPUS, EXCLUDED = "sources", "exclude"  # text to pre-train on, and what may not be in it: keys of pretrain.corpus
PACKAGE, HUB = "package:", "hub:"
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".csv": "csv"}


@dataclass(frozen=True)
class Source:
    """One entry of `data.<part>` or `pretrain.corpus.<part>`.

    `name` is as the user wrote it, `format` one of the readers of records.py.
    """

    part: str
    name: str
    format: str

    @property
    def path(self) -> Path:
        return resolve_path(self.name)

    @property
    def files(self) -> list[Path]:
        """Where its bytes are; a hub name has none."""
        if self.format == "hub":
            return []
        return sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]

    @property
    def key(self) -> str:
        return f"{'pretrain.corpus' if self.part in (CORPUS, EXCLUDED) else 'data'}.{self.part}"


def resolve_path(name: str) -> Path:
    """A path as written, or `package:NAME`: a file that comes with the package, beside its recipes."""
    if name.startswith(PACKAGE):
        return Path(str(resources.files("dtrain") / "recipes")) / name.removeprefix(PACKAGE)
    return Path(name)


def find_sources(data: Data) -> list[Source]:
    """Every source in the order train, valid, test, transfer, with its format settled.

    Raises InputError where a file is missing, empty or of no known format; reads at most one line of each.
    """
    problems = Problems()
    sources = []
    for part in PARTS:
        for name in getattr(data, part):
            try:
                sources.append(Source(part, name, _format_of(part, name, data)))
            except InputError as error:
                problems.add(f"data.{part}: {error}")
    problems.raise_if_any()
    return sources


def source_files(data: Data) -> list[Path]:
    """Files whose bytes decide the rows: sources and label map. A hub name gives none.

    Raises InputError where one is missing.
    """
    files = [path for source in find_sources(data) for path in source.files]
    if isinstance(data.labels, str):
        files.append(existing_file(data.labels, "data.labels"))
    return files


def existing_file(name: str, key: str) -> Path:
    """The path of `name`; raises InputError naming the recipe's `key` where there is no such file."""
    path = resolve_path(name)
    if not path.is_file():
        raise InputError(f"{key}: {name}: is a folder, not a file" if path.is_dir() else f"{key}: {name}: no such file")
    return path


def _format_of(part: str, name: str, data: Data) -> str:
    """`auto` goes by suffix. Transfer files do so even where a format is set: they often come from elsewhere."""
    if data.task == "tagging":
        return _tagging_format(part, name, data)
    if name.startswith(HUB):
        if data.format not in ("auto", "dataset"):
            raise InputError(f"{name}: is a hub data set, but data.format is {data.format!r} (allowed: auto, dataset)")
        return "hub"
    path = resolve_path(name)
    if not path.exists():
        raise InputError(f"{name}: no such file")
    if path.is_dir():
        if data.format not in ("auto", "dataset") and part != "transfer":
            raise InputError(f"{name}: is a folder, but data.format is {data.format!r}")
        return "dataset"
    if path.stat().st_size == 0:
        raise InputError(f"{name}: the file is empty")
    by_suffix = SUFFIXES.get(path.suffix.lower())
    if part == "transfer":
        if by_suffix or data.format == "lines":
            return by_suffix or "lines"
        if path.suffix.lower() == ".txt":
            return "tsv" if data.format == "tsv" and _looks_like_table(path, data) else "lines"
    if data.format == "dataset":
        raise InputError(f"{name}: is a file; data.format 'dataset' reads folders written by save_to_disk")
    if data.format == "lines":
        raise InputError(f"{name}: plain lines hold no labels; data.format 'lines' is for transfer files only")
    if data.format != "auto":
        return data.format
    if by_suffix:
        return by_suffix
    if path.suffix.lower() == ".txt":
        raise InputError(f"{name}: how a .txt holds labels must be said: set data.format (tsv, csv or jsonl)")
    raise InputError(
        f"{name}: the suffix {path.suffix or '(none)'} tells no format; set data.format (jsonl, tsv or csv), "
        "or name the file .jsonl, .json, .tsv or .csv"
    )


def _tagging_format(part: str, name: str, data: Data) -> str:
    """JSON lines by suffix, else CoNLL; a .txt for transfer is plain lines unless its first line ends with a tag."""
    path = resolve_path(name)
    if name.startswith(HUB) or path.is_dir():
        what = "a hub data set" if name.startswith(HUB) else "a folder"
        raise InputError(f"{name}: is {what}; task 'tagging' reads files (CoNLL or JSON lines)")
    if not path.exists():
        raise InputError(f"{name}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{name}: the file is empty")
    by_suffix = "jsonl" if SUFFIXES.get(path.suffix.lower()) == "jsonl" else None
    if part == "transfer":
        plain = data.format == "lines" or (path.suffix.lower() == ".txt" and not _ends_with_tag(path))
        return by_suffix or ("lines" if plain else "conll")
    if data.format == "lines":
        raise InputError(f"{name}: plain lines hold no labels; data.format 'lines' is for transfer files only")
    return (by_suffix or "conll") if data.format == "auto" else data.format


def _ends_with_tag(path: Path) -> bool:
    """Whether the first line that holds something looks like one of a CoNLL file."""
    with path.open("rb") as file:
        for line in file:
            columns = line.decode("utf-8-sig", errors="replace").split()
            if columns:
                return len(columns) > 1 and bool(re.fullmatch("O|[A-Z]-.+", columns[-1]))
    return False


def _looks_like_table(path: Path, data: Data) -> bool:
    """Whether a .txt beside tab-separated ones is one too; read as plain lines its labels would become text."""
    with path.open("rb") as file:
        first = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    return "\t" in first or (data.header and first == data.columns.text)


def numbered_lines(path: Path, name: str, problems: Problems) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without line ends; byte-order mark and CRLF accepted.

    Lines end at a line feed alone: U+2028 and its kin are text. A line that is not UTF-8 becomes a problem.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.add(f"{name}:{number}: not valid UTF-8 (byte {raw[error.start]:#04x} at {error.start + 1})")
                continue
            yield number, text.removesuffix("\n").removesuffix("\r")
