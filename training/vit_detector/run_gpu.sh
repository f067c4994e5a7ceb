#!/usr/bin/env bash
# Train the plain-ViT detector (training/detector/vit.py) on one GPU, by the demo detector's recipe:
# the same rendered frames, augmentation, loss, exam, export and manifest.
#
#   training/vit_detector/run_gpu.sh OUT_DIR MINUTES    or: training/vit_detector/run_gpu.sh status
#
# See training/detector/run_gpu.sh for the environment it takes, DATA and RENDERED above all: the
# frames are those of the other recipes. Needs transformers, too.
set -euo pipefail
cd "$(dirname "$0")/../.."
export NAME=${NAME:-demo_vit} WORK=${WORK:-/tmp/vit_detector}
export TRAIN_ARGS="--vit-width 192 --vit-depth 12 --rate 1e-3 --evaluate-every 400 ${TRAIN_ARGS:-}"
exec bash training/detector/run_gpu.sh "$@"
