#!/usr/bin/env bash
# Some processes of one machine without the seconds that a launcher takes to start itself:
#   bash launch/processes.sh 2 trainers/reconstruct.py config=...    or: ... 2 -m neuroimagen.cli evaluate ...
# One that fails takes the others along, and its exit code is this one's.
set -uo pipefail
n=$1; shift
while MASTER_PORT=$((20000 + RANDOM % 12000)); (: < /dev/tcp/127.0.0.1/$MASTER_PORT) 2> /dev/null; do :; done  # a free one
export MASTER_PORT MASTER_ADDR=127.0.0.1 WORLD_SIZE=$n LOCAL_WORLD_SIZE=$n
trap 'kill $(jobs -p) 2> /dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for ((rank = 0; rank < n; rank++)); do RANK=$rank LOCAL_RANK=$rank python "$@" & done
for ((rank = 0; rank < n; rank++)); do wait -n || exit $?; done
