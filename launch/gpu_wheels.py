"""Collect wheels of what dtrain needs beside torch, transformers and accelerate, in a folder of at most 60 MiB.

    python launch/gpu_wheels.py FOLDER

The wheels are for this interpreter's version and machine, at the versions of launch/constraints.txt. Parts of large
packages that are not used are left out: pyarrow's headers, network services and tests, pandas's tests, tensorboard's
pages. So are matplotlib (plots of the report) and jieba (words in pre-training), which `gpu_check.sh` does not need.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MOST = 60 * 2**20  # bytes
PACKAGES = (
    *(
        "pyarrow",
        "pandas",
        "python-dateutil",
        "six",
        "datasets",
        "multiprocess",
        "dill",
        "xxhash",
        "fsspec",
        "evaluate",
    ),
    *("deepspeed", "ninja", "hjson", "msgpack", "py-cpuinfo", "einops", "pydantic", "pydantic-core", "annotated-types"),
    *(
        "typing-inspection",
        "pytorch-crf",
        "opencc",
        "tensorboard",
        "absl-py",
        "protobuf",
        "jinja2",
        "markupsafe",
        "psutil",
    ),
    *("pytest", "iniconfig", "pluggy", "pygments", "hypothesis", "sortedcontainers"),
)
UNUSED = {
    "pyarrow": r"^pyarrow/(include|tests|src)/|flight|gandiva|_s3|\.px[di]$|\.pyx$",
    "pandas": r"^pandas/tests/",
    "tensorboard": r"webfiles",
}


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pinned = dict(line.split("==") for line in _constraints())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    os.environ["DS_BUILD_OPS"] = "0"  # DeepSpeed compiles nothing when it is installed
    with tempfile.TemporaryDirectory() as found:
        for name in PACKAGES:
            asked = f"{name}=={pinned[name]}" if name in pinned else name
            # A wheel is taken where there is one, and built where there is none (DeepSpeed).
            words = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", found, asked]
            if subprocess.run(words).returncode:
                print(f"gpu_wheels: {asked}: no wheel", file=sys.stderr)
                return 1
        for wheel in sorted(Path(found).glob("*.whl")):
            name = re.sub("_", "-", wheel.name.split("-")[0]).lower()
            write_slim(wheel, folder / wheel.name, UNUSED.get(name))
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size / 2**20:.1f} MiB of {MOST / 2**20:.0f}")
    return 0 if size <= MOST else 1


def _constraints() -> list[str]:
    lines = Path(__file__).with_name("constraints.txt").read_text(encoding="utf-8").splitlines()
    return [re.sub("_", "-", line.split(";")[0].strip()).lower() for line in lines if "==" in line and line[0] != "#"]


def write_slim(wheel: Path, target: Path, unused: str | None) -> None:
    """Write the wheel to `target` without the files that match `unused`, and with a new list of its files."""
    if unused is None:
        target.write_bytes(wheel.read_bytes())
        return
    rows = []
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as slim:
        record = next(name for name in whole.namelist() if name.endswith(".dist-info/RECORD"))
        for info in whole.infolist():
            if info.filename == record or info.is_dir() or re.search(unused, info.filename):
                continue
            content = whole.read(info)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{info.filename},sha256={digest},{len(content)}")
            slim.writestr(info, content, zipfile.ZIP_DEFLATED, 9)
        slim.writestr(record, "\n".join([*rows, f"{record},,"]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
