"""Which files a recipe's data section names, and how each is read (its format)."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dtrain.data.lines import UTF8, first_line
from dtrain.data.problems import Problems
from dtrain.errors import InputError
from dtrain.recipe.data import Data

PARTS = ("train", "valid", "test", "transfer")
CORPUS, EXCLUDED = "sources", "exclude"  # text to pre-train on, and what may not be in it: keys of pretrain.corpus
PACKAGE, HUB = "package:", "hub:"
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".csv": "csv", ".parquet": "parquet"}
TABLES = ("tsv", "csv")
DELIMITERS = {"tab": "\t", "tsv": "\t", "csv": ","}  # by the recipe's word for it, and by format


@dataclass(frozen=True)
class Source:
    """One file, `datasets` folder or hub data set of `data.<part>` or `pretrain.corpus.<part>`.

    `name` is as the user wrote it (for files of a folder or a pattern: with the path that it stands for), `format` one
    of the readers of records.py. The rest says how lines and their columns are told apart.
    """

    part: str
    name: str
    format: str
    encoding: str = UTF8
    delimiter: str = "auto"  # of tables; auto: by format
    quoting: str = "auto"  # of tables: quotes, none; auto: quotes for csv, none for tsv

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

    @property
    def separator(self) -> str:
        """The character between two columns of a table."""
        name = self.format if self.delimiter == "auto" else self.delimiter
        return DELIMITERS.get(name, name)

    @property
    def quoted(self) -> bool:
        """Whether quotes around a column of a table are no part of it."""
        return self.format == "csv" if self.quoting == "auto" else self.quoting == "quotes"


def resolve_path(name: str) -> Path:
    """A path as written, or `package:NAME`: a file that comes with the package, beside its recipes."""
    if name.startswith(PACKAGE):
        return Path(str(resources.files("dtrain") / "recipes")) / name.removeprefix(PACKAGE)
    return Path(name)


def suffix_of(path: Path) -> str:
    """The suffix that tells a file's format, in lower case: that of what is packed, where it is a .gz file."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def find_sources(data: Data) -> list[Source]:
    """Every source in the order train, valid, test, transfer, with its format settled; patterns and folders opened.

    Raises InputError where a file is missing, empty or of no known format; reads at most one line of each.
    """
    problems = Problems()
    sources = []
    for part in PARTS:
        for name in getattr(data, part):
            try:
                for file in matching_files(name, _read_in_folders(data)):
                    kind = _format_of(part, file, data)
                    sources.append(Source(part, file, kind, data.encoding, data.delimiter, data.quoting))
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


def _read_in_folders(data: Data) -> set[str]:
    """Suffixes of the files that a folder stands for; none for tagging, whose files may have any."""
    if data.task == "tagging":
        return set()
    return {*SUFFIXES, ".txt"} if data.format in SUFFIXES.values() else {*SUFFIXES}


def matching_files(name: str, suffixes: Collection[str]) -> list[str]:
    """What a path of the recipe stands for, in order of their names: itself, or the files that a pattern matches.

    Args:
        suffixes: of the files that a folder stands for; a folder that holds none of them, or that `datasets` wrote,
            stands for itself.

    Raises:
        InputError: there is no such file.
    """
    if name.startswith(HUB):
        return [name]
    path = resolve_path(name)
    if not path.exists():
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"{name}: no such file")
        return [file for match in found for file in matching_files(match, suffixes)]
    if path.is_dir() and not is_dataset(path):
        return [str(file) for file in sorted(path.rglob("*")) if file.is_file() and suffix_of(file) in suffixes] or [
            name
        ]
    return [name]


def is_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_info.json", "dataset_dict.json"))


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
    if path.is_dir():
        if data.format not in ("auto", "dataset") and part != "transfer":
            raise InputError(f"{name}: is a folder, but data.format is {data.format!r}")
        return "dataset"
    if path.stat().st_size == 0:
        raise InputError(f"{name}: the file is empty")
    suffix = suffix_of(path)
    by_suffix = SUFFIXES.get(suffix)
    if by_suffix == "parquet":
        return by_suffix
    if part == "transfer":
        if by_suffix or data.format == "lines":
            return by_suffix or "lines"
        if suffix == ".txt":
            return data.format if data.format in TABLES and _looks_like_table(path, data) else "lines"
    if data.format == "dataset":
        raise InputError(f"{name}: is a file; data.format 'dataset' reads folders written by save_to_disk")
    if data.format == "lines":
        raise InputError(f"{name}: plain lines hold no labels; data.format 'lines' is for transfer files only")
    if data.format != "auto":
        return data.format
    if by_suffix:
        return by_suffix
    if suffix == ".txt":
        raise InputError(f"{name}: how a .txt holds labels must be said: set data.format (tsv, csv or jsonl)")
    raise InputError(
        f"{name}: the suffix {suffix or '(none)'} tells no format; set data.format (jsonl, tsv or csv), "
        "or name the file .jsonl, .json, .tsv or .csv"
    )


def _tagging_format(part: str, name: str, data: Data) -> str:
    """JSON lines by suffix, else CoNLL; a .txt for transfer is plain lines unless its first line ends with a tag."""
    path = resolve_path(name)
    if name.startswith(HUB) or path.is_dir():
        what = "a hub data set" if name.startswith(HUB) else "a folder"
        raise InputError(f"{name}: is {what}; task 'tagging' reads files (CoNLL or JSON lines)")
    if path.stat().st_size == 0:
        raise InputError(f"{name}: the file is empty")
    by_suffix = "jsonl" if SUFFIXES.get(suffix_of(path)) == "jsonl" else None
    if part == "transfer":
        plain = data.format == "lines" or (suffix_of(path) == ".txt" and not _ends_with_tag(path, data))
        return by_suffix or ("lines" if plain else "conll")
    if data.format == "lines":
        raise InputError(f"{name}: plain lines hold no labels; data.format 'lines' is for transfer files only")
    return (by_suffix or "conll") if data.format == "auto" else data.format


def _ends_with_tag(path: Path, data: Data) -> bool:
    """Whether the first line that holds something looks like one of a CoNLL file."""
    columns = first_line(path, data.encoding).split()
    return len(columns) > 1 and bool(re.fullmatch("O|[A-Z]-.+", columns[-1]))


def _looks_like_table(path: Path, data: Data) -> bool:
    """Whether a .txt beside tab-separated ones is one too; read as plain lines its labels would become text."""
    first = first_line(path, data.encoding)
    separator = Source("transfer", "", data.format, delimiter=data.delimiter).separator
    return (separator != "," and separator in first) or (data.header and first == data.columns.text)
