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

set -m # or the processes would not hear Ctrl-C
"${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$processes" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}" &
torchrun=$!

# torchrun ends with 1 when it is told to leave, whatever its processes do, and
# older ones die of SIGUSR1. 75 says that the run has saved its state.
told=
trap 'told=1; kill -TERM "$torchrun"' TERM USR1
trap 'kill -INT "$torchrun"' INT
code=0
wait "$torchrun" || code=$?
while kill -0 "$torchrun" 2>/dev/null; do # a signal ended the wait
    code=0
    wait "$torchrun" || code=$?
done
if [ -n "$told" ] && [ "$code" -ne 0 ]; then
    code=75
fi
exit "$code"
