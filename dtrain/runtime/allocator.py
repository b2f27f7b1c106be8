"""Keep the memory that a training step on a CPU frees for the next step.

glibc gives large freed blocks back to the system, and the next result is made of new pages, each of which costs an
interrupt and is filled with zeros first. A training step frees and takes the same few hundred megabytes again and again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

# The names and numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
BLOCKS = 65536  # glibc's default for how many blocks may be mapped individually
SETTINGS = {
    M_MMAP_THRESHOLD: 32 << 20,  # the highest that glibc allows; see `keep_large_blocks` for larger ones
    M_TRIM_THRESHOLD: 1 << 30,  # how much may stay free at the end of the heap
    M_TOP_PAD: 256 << 20,  # by how much the heap grows; pages that are never touched cost nothing
}


def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of freed memory; returns whether it does.

    Nothing is changed where the user has set malloc's own variables, or with another C library.
    """
    library = _library()
    return library is not None and all([library.mallopt(name, value) for name, value in SETTINGS.items()])


@contextlib.contextmanager
def keep_large_blocks() -> Iterator[None]:
    """A region in which blocks of more than 32 MiB are kept, too; at its end all free memory goes back to the system.

    The gradient of a table of 21,128 vectors of 512 is such a block, and every step allocates it again: in 46 ms with
    new pages, in 6 ms without (one busy core). Not for code that makes large arrays of many sizes, which would leave
    gaps.
    """
    library = _library()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, BLOCKS)
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    """glibc; None with another C library, or where the user has set malloc's own variables."""
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
