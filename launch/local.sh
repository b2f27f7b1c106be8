#!/usr/bin/env bash
# Runs a recipe on this machine, stage by stage, with explicit `accelerate launch` commands: what `dtrain run` does by
# itself. Use it if the number of processes or the accelerate config should be another one.
#
#   bash launch/local.sh RECIPE [key.path=value ...]    for example: bash launch/local.sh quickstart seed=7
#   CONFIG=ddp_bf16 PROCESSES=8 bash launch/local.sh tnews
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
install_dtrain

(($#)) || { echo "which recipe? $("$python" -m dtrain recipes | cut -d' ' -f1 | xargs), or a file" >&2; exit 2; }
configs=$root/accelerate_configs
config=$configs/${CONFIG:-ddp}.yaml
[[ -f $config ]] || { echo "CONFIG: no $config (there are: $(cd "$configs" && echo *.yaml))" >&2; exit 2; }

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 2))}

stages=$("$python" -m dtrain stages "$@")
# A stage that finds its output complete says so and costs a start-up of seconds.
for stage in $stages; do
    "$python" -m accelerate.commands.launch --config_file "$config" --num_processes "$processes" \
        --main_process_port 0 -m dtrain "$stage" "$@"
done
