# The stages of a recipe, run in the background so that whoever started them may be cut off.
#
# Sourced by the recipes' run_gpu.sh, which set WORK, DATA, NAME and WAIT_S and define the functions
# `pipeline MINUTES`, which runs the stages, and `collect OUT_DIR`, which copies what they made.
# A stage that is done leaves NAME.done in WORK and is not done again.
# shellcheck shell=bash

render() { # FOLDER SPLIT FRAMES SEED VIEWS_PER_SCENE; goes on where it was interrupted
  "$PYTHON" -m edge_perception.cli world dataset --split "$2" --frames "$3" --seed "$4" \
    --views-per-scene "$5" --workers "$WORKERS" --out "$DATA/$1"
}

render_splits() {
  # Validation sees new scenes of the training split: the held-out split is for the exam alone.
  render exam held-out "$EXAM_FRAMES" "$EXAM_SEED" 4 &&
    render val train "$VAL_FRAMES" "$VAL_SEED" 4 &&
    render train train "$FRAMES" "$TRAIN_SEED" 6
}

stage() { # NAME COMMAND...
  [ -e "$WORK/$1.done" ] && return 0
  echo "$(date +%T) $1"
  if ("${@:2}") >>"$WORK/$1.log" 2>&1; then
    touch "$WORK/$1.done"
  else
    touch "$WORK/failed"
    echo "$(date +%T) $1 failed, see $1.log"
    exit 1
  fi
}

running() { [ -e "$WORK/pid" ] && kill -0 "$(cat "$WORK/pid")" 2>/dev/null; }

status() {
  [ -e "$WORK/pipeline.log" ] && tail -n 5 "$WORK/pipeline.log"
  [ -e "$DATA" ] && echo "images: $(find "$DATA" -name '*.jpg' | wc -l)"
  [ -e "$WORK/run/log.jsonl" ] && tail -n 2 "$WORK/run/log.jsonl" | cut -c 1-400
  if [ -e "$WORK/failed" ]; then tail -n 25 "$(ls -t "$WORK"/*.log | sed -n '/pipeline/!p' | head -1)"; fi
  command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader
  return 0
}

start_or_wait() { # OUT_DIR MINUTES LAST_STAGE; fails if a stage did
  if ! running && [ ! -e "$WORK/$3.done" ]; then
    rm -f "$WORK/failed"
    setsid nohup bash "$0" pipeline "$2" >>"$WORK/pipeline.log" 2>&1 </dev/null &
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
