"""Rows read with `datasets`: folders written by save_to_disk, data sets of the hub, and Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, List, load_dataset, load_from_disk
from pyarrow import parquet

from dtrain.data.files import HUB, SUFFIXES, Source
from dtrain.data.problems import shown
from dtrain.errors import InputError
from dtrain.hub import ask_hub

HIDDEN = -1  # in place of the number of a label that is not published
BLOCK = 10_000  # rows of a Parquet file in memory at once


def arrow_records(
    source: Source, read: Collection[str | int | None] | None = None
) -> Iterator[tuple[int, Mapping[str | int, Any]]]:
    """Rows numbered from 1; numbers of class labels are replaced by the labels' names.

    Args:
        read: the columns that are read; None: all. In others, a number that stands for no label is replaced by None.

    Test sets of the hub whose labels are hidden hold -1 in their place: such a row has None, as has a row whose list
    holds -1 alone.

    Raises InputError, which names the recipe's key, where the data set does not exist or cannot be read; or the row,
    where a number in a column that is read stands for no label.
    """
    features, rows = _rows_of_parquet(source) if source.format == "parquet" else _rows_of_dataset(source)
    names: dict[str, Callable[[int], str]] = {
        column: feature.int2str for column, feature in features.items() if isinstance(feature, ClassLabel)
    }
    lists = {
        column: feature.feature.int2str
        for column, feature in features.items()
        if isinstance(feature, List) and isinstance(feature.feature, ClassLabel)
    }
    for number, row in enumerate(rows, 1):
        record: dict[str | int, Any] = dict(row)
        for column in (*lists, *names):
            value = record[column]
            try:
                if column in names:
                    record[column] = None if value is None or value < 0 else names[column](value)
                else:
                    hidden = value is None or bool(value) and all(one == HIDDEN for one in value)
                    record[column] = None if hidden else [lists[column](one) for one in value]
            except (TypeError, ValueError):  # no label has the number, or an item of a list is null
                record[column] = None
                if read is None or column in read:
                    raise InputError(
                        f"{source.name}:{number}: {column!r} holds {shown([str(value)])}, and the labels have the numbers "
                        f"from 0 (a row whose labels are hidden holds {HIDDEN} alone)"
                    ) from None
        yield number, record


def _rows_of_dataset(source: Source) -> tuple[Features, Iterable[dict[Any, Any]]]:
    dataset = _open_hub(source) if source.format == "hub" else _open_folder(source)
    return dataset.features, dataset


def _open_folder(source: Source) -> Dataset:
    path = source.path
    if (path / "dataset_dict.json").is_file():
        parts = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()]
        raise InputError(f"{source.key}: {source.name}: holds several parts; name one of them ({shown(parts)})")
    if not (path / "dataset_info.json").is_file() or not (path / "state.json").is_file():
        raise InputError(
            f"{source.key}: {source.name}: is no folder written by datasets' save_to_disk, and holds no file that ends "
            f"with {shown(SUFFIXES)}"
        )
    try:
        return load_from_disk(path)
    except Exception as error:
        # Arrow and datasets raise errors of many types for a damaged file; all of them are bad input.
        raise InputError(f"{source.key}: {source.name}: cannot be read: {_first_line(error)}") from error


def _rows_of_parquet(source: Source) -> tuple[Features, Iterable[dict[Any, Any]]]:
    """Rows read block by block: reading the whole table would keep it in memory, and Dataset.from_parquet would write a
    copy into the user's cache."""

    def rows(file: parquet.ParquetFile) -> Iterator[dict[Any, Any]]:
        try:
            for batch in file.iter_batches(BLOCK):
                yield from Dataset(pa.Table.from_batches([batch], schema), fingerprint="block")
        except Exception as error:  # as above
            raise _unreadable(source, error) from error

    try:
        file = parquet.ParquetFile(source.path)
        schema = file.schema_arrow
        return Features.from_arrow_schema(schema), rows(file)
    except Exception as error:  # as above
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: Exception) -> InputError:
    return InputError(f"{source.key}: {source.name}: cannot be read: {_first_line(error)}")


def _open_hub(source: Source) -> Dataset:
    """The data set named by `hub:name[:config]/split`, for example hub:clue/clue:tnews/train."""
    name, slash, split = source.name.removeprefix(HUB).rpartition("/")
    name, _, config = name.partition(":")
    if not slash or not name or not split:
        raise InputError(f"{source.key}: {source.name}: must have the form hub:name[:config]/split")
    ask_hub()
    try:
        return load_dataset(name, config or None, split=split)
    except Exception as error:
        # There is no network, or the name or the split is wrong: the message of the library says which.
        raise InputError(f"{source.key}: {source.name}: cannot be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
