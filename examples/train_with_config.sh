#!/usr/bin/env bash
# Trains a model named by its size:  bash examples/train_with_config.sh SIZE [WEIGHTS]
#
#   bash examples/train_with_config.sh 0.1b                          new weights, or the ones already in PROJ_DIR
#   bash examples/train_with_config.sh 0.4b rwkv7-0.4b.pth           from released weights
#
# SIZE is anything --model_config takes. DATA_FILE, PROJ_DIR and EXTRA are those of train_rwkv7_multi_gpu.sh.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 SIZE [WEIGHTS]      (SIZE: 0.1b, 0.4b, 1.5b, 2.9b, 7.2b, or a configuration file)" >&2
    exit 2
fi
name="$(basename "$1" .json)"
export MODEL_CONFIG="$1" MODEL_PATH="${2:-}" PROJ_DIR="${PROJ_DIR:-out-$name}"
if [ $# -eq 1 ]; then
    export FRESH="${FRESH:-1}"
fi
exec bash "$(dirname "$0")/train_rwkv7_multi_gpu.sh"
