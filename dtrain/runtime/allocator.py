"""Keep the memory that a training step on a CPU frees for the next step.

glibc gives large freed blocks back to the system, and the next result is made of new pages, each of which costs an
interrupt and is filled with zeros first. A training step frees and takes the same few hundred megabytes again and again.
"""

from __future__ import annotations

import ctypes
import os

# The names and numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {
    M_MMAP_THRESHOLD: 32 << 20,  # the highest that glibc allows; larger blocks still go back to the system
    M_TRIM_THRESHOLD: 1 << 30,  # how much may stay free at the end of the heap
    M_TOP_PAD: 256 << 20,  # by how much the heap grows; pages that are never touched cost nothing
}


def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of freed memory; whether it does so.

    Nothing is changed where the user has set malloc's own variables, or with another C library.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all([library.mallopt(name, value) for name, value in SETTINGS.items()])
