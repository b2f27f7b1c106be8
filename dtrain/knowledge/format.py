"""What a knowledge store is on disk: the fingerprints it belongs to, its layout, its manifest.

knowledge/<teacher>/
    identity.json           the layout; written first, so that shards without a manifest are known
    shard-00000.arrow ...   rows of fixed ranges, ordered by id: Arrow IPC, see shard.py
    manifest.json           the layout and every shard's range, bytes and sha256; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtrain.errors import DtrainError
from dtrain.runfolder import fingerprint

FORMAT: Final = 1
IDENTITY_FILE = "identity.json"
MANIFEST_FILE = "manifest.json"
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


class Output(_Record):
    """One stored value a row: `shape` is [C] for logits."""

    dtype: Literal["float16", "float32"]
    shape: Annotated[list[Positive], Field(min_length=1, max_length=1)]


class Outputs(_Record):
    logits: Output


class Layout(_Record):
    """Everything that decides the bytes of a store; the number of ranks, threads and restarts does not."""

    format: Literal[1] = FORMAT
    fingerprints: Identity
    rows: Positive
    outputs: Outputs
    precision: Literal["fp32", "bf16", "fp16"]
    batch_tokens: Positive
    shard_rows: Positive

    @property
    def fingerprint(self) -> str:
        names = set(Layout.model_fields)
        return fingerprint("store", self.model_dump(mode="json", include=names))

    @property
    def classes(self) -> int:
        return self.outputs.logits.shape[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.outputs.logits.dtype)

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard_range(self, number: int) -> range:
        """The rows of a shard, counted in id order over the whole store."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.rows))


class Shard(_Record):
    """A shard as the manifest knows it."""

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
    classes: int,
    dtype: str,
    precision: str,
    batch_tokens: int,
    shard_rows: int,
) -> Layout:
    """A layout of at most `shard_rows` rows and about 64 MB a shard."""
    row_bytes = 8 + classes * np.dtype(dtype).itemsize
    return Layout.model_validate(
        {
            "fingerprints": identity,
            "rows": rows,
            "outputs": {"logits": {"dtype": dtype, "shape": [classes]}},
            "precision": precision,
            "batch_tokens": batch_tokens,
            "shard_rows": max(1, min(shard_rows, MAX_SHARD_BYTES // row_bytes)),
        }
    )


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
