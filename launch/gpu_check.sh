#!/usr/bin/env bash
# Checks and measurements for the first minutes on a machine with GPUs: at most 8 minutes on one GPU, 20 on eight. The
# most informative parts come first, each part has a time limit, and results are written as they come: a JSON file for
# each part, and page.md.
#
#   bash launch/gpu_check.sh [FOLDER [PART ...]]  results in FOLDER (default: gpu-check); no network is needed; if parts
#                                                 are named, only these are run again
#   bash launch/gpu_check.sh --wheels [FOLDER]    beforehand, with a network: download what the machine lacks into
#                                                 FOLDER (default: gpu-wheels)
#
# The machine must have a Python with torch 2.11 or newer for CUDA, transformers and accelerate; PYTHON names it
# (default: python3). DTRAIN_TEST_DEVICE=cpu tries the script itself on a machine without GPUs, with tiny sizes, and with
# two processes for parts that need two GPUs; DTRAIN_TEST_DEVICE=pretended tries it on a simulated CUDA device (which needs
# g++ and a torch for CPUs).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

if [[ ${1:-} == --wheels ]]; then
    exec "$python" "$root/launch/gpu_wheels.py" "${2:-$root/gpu-wheels}"
fi

out=$(mkdir -p "${1:-gpu-check}" && cd "${1:-gpu-check}" && pwd)
if [[ -d $root/gpu-wheels ]]; then
    # Installed beside the machine's own packages, which stay as they are. There is no index to resolve dependencies by.
    [[ -x $out/.venv/bin/python ]] || "$python" -m venv --system-site-packages "$out/.venv"
    # --system-site-packages shows only packages of the base Python: those of an environment are added by a .pth file.
    here=$("$out/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import site; [print(f"import site; site.addsitedir({p!r})") for p in site.getsitepackages()]' >"$here/machine.pth"
    "$out/.venv/bin/python" - "$root/gpu-wheels" <<'PYTHON'
import importlib.metadata, pathlib, re, subprocess, sys
wheels = []
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        importlib.metadata.version(re.sub("_", "-", wheel.name.split("-")[0]))
    except importlib.metadata.PackageNotFoundError:
        wheels.append(str(wheel))
if wheels:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *wheels]
    raise SystemExit(subprocess.run(pip).returncode)
PYTHON
    python=$out/.venv/bin/python
fi
cd "$root"
export PYTHONPATH=$root HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" launch/gpu_parts.py "$out" "${@:2}"
