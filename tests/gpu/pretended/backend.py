"""Loads guard.cpp, a CUDA backend that does nothing, into a torch without CUDA. Imported before torch."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def built() -> Path:
    """The library, compiled once for each torch (some seconds); it lies among temporary files."""
    version = importlib.metadata.version("torch")
    name = hashlib.sha256(SOURCE.read_bytes() + version.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"dtrain-pretended-{os.getuid()}-{name}.so"
    if not library.is_file():
        torch = torch_folder()
        new = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}", f"-L{torch / 'lib'}"]
        words = ["g++", *flags, str(SOURCE), "-o", str(new), "-lc10", "-ltorch_cpu"]
        subprocess.run(words, check=True, capture_output=True, text=True)
        new.rename(library)
    return library


def load() -> None:
    """Register the backend; torch must not have been imported yet."""
    assert "torch" not in sys.modules
    ctypes.CDLL(str(torch_folder() / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(built()))
