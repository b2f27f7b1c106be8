"""Files that a recipe names: what a path stands for, and how each file is to be read."""

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
    layout: Layout | None = None  # where its rows have several sides, their columns

    @property
    def path(self) -> Path:
        return resolve_path(self.name)

    @property
    def files(self) -> list[Path]:
        """Where its bytes are; a hub name has none."""
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
        """The recipe's key that names the encoding; files of rows to exclude have none."""
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


def plain_file(name: str) -> Path:
    """The path of a file with something in it, one of several that belong together line by line; else raises InputError."""
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
