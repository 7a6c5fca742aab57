#!/usr/bin/env bash
# Trains an RWKV-7 model that a model configuration describes. Edit the values below, or set them in the environment:
#
#   DATA_FILE=data/train MODEL_CONFIG=0.4b MODEL_PATH=rwkv7-0.4b.pth bash examples/train_rwkv7_multi_gpu.sh
#
# One process computes, on the processor's cores or with EXTRA="--device cuda" on a GPU. DEVICES=N keeps the batch, and so the result, of a run on N devices:
# it adds up N micro-batches per step, one after the other. See TRAIN_SCRIPT_USAGE.md.
set -euo pipefail

# ---- what to train ----

# 1. short name          MODEL_CONFIG=0.1b
# 2. full name           MODEL_CONFIG=rwkv7-0.1b
# 3. file                MODEL_CONFIG=./configs/my_model.json
MODEL_CONFIG="${MODEL_CONFIG:-0.1b}"
DEFAULT_ARCH="${DEFAULT_ARCH:-rwkv7}"      # completes a short name

MODEL_PATH="${MODEL_PATH:-}"               # weights; empty = model_file of the configuration
FRESH="${FRESH:-0}"                        # 1 = start from new weights, made once in PROJ_DIR

# ---- on what, and where to ----

DATA_FILE="${DATA_FILE:-data/train}"       # made by `rwkvtune prepare`, without .bin and .idx
PROJ_DIR="${PROJ_DIR:-out}"                # the same command goes on with what is there
DEVICES="${DEVICES:-1}"
PRECISION="${PRECISION:-bf16}"             # of the weights written, and of what a GPU computes
EXTRA="${EXTRA:-}"                         # more flags, e.g. EXTRA="--lr_init 1e-4 --dry_run"
PYTHON="${PYTHON:-python}"

# ---- no need to edit below ----

train() {
    # EXTRA is several words on purpose.
    # shellcheck disable=SC2086
    "$PYTHON" -m rwkvtune.cli.train --model_config "$MODEL_CONFIG" --default_arch "$DEFAULT_ARCH" --load_model "$MODEL_PATH" \
        --data_file "$DATA_FILE" --proj_dir "$PROJ_DIR" --devices "$DEVICES" --accumulate_grad_batches "$DEVICES" \
        --precision "$PRECISION" --grad_cp 1 $EXTRA "$@"
}

if [ "$FRESH" = 1 ] && [ ! -e "$PROJ_DIR/rwkv-init.pth" ]; then
    train --train_stage 1
fi
train --train_stage 3
