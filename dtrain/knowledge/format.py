"""A knowledge store on disk: the fingerprints of what it was made from, its layout, its manifest.

knowledge/<teacher>/
    identity.json           the layout; written first, so that shards without a manifest can be identified
    shard-00000.arrow ...   rows of fixed ranges, ordered by id: Arrow IPC, see shard.py
    manifest.json           the layout and every shard's range, bytes and sha256; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from dtrain.errors import DtrainError
from dtrain.knowledge.kinds import find_kind, kind_names
from dtrain.runfolder import file_fingerprint, fingerprint

FORMAT: Final = 2
IDENTITY_FILE = "identity.json"
MANIFEST_FILE = "manifest.json"
# For `shard_rows: auto`: bounds of a shard's rows, and how often a store is halved at most (six times: 64 shards).
SMALLEST, LARGEST, MOST_HALVINGS = 64, 4096, 6
MAX_SHARD_BYTES = 64 * 2**20

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


class StoreError(DtrainError):
    """A knowledge store that must not be used; every problem names the folder and what is wrong in it."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Identity(_Record):
    """Fingerprints of what decides a teacher's outputs; a store with others is another store."""

    teacher: Hex  # weights and config
    tokenizer: Hex  # files and truncation
    data: Hex  # rows, their text and their ids


def _stored(name: str) -> str:
    if not find_kind(name).stored:
        raise ValueError(f"{name} is not for a store")
    return name


OutputName = Annotated[str, AfterValidator(_stored)]


class Output(_Record):
    """One stored output. `shape` is [C] for logits, [H] for features, [None, T] for T tags of each character, [None, V] for
    a vocabulary of V at each token, [k, L] for k sequences of at most L tokens."""

    dtype: Literal["float16", "float32", "int32"]
    shape: Annotated[list[Positive | None], Field(min_length=1, max_length=2)]
    top_k: Positive | None = None  # of logits (also of tokens) the k largest are stored, and the rest as one number

    @property
    def width(self) -> int:
        return self.shape[-1] or 0


def numbers_of(name: str) -> str:
    """The column with the numbers of the k largest of an output; those of the package's own kinds have shorter names."""
    return {"logits": "classes", "token_logits": "tokens"}.get(name, f"{name}_numbers")


class Column(NamedTuple):
    """An array of a shard: `width` numbers for each row or, if ragged, for each character."""

    name: str
    dtype: np.dtype[Any]
    width: int
    ragged: bool = False

    @property
    def item_bytes(self) -> int:
        """The bytes of a row or, if ragged, of a character."""
        return self.width * self.dtype.itemsize


class Layout(_Record):
    """Everything that decides the bytes of a store; the number of ranks, threads and restarts does not."""

    format: Literal[2] = FORMAT
    fingerprints: Identity
    rows: Positive
    outputs: Annotated[dict[OutputName, Output], Field(min_length=1)]
    precision: Literal["fp32", "bf16", "fp16"]
    compiled: bool
    unpadded: bool
    batch_tokens: Positive
    shard_rows: Positive
    decoding: str | None = None  # the settings of the search for sequences

    @model_serializer(mode="wrap")
    def without_decoding(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `decoding` out for a store without sequences, so that its bytes are the same as before the key existed."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if value is not None or key != "decoding"}

    @model_validator(mode="after")
    def shapes_fit(self) -> Layout:
        for name, output in self.outputs.items():
            kind = find_kind(name)
            before = output.shape[:-1]
            fits = before == [None] * kind.per_token if kind.scores is None else len(before) == 1 and None not in before
            if output.width == 0 or not fits or (output.dtype == "int32") != (kind.scores is not None):
                raise ValueError(f"outputs.{name}: shape {output.shape}")
            if output.top_k is not None and (not kind.top_k or output.top_k >= output.width):
                raise ValueError(f"outputs.{name}: top_k {output.top_k} of {output.width}")
        return self

    @property
    def fingerprint(self) -> str:
        names = set(Layout.model_fields)
        return fingerprint("store", self.model_dump(mode="json", include=names))

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the order of their registration, whatever their order in the recipe."""
        return tuple(name for name in kind_names() if name in self.outputs)

    @property
    def columns(self) -> list[Column]:
        """What a shard holds beside the ids. Top-k logits are k values, descending, and the log-sum-exp of the rest,
        with the k class numbers, or tokens, in a column of their own. The k sequences of a row are stored one after another,
        with their scores in a column of their own."""
        columns = []
        for name in self.output_names:
            output, ragged = self.outputs[name], find_kind(name).per_token
            dtype = np.dtype(output.dtype)
            if find_kind(name).scores is not None:
                count = output.shape[0] or 0
                columns += [Column(name, dtype, count * output.width), Column("scores", np.dtype(np.float32), count)]
            elif output.top_k is None:
                columns.append(Column(name, dtype, output.width, ragged))
            else:
                number = np.dtype(np.uint16 if output.width <= 2**16 else np.int32)
                columns.append(Column(name, dtype, output.top_k + 1, ragged))
                columns.append(Column(numbers_of(name), number, output.top_k, ragged))
        return columns

    @property
    def ragged(self) -> bool:
        return any(find_kind(name).per_token for name in self.outputs)

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard_range(self, number: int) -> range:
        """The rows of a shard, counted in id order over the whole store."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.rows))


class Shard(_Record):
    """The manifest's entry of a shard."""

    file: str
    first_row: Count
    rows: Positive
    first_id: Count
    last_id: Count
    bytes: Positive
    sha256: Hex


class Manifest(Layout):
    """The layout and the shards; `checksum` is over all the rest, so that an edited manifest is recognised."""

    shards: Annotated[list[Shard], Field(min_length=1)]
    checksum: Hex


def new_layout(
    identity: Identity,
    *,
    rows: int,
    widths: Mapping[str, int | tuple[int, int]],
    dtype: str,
    precision: str,
    batch_tokens: int,
    shard_rows: int,
    top_k: int | None = None,
    compiled: bool = False,
    unpadded: bool = False,
    characters: np.ndarray | None = None,
    decoding: str | None = None,
) -> Layout:
    """A layout of at most `shard_rows` rows and about 64 MB a shard.

    Args:
        widths: C, T or H of each output; for sequences their number and their length.
        top_k: how many logits to store. All are stored if there are no more than that, and those of tokens also if all of
            them take no more room.
        characters: int [rows], how many vectors each row has, if an output is ragged.
        decoding: the settings of the search for sequences.
    """
    outputs = {name: _output(name, width, dtype, top_k) for name, width in widths.items()}
    layout = Layout.model_validate(
        {
            "fingerprints": identity,
            "rows": rows,
            "outputs": outputs,
            "precision": precision,
            "compiled": compiled,
            "unpadded": unpadded,
            "batch_tokens": batch_tokens,
            "shard_rows": shard_rows,
            "decoding": decoding,
        }
    )
    while (largest := _largest_shard(layout, characters)) > MAX_SHARD_BYTES and layout.shard_rows > 1:
        fitting = layout.shard_rows * MAX_SHARD_BYTES // largest
        layout = layout.model_copy(update={"shard_rows": max(1, min(fitting, layout.shard_rows - 1))})
    return layout


def _output(name: str, width: int | tuple[int, int], dtype: str, top_k: int | None) -> dict[str, Any]:
    """An `Output` as plain values."""
    if isinstance(width, tuple):
        return {"dtype": "int32", "shape": list(width)}
    kind = find_kind(name)
    # The k largest with their tokens are 2 k + 1 numbers, which a reader tells from all logits by their smaller number.
    numbers = 0 if top_k is None else 2 * top_k + 1 if kind.per_token else top_k
    return {
        "dtype": dtype,
        "shape": [None, width] if kind.per_token else [width],
        "top_k": top_k if kind.top_k and 0 < numbers < width else None,
    }


def _largest_shard(layout: Layout, characters: np.ndarray | None) -> int:
    """Bytes of the largest shard's columns."""
    ragged = [column for column in layout.columns if column.ragged]
    row_bytes = 8 + 4 * len(ragged) + sum(column.item_bytes for column in layout.columns if not column.ragged)
    most = 0
    if ragged and characters is not None:
        starts = np.arange(0, layout.rows, layout.shard_rows)
        most = int(np.add.reduceat(characters.astype(np.int64), starts).max())
    return layout.shard_rows * row_bytes + most * sum(column.item_bytes for column in ragged)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def checksum(values: Any) -> str:
    """sha256 of JSON-able values in canonical form."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def new_manifest(layout: Layout, shards: Sequence[Shard]) -> Manifest:
    values = {**layout.model_dump(mode="json"), "shards": [shard.model_dump(mode="json") for shard in shards]}
    return Manifest.model_validate({**values, "checksum": checksum(values)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished store.

    Raises:
        StoreError: it is missing, unreadable, of another format version, edited, or contradicts itself.
    """
    place = folder / MANIFEST_FILE
    try:
        values = json.loads(place.read_bytes())
        stated = values.pop("checksum")
        found = checksum(values)
    except FileNotFoundError:
        raise StoreError(f"{place}: missing: the store is not finished") from None
    except OSError as error:  # a folder in its place, no right to read it
        raise StoreError(f"{place}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise StoreError(f"{place}: damaged: not a manifest in JSON") from None
    if values.get("format") != FORMAT:
        raise StoreError(f"{place}: format {values.get('format')!r}, but this version reads format {FORMAT}")
    if stated != found:
        raise StoreError(f"{place}: damaged or edited: its checksum is {found}, it states {stated}")
    try:
        manifest = Manifest.model_validate({**values, "checksum": stated})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StoreError(f"{place}: damaged: {key}: {first['msg']}") from None
    problems = [f"{place}: {problem}" for problem in _contradictions(manifest)]
    if problems:
        raise StoreError(problems)
    return manifest


def damage(folder: Path) -> list[str]:
    """What has changed in a store since it was finished, one line for each file; empty for an undamaged one.

    Compares every file's sha256, and needs neither torch nor Arrow, which take long to import.
    """
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        return error.problems
    problems = []
    expected = {shard.file: shard.sha256 for shard in manifest.shards}
    for name in sorted({*expected, *(file.name for file in folder.glob("shard-*"))}):
        if name not in expected:
            problems.append(f"{folder / name}: is not in the manifest")
        elif not (folder / name).is_file():
            problems.append(f"{folder / name}: missing")
        elif (found := file_fingerprint(folder / name)) != expected[name]:
            problems.append(f"{folder / name}: damaged: its sha256 is {found}, expected {expected[name]}")
    return problems


def _contradictions(manifest: Manifest) -> list[str]:
    """What a manifest that was not written by `new_manifest` gets wrong: ranges, names, ids in two shards."""
    if len(manifest.shards) != manifest.shard_count:
        return [f"{len(manifest.shards)} shards for {manifest.rows} rows, expected {manifest.shard_count}"]
    problems = []
    last_id = -1
    for number, shard in enumerate(manifest.shards):
        expected = manifest.shard_range(number)
        if shard.file != shard_name(number):
            problems.append(f"shard {number} is called {shard.file!r}, expected {shard_name(number)!r}")
        if (shard.first_row, shard.rows) != (expected.start, len(expected)):
            found = f"rows {shard.first_row} to {shard.first_row + shard.rows - 1}"
            problems.append(f"{shard.file}: {found}, expected {expected.start} to {expected.stop - 1}")
        if shard.first_id <= last_id:
            problems.append(f"{shard.file}: starts at id {shard.first_id}, but id {last_id} came before: a row twice")
        if shard.last_id - shard.first_id + 1 < shard.rows:
            problems.append(f"{shard.file}: {shard.rows} rows do not fit ids {shard.first_id} to {shard.last_id}")
        last_id = shard.last_id
    return problems


def rows_of_shards(asked: int | str, rows: int) -> int:
    """Rows of a shard: what the recipe asks for, or with "auto" so many that there are 2, 4, 8, ... or 64 shards.

    Ranks take shards from a queue, so a store of few shards leaves some ranks idle: with 800 rows in one shard of 4,096, two
    ranks were slower than one. Small shards need more padding, since batches of similar lengths are formed within a shard:
    for news titles in batches of 512 tokens it was 13 % in shards of 64 rows, 8 % in shards of 128, 2 % in shards of 834. So
    with "auto" a shard has 64 rows at least and 4,096 at most (a store of 64 to 127 rows still has two shards, and a smaller
    one has one). The number depends on the number of rows alone, and so do the store's bytes.
    """
    if isinstance(asked, int):
        return asked
    halvings = min(max((rows // SMALLEST).bit_length() - 1, rows >= SMALLEST), MOST_HALVINGS)
    return min(-(-rows // 2**halvings), LARGEST)
