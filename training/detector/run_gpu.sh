#!/usr/bin/env bash
# Make the demo detector on one GPU: render, train, export, sit the exam.
#
#   training/detector/run_gpu.sh OUT_DIR MINUTES   start or go on, wait up to WAIT_S, copy results
#   training/detector/run_gpu.sh status            print how far it is
#
# The work goes on in the background, in WORK, when this returns early: call it again to wait on.
# Finished stages are not done twice. DATA holds the rendered sets exam, val and train: those of
# another recipe, where RENDERED names the file that says they are there. Needs torch, opencv, onnx,
# onnxruntime, pycocotools, safetensors, pyyaml and the world's renderer on PYTHONPATH. Run it from
# the repository's root.
set -euo pipefail

WORK=${WORK:-/tmp/demo_detector}
DATA=${DATA:-$WORK}
RENDERED=${RENDERED:-}         # is waited for in place of rendering
PYTHON=${PYTHON:-python3}
FRAMES=${FRAMES:-24000}        # training frames
WORKERS=${WORKERS:-16}         # rendering processes
TRAIN_SEED=${TRAIN_SEED:-1}
VAL_SEED=${VAL_SEED:-2}
EXAM_SEED=${EXAM_SEED:-3}
VAL_FRAMES=${VAL_FRAMES:-1000}
EXAM_FRAMES=${EXAM_FRAMES:-1000}
TRAIN_ARGS=${TRAIN_ARGS:-}     # more options of training.detector.train, such as --batch 64
COMMIT=${COMMIT:-unknown}
WAIT_S=${WAIT_S:-540}
NAME=${NAME:-demo_yolox_nano}
export MUJOCO_GL=${MUJOCO_GL:-egl} PYTHONUNBUFFERED=1
. training/stages.sh

render_all() {
  if [ -n "$RENDERED" ]; then
    until [ -e "$RENDERED" ]; do sleep 1; done
    return
  fi
  render_splits
}

learn() {
  # shellcheck disable=SC2086
  "$PYTHON" -m training.detector.train --train "$DATA/train" --val "$DATA/val" \
    --out "$WORK/run" --minutes "$1" $TRAIN_ARGS
}

export_and_examine() {
  local onnx=$WORK/$NAME.onnx weights=$WORK/run/ema.safetensors
  "$PYTHON" -m training.detector.export --weights "$weights" --onnx "$onnx" &&
    "$PYTHON" -m training.detector.evaluate --weights "$onnx" --data "$DATA/exam" \
      --out "$WORK/exam.json" &&
    "$PYTHON" -m training.detector.record --run "$WORK/run" --exam "$WORK/exam.json" \
      --out "$WORK/metrics.json" "train_frames=$FRAMES" \
      "train_seed=$TRAIN_SEED" "val_seed=$VAL_SEED" "exam_seed=$EXAM_SEED" "minutes=$1" \
      "options=$TRAIN_ARGS" "commit=$COMMIT" &&
    "$PYTHON" -m training.detector.export --weights "$weights" --onnx "$onnx" \
      --manifest "$WORK/$NAME.yaml" --metrics "$WORK/metrics.json"
}

pipeline() {
  stage render render_all
  stage learn learn "$1"
  stage finish export_and_examine "$1"
  echo "$(date +%T) all done"
}

collect() { # what is larger than 15 MB in pieces: NAME.part_00, NAME.part_01, ...
  mkdir -p "$1"
  for file in "$WORK/$NAME.onnx" "$WORK/$NAME.yaml" "$WORK/metrics.json" "$WORK/run/log.jsonl" \
    "$WORK/run/ema.safetensors" "$WORK/learn.log" "$WORK/render.log"; do
    if [ ! -e "$file" ]; then
      continue
    elif [ "$(stat -c %s "$file")" -lt 15000000 ]; then
      cp "$file" "$1/"
    else
      split -b 15000000 -d "$file" "$1/$(basename "$file").part_"
    fi
  done
}

main() {
  mkdir -p "$WORK"
  case ${1:?OUT_DIR or status} in
    status) status; return ;;
    pipeline) pipeline "$2"; return ;;
  esac
  start_or_wait "$1" "${2:?MINUTES}" finish
}

main "$@"
