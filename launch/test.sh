#!/usr/bin/env bash
# Every check of the code: lint, format, types, unit tests on two workers, then the tests that start real
# processes, one after another so that they do not starve each other. All run; one failing fails the whole.
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

failed=()
check() {
    local name=$1 begin=$SECONDS
    shift
    echo "== $name"
    "$python" -m "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - begin)) s"
}
check lint ruff check .
check format ruff format --check .
check types mypy dtrain
check 'unit tests' pytest -q -n 2 --durations 5 -m 'not distributed and not slurm and not slow'
check 'tests of real processes' pytest -q --durations 5 -m '(distributed or slurm) and not slow'

if ((${#failed[@]})); then
    (IFS=,; echo "failed: ${failed[*]}" >&2)
    exit 1
fi
echo 'all checks passed'
