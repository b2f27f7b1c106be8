"""Memory that training on a CPU frees is kept for the next step.

glibc hands large freed blocks back to the system, and the next operation's result is then new pages, each of which costs
an interrupt and a pass of zeros: a training step frees and takes the same few hundred megabytes again and again.
"""

from __future__ import annotations

import ctypes
import os

# The names and numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {
    M_MMAP_THRESHOLD: 32 << 20,  # the most that glibc takes: larger blocks are the system's own, and go back
    M_TRIM_THRESHOLD: 1 << 30,  # what may lie free at the heap's end
    M_TOP_PAD: 256 << 20,  # by which the heap grows; pages that nothing touches cost nothing
}


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, up to 1 GiB; whether it does.

    Nothing is changed where the user has set malloc's own variables, or where the C library is another one.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all([library.mallopt(name, value) for name, value in SETTINGS.items()])
