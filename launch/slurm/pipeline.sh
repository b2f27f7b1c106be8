#!/usr/bin/env bash
# Submits a whole recipe as SLURM jobs that wait for each other, as `dtrain stages RECIPE --jobs` lists them; distill is
# an array over groups of students. It is a template: edit the settings, or let `dtrain submit RECIPE` fill them in.
#
#   bash launch/slurm/pipeline.sh RECIPE [key.path=value ...]           on a login node, in the project's folder
#   DRY_RUN=1 bash launch/slurm/pipeline.sh RECIPE                      prints the sbatch commands
#   LOCAL=1 bash launch/slurm/pipeline.sh RECIPE                        the same plan on this machine, without SLURM
set -euo pipefail

# --- settings -----------------------------------------------------------------------------------
partition=          # empty: the cluster's default
nodes=1             # of jobs that are spread over nodes (pretrain, finetune, precompute); all others take one
gpus=0              # a node
cpus=4              # a node
time=04:00:00       # a job's; what takes longer is requeued and continues
groups=1            # of students, a job each
requeues=5          # of one job, at most
jobs=               # empty: as `dtrain stages RECIPE --jobs` has them
python=python       # of the environment that holds dtrain
run=                # the run folder, runs/<name>
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) # where stage.sbatch is
# ------------------------------------------------------------------------------------------------
"$python" -m dtrain check "$@" >/dev/null # bad input ends here, with exit code 2, before anything is queued

logs=${run:-.}/slurm
export DTRAIN_PYTHON=$python DTRAIN_REQUEUES=$requeues DTRAIN_GROUPS=$groups DTRAIN_RUN=$run
ids=()
told=()

job() { # NAME STAGES one|all gpus|cpus array|'' RECIPE...
    local name=$1 stages=$2 nodes=$nodes gpus=$gpus array=$5 id
    [[ $3 == all ]] || nodes=1
    [[ $4 == gpus ]] || gpus=0
    shift 5
    if [[ -n ${LOCAL:-} ]]; then
        "$python" -m dtrain run "$@" --stages "$stages"
        return
    fi
    local options=(--parsable --job-name="$name" --nodes="$nodes" --cpus-per-task="$cpus" --time="$time")
    options+=(--output="$logs/%x-%j.out")
    [[ -z $partition ]] || options+=(--partition="$partition")
    ((gpus == 0)) || options+=(--gpus-per-node="$gpus")
    [[ -z $array ]] || options+=(--array="0-$((groups - 1))" --output="$logs/%x-%A-%a.out")
    # A job whose predecessor failed is removed instead of waiting for ever.
    ((${#ids[@]} == 0)) || options+=(--dependency="afterok:${ids[-1]}" --kill-on-invalid-dep=yes)
    if [[ -n ${DRY_RUN:-} ]]; then
        echo sbatch "${options[@]}" "$scripts/stage.sbatch" "$stages" "$@"
        id=ID_OF_${name^^}
    else
        id=$(sbatch "${options[@]}" "$scripts/stage.sbatch" "$stages" "$@") || give_up "$name"
    fi
    ids+=("${id%%;*}")
    told+=("$name ${id%%;*}")
}

give_up() {
    echo "$1 was refused; nothing stays queued" >&2
    ((${#ids[@]} == 0)) || scancel "${ids[@]}"
    exit 1
}

[[ -n ${DRY_RUN:-}${LOCAL:-} ]] || mkdir -p "$logs"
listed=${jobs:-$("$python" -m dtrain stages "$@" --jobs)}
while read -r name stages spread device array <&3; do
    job "$name" "$stages" "$spread" "$device" "$array" "$@"
done 3<<<"$listed"
[[ -z ${DRY_RUN:-}${LOCAL:-} ]] || exit 0

(IFS=,; echo "jobs: ${told[*]}")
cat <<TEXT
watch:  squeue --jobs=$(IFS=,; echo "${ids[*]}") --format='%.14i %.12j %.10T %.10M %.4D %R'
        tail -F $logs/*.out
curves: tensorboard --logdir ${run:-runs/NAME}/tensorboard --port 6006     here, and on your own machine
        ssh -N -L 6006:localhost:6006 ${USER:-you}@$(hostname)             then http://localhost:6006
stop:   touch ${run:-runs/NAME}/STOP   (with checkpoints; remove it and submit again to continue), or scancel ${ids[*]}
TEXT
