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

render() { # FOLDER SPLIT FRAMES SEED VIEWS_PER_SCENE; goes on where it was interrupted
  "$PYTHON" -m edge_perception.cli world dataset --split "$2" --frames "$3" --seed "$4" \
    --views-per-scene "$5" --workers "$WORKERS" --out "$DATA/$1"
}

render_all() {
  if [ -n "$RENDERED" ]; then
    until [ -e "$RENDERED" ]; do sleep 1; done
    return
  fi
  # Validation sees new scenes of the training split: the held-out split is for the exam alone.
  render exam held-out "$EXAM_FRAMES" "$EXAM_SEED" 4 &&
    render val train "$VAL_FRAMES" "$VAL_SEED" 4 &&
    render train train "$FRAMES" "$TRAIN_SEED" 6
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

stage() { # NAME COMMAND...
  [ -e "$WORK/$1.done" ] && return
  echo "$(date +%T) $1"
  if ("${@:2}") >>"$WORK/$1.log" 2>&1; then
    touch "$WORK/$1.done"
  else
    touch "$WORK/failed"
    echo "$(date +%T) $1 failed, see $1.log"
    exit 1
  fi
}

pipeline() {
  stage render render_all
  stage learn learn "$1"
  stage finish export_and_examine "$1"
  echo "$(date +%T) all done"
}

running() { [ -e "$WORK/pid" ] && kill -0 "$(cat "$WORK/pid")" 2>/dev/null; }

status() {
  [ -e "$WORK/pipeline.log" ] && tail -n 4 "$WORK/pipeline.log"
  echo "images: $(find "$DATA" -name '*.jpg' | wc -l)"
  [ -e "$WORK/run/log.jsonl" ] && tail -n 2 "$WORK/run/log.jsonl" | cut -c 1-400
  if [ -e "$WORK/failed" ]; then tail -n 25 "$(ls -t "$WORK"/*.log | sed -n '/pipeline/!p' | head -1)"; fi
  command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader
  return 0
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
  if ! running && [ ! -e "$WORK/finish.done" ]; then
    rm -f "$WORK/failed"
    setsid nohup bash "$0" pipeline "${2:?MINUTES}" >>"$WORK/pipeline.log" 2>&1 </dev/null &
    echo $! >"$WORK/pid"
  fi
  local began=$SECONDS
  while running && [ $((SECONDS - began)) -lt "$WAIT_S" ]; do
    sleep 5
    if (((SECONDS - began) % 60 < 5)); then status; fi
  done
  status
  collect "$1"
  [ ! -e "$WORK/failed" ]
}

main "$@"
