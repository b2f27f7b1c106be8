"""Files that a recipe names: which files a path stands for, and how each of them is read."""

from __future__ import annotations

import glob
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.data.lines import UTF8
from dtrain.errors import InputError

if TYPE_CHECKING:
    from dtrain.recipe.sides import Layout

PARTS = ("train", "valid", "test", "transfer")
CORPUS, EXCLUDED = "sources", "exclude"  # keys of pretrain.corpus: text to pre-train on, text that must not be in it
PACKAGE, HUB = "package:", "hub:"
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".csv": "csv", ".parquet": "parquet"}
TABLES = ("tsv", "csv")
DELIMITERS = {"tab": "\t", "tsv": "\t", "csv": ","}  # by the word that the recipe uses, and by format


@dataclass(frozen=True)
class Source:
    """One file, `datasets` folder or hub data set of `data.<part>` or `pretrain.corpus.<part>`.

    Attributes:
        part: the key that names the file, for example train.
        name: the path as the user wrote it; for a file of a folder or a pattern, that file's path.
        format: jsonl, tsv, csv, lines, conll, parquet, dataset (a folder) or hub.
    """

    part: str
    name: str
    format: str
    encoding: str = UTF8
    delimiter: str = "auto"  # of tables; auto: by format
    quoting: str = "auto"  # of tables: quotes, none; auto: quotes for csv, none for tsv
    layout: Layout | None = None  # the columns of the sides, where rows have several sides

    @property
    def path(self) -> Path:
        return resolve_path(self.name)

    @property
    def files(self) -> list[Path]:
        """The files to read; none for a data set of the hub."""
        if self.format == "hub":
            return []
        if self.layout is not None and self.layout.beside:
            return [resolve_path(name) for _, name in self.layout.beside]
        return sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]

    @property
    def key(self) -> str:
        return f"{'pretrain.corpus' if self.part in (CORPUS, EXCLUDED) else 'data'}.{self.part}"

    @property
    def encoding_key(self) -> str | None:
        """The recipe's key for the encoding; files of rows to exclude have no such key."""
        if self.part == EXCLUDED:
            return None
        return "pretrain.corpus.sources.N.encoding" if self.part == CORPUS else "data.encoding"

    @property
    def separator(self) -> str:
        """The character between two columns of a table."""
        name = self.format if self.delimiter == "auto" else self.delimiter
        return DELIMITERS.get(name, name)

    @property
    def quoted(self) -> bool:
        """Whether quotes around a column of a table are removed."""
        return self.format == "csv" if self.quoting == "auto" else self.quoting == "quotes"


def resolve_path(name: str) -> Path:
    """The path of `name`; `package:NAME` is a file in the package's folder of recipes."""
    if name.startswith(PACKAGE):
        return Path(str(resources.files("dtrain") / "recipes")) / name.removeprefix(PACKAGE)
    return Path(name)


def suffix_of(path: Path) -> str:
    """The suffix that tells a file's format, in lower case; `.gz` is ignored, so that x.csv.gz has .csv."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def matching_files(name: str, suffixes: Collection[str]) -> list[str]:
    """The files that a path of the recipe stands for, sorted: itself, matches of a pattern, or the files of a folder.

    Args:
        suffixes: the suffixes of the files that are taken from a folder. A folder without such a file, or written by
            `datasets`, is returned itself.

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
    """Whether the folder was written by `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_info.json", "dataset_dict.json"))


def plain_file(name: str) -> Path:
    """The path of one of several files that belong together line by line.

    Raises InputError where it is no file, or is empty.
    """
    path = resolve_path(name)
    if not path.is_file():
        what = "is a folder, and files by side are read line by line" if path.is_dir() else "no such file"
        raise InputError(f"{name}: {what}")
    if path.stat().st_size == 0:
        raise InputError(f"{name}: the file is empty")
    return path


def existing_file(name: str, key: str) -> Path:
    """The path of `name`; raises InputError naming the recipe's `key` where there is no such file."""
    path = resolve_path(name)
    if not path.is_file():
        raise InputError(f"{key}: {name}: is a folder, not a file" if path.is_dir() else f"{key}: {name}: no such file")
    return path
