"""Commands in the process of the tests, which has imported everything: no start is waited for."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dtrain.__main__ import main
from dtrain.stages import runner


def dtrain_here(*arguments: str | Path, folder: Path | None = None) -> None:
    """`dtrain ARGUMENTS` in `folder`; it must end well. A run folder that it locked is free again for the next one."""
    with contextlib.chdir(folder or "."):
        try:
            assert main([str(word) for word in arguments]) == 0
        finally:
            while runner._locks:  # held until a process ends
                runner._locks.pop().close()
