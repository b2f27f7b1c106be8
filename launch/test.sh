#!/usr/bin/env bash
# Every check of the code: lint, format, types, unit tests, once more those unit tests that depend on a CPU's kernels (as
# on an older CPU), then the tests that start real processes. Tests run on two workers; all tests of a file run on one of
# them, as they share fixtures. SLURM's tests, which mostly wait, run beside the unit tests. All checks run, and one
# failure makes the whole fail. The last lines tell the seconds of each check.
#
#   bash launch/test.sh                         everything except tests marked slow
#   bash launch/test.sh tests/data -k vocab     only pytest, with these arguments
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_dtrain test

cd "$root"
if (($#)); then
    exec "$python" -m pytest "$@"
fi

failed=() table=() all=$SECONDS
check() {
    local name=$1 begin=$SECONDS end=ok
    shift
    echo "== $name"
    "$@" || { failed+=("$name") && end=FAILED; }
    table+=("$(printf '%-22s %5d s  %s' "$name" $((SECONDS - begin)) "$end")")
    echo "== ${table[-1]}"
}
tests() {
    "$python" -m pytest -q --durations 5 "$@"
}
on_two() {
    tests -n 2 --dist loadfile --no-loadscope-reorder "$@"
}
# Waits for the end of the tests that were started in the background, and shows their output.
collect() {
    local code=0
    wait "$beside" || code=$?
    cat "$log"
    return "$code"
}
log=$(mktemp) beside=
# The last command of a trap decides the exit code under `set -e`: what has already ended must not fail the whole.
trap '[[ -z $beside ]] || kill "$beside" 2>/dev/null || true; rm -f "$log"' EXIT

"$python" -m pytest -q --durations 5 -m 'slurm and not slow' >"$log" 2>&1 &
beside=$!
check lint "$python" -m ruff check .
check format "$python" -m ruff format --check .
check types "$python" -m mypy dtrain
check 'unit tests' on_two -m 'not distributed and not slurm and not slow'
if [[ $(uname -m) == x86_64 ]]; then
    # Without AVX-512 and AMX, and so without some of oneDNN's kernels: no test may depend on the CPU that runs it.
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 check 'unit tests, plain CPU' \
        on_two -m 'kernels and not slow' tests/models tests/losses tests/training tests/students
fi
check 'SLURM, the rest of it' collect
check 'real processes' on_two -m 'distributed and not slow'
if command -v nvidia-smi >/dev/null && nvidia-smi -L | grep -q '^GPU'; then
    check 'on GPUs' tests -m gpu
fi

echo "== seconds of each"
printf '%s\n' "${table[@]}" "$(printf '%-22s %5d s' all $((SECONDS - all)))"
if ((${#failed[@]})); then
    (IFS=,; echo "failed: ${failed[*]}" >&2)
    exit 1
fi
echo 'all checks passed'
