"""Run commands in the process of the tests, which has already imported everything, so that nothing has to start."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dtrain.__main__ import main
from dtrain.stages import runner


def dtrain_here(*arguments: str | Path, folder: Path | None = None) -> None:
    """Run `dtrain ARGUMENTS` in `folder`; it must end with exit code 0. Run folders that it locked are unlocked for the
    next command.
    """
    with contextlib.chdir(folder or "."):
        try:
            assert main([str(word) for word in arguments]) == 0
        finally:
            while runner._locks:  # locks are held until the process ends
                runner._locks.pop().close()
