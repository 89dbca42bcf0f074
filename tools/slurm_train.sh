#!/usr/bin/env bash
# Train on a Slurm cluster:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS="..."] [REQUEUE=300] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# With REQUEUE it is submitted as a batch job that is told to leave that many
# seconds before its time is over, saves, and is queued again until it is done.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# Several options in one variable: split on purpose.
read -ra srun_args <<<"${SRUN_ARGS:-}"
resources=(
    --partition "$partition"
    --job-name "$job_name"
    --gres "gpu:$gpus_per_node"
    --ntasks "$gpus"
    --ntasks-per-node "$gpus_per_node"
    --cpus-per-task "${CPUS_PER_TASK:-5}"
    ${srun_args[@]+"${srun_args[@]}"}
)

if [ -n "${REQUEUE:-}" ] && [ -z "${SLURM_JOB_ID:-}" ]; then
    exec sbatch "${resources[@]}" \
        --requeue --open-mode append --signal "USR1@$REQUEUE" \
        --wrap "$(printf '%q ' "$0" "$@")"
fi

resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    resume=(--resume)
fi
code=0
srun "${resources[@]}" --kill-on-bad-exit=1 \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" \
    --launcher slurm "${@:4}" ${resume[@]+"${resume[@]}"} || code=$?
# 75: the run was told to leave and has saved its state.
if [ -n "${REQUEUE:-}" ] && [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
