#!/usr/bin/env bash
# One node of a Ray cluster for samplers, without Slurm (docs/clusters.md). The trainer runs on the head node.
#
#   launch/ray_node.sh head   IP[:PORT]    on the trainer's node: makes ray_token, which every other node needs
#   launch/ray_node.sh worker IP[:PORT]    on each sampler's node, IP being the head's
#   launch/ray_node.sh stop
set -euo pipefail
cd "$(dirname "$0")/.."
BIN="${VENV:-.venv}/bin"
ROLE="${1:-}"
ADDRESS="${2:-127.0.0.1}"
IP="${ADDRESS%%:*}"
PORT="$([[ "$ADDRESS" == *:* ]] && echo "${ADDRESS##*:}" || echo 6379)"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$PWD/ray_token}" RAY_USAGE_STATS_ENABLED=0
case "$ROLE" in
    head)
        [[ -s "$RAY_AUTH_TOKEN_PATH" ]] || (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
        "$BIN/ray" start --head --node-ip-address="$IP" --port="$PORT" --num-gpus=0 \
            --include-dashboard=false --disable-usage-stats
        echo "copy $RAY_AUTH_TOKEN_PATH to the other nodes; on this one, train with"
        echo "  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH $BIN/python -m rlhf.train rollouts=vllm" \
            "rollouts.pool.placement=ray rollouts.pool.ray_address=$IP:$PORT rollouts.pool.workers=N ..."
        ;;
    worker)
        [[ -s "$RAY_AUTH_TOKEN_PATH" ]] || { echo "expected the head's token at $RAY_AUTH_TOKEN_PATH, found none" >&2; exit 2; }
        "$BIN/ray" start --address="$IP:$PORT" ${NODE_IP:+--node-ip-address="$NODE_IP"}
        ;;
    stop)
        "$BIN/ray" stop
        ;;
    *)
        sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
