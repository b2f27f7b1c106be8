#!/usr/bin/env bash
# From a fresh clone to distilled models and a report: installs dtrain into .venv, then runs the shipped
# `quickstart` recipe on its made-up headlines. It takes a minute and a half on two CPU cores after the
# installation, and writes everything to runs/. Run it again, and it continues or says that all is done.
#
#   bash launch/quickstart.sh [key.path=value ...]      for example: students.bilstm.epochs=3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_dtrain

cd "$root"
"$python" -m dtrain run quickstart "$@"

echo
echo "report:        $root/runs/quickstart/report/report.html  (report.md and results.json beside it)"
echo "live curves:   $root/.venv/bin/tensorboard --logdir $root/runs/quickstart/tensorboard"
echo "try a student: echo 苹果发布会今晚举行 | $root/.venv/bin/dtrain predict quickstart --input -"
