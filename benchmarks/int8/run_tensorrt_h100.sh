#!/usr/bin/env bash
# On the H100 machine, in the repository's root, with TensorRT's bundle (seven parts and rest/'s
# files, as make_trt_bundle.sh makes them) in $BUNDLE and the models of oracle.py in $MODELS:
#
#   benchmarks/int8/run_tensorrt_h100.sh build [--gpus 0 1] [--first MODEL ...]   returns at once
#   benchmarks/int8/run_tensorrt_h100.sh wait 540   wait that many seconds at most, tell what is done
#   benchmarks/int8/run_tensorrt_h100.sh measure    measure into $OUT, with the timing caches
#
# Graphs of random weights may lie in $MODELS/seeded, as seeded.py packs them. Builds go on between
# commands. A machine that went away is begun again with the caches it left: put them, as brought
# back in $OUT/store, into $WORK.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
BUNDLE=${BUNDLE:-out/tensorrt_bundle} MODELS=${MODELS:-out/int8_models} WORK=${WORK:-out/int8_store}
OUT=${OUT:-out/int8_tensorrt_h100}

mkdir -p "$MODELS" "$WORK" "$OUT"
MODELS=$(realpath "$MODELS") WORK=$(realpath "$WORK") OUT=$(realpath "$OUT")
cd "$BUNDLE" && . ./unpack.sh && cd - >/dev/null
for pack in "$MODELS"/seeded/*.npz; do
    onnx=$MODELS/$(basename "$pack" .npz).onnx
    [ ! -e "$pack" ] || [ -e "$onnx" ] || "$TRT_PYTHON" benchmarks/int8/seeded.py unpack "$pack" "$onnx"
done
export PYTHONPATH=$PWD
bench=("$TRT_PYTHON" -m benchmarks.int8.tensorrt_h100)

case ${1:?build, wait or measure} in
build) "${bench[@]}" build "$MODELS" --work "$WORK" "${@:2}" ;;
wait)
    engines=$("${bench[@]}" build "$MODELS" --work "$WORK" --dry-run | wc -l)
    for _ in $(seq "${2:-540}"); do
        ended=$(tail -qn 1 "$WORK"/*.log 2>/dev/null | grep -cE '^built|Error' || true)
        [ "$ended" -lt "$engines" ] || break
        sleep 1
    done
    tail -n 1 "$WORK"/*.log
    ;;
measure)
    "${bench[@]}" measure "$MODELS" --work "$WORK" --out "$OUT" --commit "${COMMIT:-}"
    mkdir -p "$OUT/store" && cp "$WORK"/*.cache "$WORK"/*.yaml "$WORK"/*.log "$OUT/store/"
    ;;
*) echo "build, wait or measure" >&2 && exit 2 ;;
esac
