# Sourced by quickstart.sh, test.sh and local.sh: `install_dtrain [test]` makes .venv hold dtrain (and what
# its tests need) and sets $python. A second call with the same pyproject.toml and versions starts at once.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

install_dtrain() {
    # One at a time: two scripts started together would write over each other's files.
    (
        flock 9
        install_alone "$@"
    ) 9<"$root/launch"
}

install_alone() {
    local extra=${1:-} stamp=$root/.venv/.dtrain-installed${1:+-$1} identity versions
    identity=$(cat "$root/pyproject.toml" "$root/launch/constraints.txt" "$root/launch/install.sh" | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$identity" ]]; then
        return
    fi
    [[ -x $python ]] || make_venv
    echo "installing dtrain${extra:+ and what its tests need} into $root/.venv (minutes the first time)"
    versions=$root/.venv/.dtrain-constraints
    versions_not_here >"$versions"
    # torch before all else and by itself, so that nothing later chooses another build of it.
    pip_install -c "$versions" 'torch>=2.11'
    pip_install -c "$versions" -e "$root${extra:+[$extra]}"
    echo "$identity" >"$stamp"
    echo "$identity" >"$root/.venv/.dtrain-installed" # with the tests' packages come the plain ones
}

make_venv() {
    local base shared=()
    base=$(find_python)
    # A GPU machine's own torch is built for its driver: keep it, and everything beside it that fits.
    if "$base" - 2>/dev/null <<'PYTHON'; then
import torch
major, minor = map(int, torch.__version__.split(".")[:2])
raise SystemExit(not (torch.cuda.is_available() and (major, minor) >= (2, 11)))
PYTHON
        echo "keeping the torch that $base already has for this machine's GPU"
        shared=(--system-site-packages)
    fi
    echo "making $root/.venv with $("$base" --version)"
    "$base" -m venv "${shared[@]}" "$root/.venv"
}

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "dtrain needs Python 3.11, 3.12 or 3.13, and none is on the PATH" >&2
    return 1
}

# launch/constraints.txt without the packages that the venv sees from the system: those stay as they are.
versions_not_here() {
    "$python" - "$root/launch/constraints.txt" <<'PYTHON'
import importlib.metadata, re, sys
own = sys.prefix  # of the venv
kept = {
    re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    for found in importlib.metadata.distributions()
    if not str(found.locate_file("")).startswith(own)
}
for line in open(sys.argv[1], encoding="utf-8"):
    name = re.sub(r"[-_.]+", "-", line.partition("==")[0].strip()).lower()
    if name not in kept:
        print(line, end="")
PYTHON
}

pip_install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}
