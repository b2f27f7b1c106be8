"""One rank of `dtrain precompute` that kills itself: `killed_precompute.py PLACE TIMES RECIPE`.

PLACE is the place in the code, and TIMES the how-many-th time that the rank comes there:

    search     a batch of sources is about to be written by the beam
    rename     a shard is written whole under another name
    shard      a shard has just got its own name
    publish    all shards are there, and nothing says that the store is complete
    manifest   the manifest is written, and nothing else
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtrain import __main__
from dtrain.knowledge.writer import StoreWriter
from dtrain.models import decoding

left = 0


def come() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def before(call: Callable[..., Any]) -> Callable[..., Any]:
    def changed(*arguments: Any, **options: Any) -> Any:
        come()
        return call(*arguments, **options)

    return changed


def after(call: Callable[..., Any]) -> Callable[..., Any]:
    def changed(*arguments: Any, **options: Any) -> Any:
        found = call(*arguments, **options)
        come()
        return found

    return changed


def replace(path: Path, target: Path) -> Path:
    if target.name.startswith("shard-"):
        come()
    return rename(path, target)


rename = Path.replace
PLACES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "search": (decoding, "written", before(decoding.written)),
    "rename": (Path, "replace", replace),
    "shard": (StoreWriter, "write", after(StoreWriter.write)),
    "publish": (StoreWriter, "publish", before(StoreWriter.publish)),
    "manifest": (StoreWriter, "publish", after(StoreWriter.publish)),
}

if __name__ == "__main__":
    place, times, recipe = sys.argv[1:]
    left = int(times)
    setattr(*PLACES[place])
    sys.exit(__main__.main(["precompute", recipe]))
