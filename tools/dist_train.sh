#!/usr/bin/env bash
# Train on several GPUs, or several CPU processes, of one or more machines:
#   tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
# On several machines run it on each, with NNODES, NODE_RANK, MASTER_ADDR and
# PORT set.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1
processes=$2

# torchrun hands these on to the processes, which save and leave.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$processes" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
