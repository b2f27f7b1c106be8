"""launch/test.sh with a fake Python: it ends with 0 only if every check does."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT

# Replaces launch/install.sh, which sets the folder and the interpreter.
INSTALLED = 'root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)\npython=$root/python\ninstall_dtrain() { :; }\n'
# A check whose arguments contain the text in FAILING fails. SLURM's tests take a moment, because they run at the same
# time as others.
PYTHON = '#!/bin/sh\ncase "$*" in *slurm\\ and*) sleep 0.2;; esac\ncase "$*" in *"$FAILING"*) exit 3;; esac\nexit 0\n'


def run_with(folder: Path, failing: str) -> subprocess.CompletedProcess[str]:
    """Run launch/test.sh in a folder of its own; one of its checks fails."""
    (folder / "launch").mkdir()
    shutil.copy(ROOT / "launch/test.sh", folder / "launch")
    (folder / "launch/install.sh").write_text(INSTALLED)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return subprocess.run(
        ["bash", folder / "launch/test.sh"],
        env=os.environ | {"FAILING": failing},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_all_checks_passed(tmp_path: Path) -> None:
    ended = run_with(tmp_path, "no such check")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "all checks passed"), ended


@pytest.mark.parametrize(
    "failing, name",
    [("mypy", "types"), ("-m slurm and", "SLURM, the rest of it"), ("-m distributed", "real processes")],
)
def test_one_failing_fails_the_whole(failing: str, name: str, tmp_path: Path) -> None:
    ended = run_with(tmp_path, failing)
    assert (ended.returncode, ended.stderr.strip()) == (1, f"failed: {name}"), ended
