"""Work on a corpus in pieces, each of which is kept once it is made: a stop or a crash loses only the current one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow.compute as pc

from dtrain.data.write import Batch, map_rows, worker_count
from dtrain.errors import InputError, Stopped
from dtrain.recipe.data import Data
from dtrain.runfolder import fingerprint, is_done, mark_done, publish_folder

if TYPE_CHECKING:
    from dtrain.runtime.stop import StopRequest

SUFFIX = ".pieces"
PIECE_BYTES = 16 << 20  # of text for each worker: half a minute of cutting it into words


class Pieces:
    """A folder of finished pieces, beside the folder that is made of them.

    At the end of the context it is removed unless a rerun can use it. Its name contains the identity of what the pieces are
    made from, and folders of another identity are removed.
    """

    def __init__(self, final: Path, identity: str, stop: StopRequest | None) -> None:
        """`stop`: asked before each piece, on this rank alone, since the other ranks wait for it."""
        self.root = final.with_name(f"{final.name}-{identity[:12]}{SUFFIX}")
        self.identity = identity
        self.stop = stop
        remove_pieces(final, but=self.root)

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None or isinstance(error, InputError):
            shutil.rmtree(self.root, ignore_errors=True)

    def make(self, name: str, fill: Callable[[Path], None], *inputs: Any) -> Path:
        """The folder `name`; `fill` fills it unless it is already complete for these inputs.

        Raises:
            Stopped: a stop was requested.
        """
        folder, identity = self.root / name, fingerprint(self.identity, name, *inputs)
        if not is_done(folder, identity):
            hear(self.stop)
            with publish_folder(folder) as aside:
                fill(aside)
                mark_done(aside, identity)
        return folder

    def map(
        self,
        name: str,
        rows: datasets.Dataset,
        function: Callable[[Batch], Batch],
        features: datasets.Features,
        data: Data,
        *,
        column: str,
    ) -> datasets.Dataset:
        """Apply `map_rows` to `rows`, as many at a time as keep the workers busy for a while.

        Args:
            column: the column of text by whose bytes the rows are divided.

        Raises:
            Stopped: a stop was requested.
        """
        done = []
        for first, last in _bounds(rows, column, PIECE_BYTES * worker_count(data)):

            def fill(aside: Path, first: int = first, last: int = last) -> None:
                scratch = aside / "scratch"
                map_rows(rows.select(range(first, last)), function, features, data, scratch).save_to_disk(aside)
                shutil.rmtree(scratch)

            done.append(datasets.load_from_disk(self.make(f"{name}-{first}", fill, first, last)))
        return datasets.concatenate_datasets(done)


def remove_pieces(final: Path, *, but: Path | None = None) -> None:
    """Remove the pieces for the folder `final`, which is made, or is to be made from something else; keep `but`."""
    for old in final.parent.glob(f"{final.name}-*{SUFFIX}"):
        if old != but:
            shutil.rmtree(old, ignore_errors=True)


def _bounds(rows: datasets.Dataset, column: str, limit: int) -> Iterator[tuple[int, int]]:
    """The first row and the end of each stretch of about `limit` bytes of text."""
    batches = rows.select_columns([column]).with_format("arrow").iter(1000)
    sizes = np.concatenate([pc.binary_length(batch.column(column)).to_numpy() for batch in batches])
    cuts = np.flatnonzero(np.diff(sizes.cumsum(dtype=np.int64) // limit)) + 1
    yield from itertools.pairwise([0, *cuts.tolist(), len(rows)])


def hear(stop: StopRequest | None) -> None:
    """Raise Stopped if a stop was requested."""
    if stop is not None and stop.here():
        raise Stopped(
            f"pretrain: stopped on request ({stop.reason}) while the text was prepared; the same command continues"
        )
