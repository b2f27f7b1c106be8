"""Runs a Python command on the pretended device, and every Python command that it starts:

    python -m tests.gpu.pretended.start (-m MODULE | SCRIPT) ARGUMENTS ...

With it `DTRAIN_TEST_DEVICE=pretended bash launch/gpu_check.sh` goes through what is written for GPUs, on a CPU.
"""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="0", DTRAIN_TEST_DEVICE="pretended")

from tests.gpu.pretended import drive  # isort: skip  # which loads the backend, before torch

import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

THIS = ["-m", "tests.gpu.pretended.start"]
ROOT = Path(__file__).parents[3]


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts Python commands through this module."""

    def __init__(self, args: Any, *rest: Any, **named: Any) -> None:
        words = [str(word) for word in args] if isinstance(args, (list, tuple)) else []
        if words[:1] == [sys.executable] and words[-1] not in THIS and THIS[1] not in words:
            flags = 2 if words[1:2] == ["-u"] else 1
            if words[flags] != "-c":
                args = [*words[:flags], *THIS, *words[flags:]]
                environment = dict(named.get("env") or os.environ)
                environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
                named["env"] = environment
        super().__init__(args, *rest, **named)


def main() -> None:
    drive.start()
    subprocess.Popen = Popen  # type: ignore[misc]
    words, code = sys.argv[1:], 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[0] = str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's shutdown does not know of tensors without memory


if __name__ == "__main__":
    main()
