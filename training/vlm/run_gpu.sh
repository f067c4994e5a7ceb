#!/usr/bin/env bash
# Make the embedded vision-language model on one GPU: render, prepare, train, export, quantise, sit
# the exam. What was learnt is kept every minute: a run that was cut off goes on from there.
#
#   training/vlm/run_gpu.sh OUT_DIR MINUTES   start or go on, wait up to WAIT_S, copy results
#   training/vlm/run_gpu.sh render            only render into DATA and prepare, and return
#   training/vlm/run_gpu.sh status            print how far it is
#
# The work goes on in the background, in WORK, when this returns early: call it again to wait on.
# Finished stages are not done twice. DATA holds the rendered sets (exam, val, train), which the
# detectors' recipes can train on as well. Needs torch, transformers, tokenizers, opencv, pillow,
# safetensors and the world's renderer on PYTHONPATH. Run it from the repository's root.
set -euo pipefail

WORK=${WORK:-/tmp/demo_vlm}
DATA=${DATA:-$WORK/data}
PYTHON=${PYTHON:-python3}
FRAMES=${FRAMES:-24000}        # training frames
WORKERS=${WORKERS:-16}         # rendering and loading processes
TRAIN_SEED=${TRAIN_SEED:-1}
VAL_SEED=${VAL_SEED:-2}
EXAM_SEED=${EXAM_SEED:-3}
VAL_FRAMES=${VAL_FRAMES:-1000}
EXAM_FRAMES=${EXAM_FRAMES:-1000}
TRAIN_ARGS=${TRAIN_ARGS:-}     # more options of training.vlm.train, such as --batch 256
QUANTISE_ARGS=${QUANTISE_ARGS:-} # of training.vlm.quantise, such as --pictures 32
EXAM_ARGS=${EXAM_ARGS:-}       # of benchmarks.vlm.accuracy, such as --onnx-most 0
COMMIT=${COMMIT:-unknown}
WAIT_S=${WAIT_S:-540}
NAME=${NAME:-demo_vlm}
export PYTHONUNBUFFERED=1
. training/stages.sh

prepare() {
  "$PYTHON" -m training.vlm.prepare "$DATA/train" --out "$WORK/prepared" --workers "$WORKERS"
}

learn() {
  local init=()
  [ -e "$WORK/run/learner.safetensors" ] && init=(--init "$WORK/run/learner.safetensors")
  # shellcheck disable=SC2086
  "$PYTHON" -m training.vlm.train --train "$WORK/prepared" --val "$DATA/val" --out "$WORK/run" \
    --minutes "$1" "${init[@]}" $TRAIN_ARGS
}

export_float() { "$PYTHON" -m training.vlm.export --run "$WORK/run" --out "$WORK/$NAME-fp16"; }

quantise() {
  # shellcheck disable=SC2086
  "$PYTHON" -m training.vlm.quantise --model "$WORK/$NAME-fp16" --data "$DATA/train" \
    --out "$WORK/$NAME" $QUANTISE_ARGS
}

examine() {
  # shellcheck disable=SC2086
  "$PYTHON" -m benchmarks.vlm.accuracy --data "$DATA/exam" --fp16 "$WORK/$NAME-fp16" \
    --awq "$WORK/$NAME-awq" --rtn "$WORK/$NAME-rtn" --commit "$COMMIT" \
    --out "$WORK/accuracy.json" $EXAM_ARGS
}

pipeline() {
  stage render render_splits
  stage prepare prepare
  stage learn learn "$1"
  stage export export_float
  stage quantise quantise
  stage examine examine
  echo "$(date +%T) all done"
}

collect() {
  mkdir -p "$1"
  # A run that is cut off while it learns still brings back what it has learnt.
  if [ -e "$WORK/run/learner.safetensors" ] && [ ! -e "$WORK/export.done" ]; then
    export_float >>"$WORK/export.log" 2>&1 || true
  fi
  cp "$WORK"/*.log "$1" 2>/dev/null || true
  for file in accuracy.json run/log.jsonl run/tokenizer.json; do
    if [ -e "$WORK/$file" ]; then cp "$WORK/$file" "$1"; fi
  done
  for folder in "$NAME-fp16" "$NAME-awq" "$NAME-rtn"; do
    if [ -e "$WORK/$folder" ]; then cp -r "$WORK/$folder" "$1"; fi
  done
}

main() {
  mkdir -p "$WORK"
  case ${1:?OUT_DIR, render or status} in
    status) status; return ;;
    render) stage render render_splits; stage prepare prepare; return ;;
    pipeline) pipeline "$2"; return ;;
  esac
  start_or_wait "$1" "${2:?MINUTES}" examine
}

main "$@"
