"""Work on a corpus in pieces that are kept as soon as they are made: a stop or a crash loses the one under way."""

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
    """A folder of finished pieces, beside what they are for; as a context, kept only where a rerun can use it.

    Its name holds the identity of what they are made from, and those of another identity are removed.
    """

    def __init__(self, final: Path, identity: str, stop: StopRequest | None) -> None:
        """`stop`: heard on this rank alone, before each piece, since the others wait for it."""
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
        """The folder `name`, which `fill` fills unless it is there, complete and for these inputs.

        Raises Stopped, if asked to.
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
        """`map_rows` over `rows`, as many at a time as keep the workers busy for a while.

        Args:
            column: of text, which the work is measured by.

        Raises Stopped, if asked to.
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
    """Remove what was kept for `final`, which is made or to be made from something else."""
    for old in final.parent.glob(f"{final.name}-*{SUFFIX}"):
        if old != but:
            shutil.rmtree(old, ignore_errors=True)


def _bounds(rows: datasets.Dataset, column: str, limit: int) -> Iterator[tuple[int, int]]:
    """Where stretches of about `limit` bytes of text begin and end."""
    batches = rows.select_columns([column]).with_format("arrow").iter(1000)
    sizes = np.concatenate([pc.binary_length(batch.column(column)).to_numpy() for batch in batches])
    cuts = np.flatnonzero(np.diff(sizes.cumsum(dtype=np.int64) // limit)) + 1
    yield from itertools.pairwise([0, *cuts.tolist(), len(rows)])


def hear(stop: StopRequest | None) -> None:
    """Raises Stopped where someone asked for it."""
    if stop is not None and stop.here():
        raise Stopped(
            f"pretrain: stopped on request ({stop.reason}) while the text was prepared; the same command continues"
        )
