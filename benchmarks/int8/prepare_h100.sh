#!/usr/bin/env bash
# Make the models that tensorrt_h100.py measures, here, where ONNX Runtime and torch are:
#
#   DEMO_FRAMES=TRAIN_IMAGES EXAM=EXAM_IMAGES COCO=COCO_IMAGES YOLOX=yolox_nano.onnx \
#     ULTRALYTICS=PYTHON_THAT_HAS_IT benchmarks/int8/prepare_h100.sh OUT
#
# OUT/models is what oracle.py judges by; OUT/carry is what must travel, 41 MB: the trained models
# as one archive, the random ones as seeds. On the H100 machine:
#
#   tar xJf carry/trained.tar.xz -C carry && MODELS=carry benchmarks/int8/run_tensorrt_h100.sh build
#
# VIT names the manifest of a trained ViT detector (training/vit_detector); without it one of random
# weights stands in, for its speed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: prepare_h100.sh OUT}
work=$out/work models=$out/models carry=$out/carry
mkdir -p "$work" "$models" "$carry/seeded"

cli() { python -m edge_perception.cli "$@"; }
seeded() { python benchmarks/int8/seeded.py "$@"; }
oracle() { python -m benchmarks.int8.oracle prepare "$models" --name "$@"; }
hash_of() { sha256sum "$1" | cut -d ' ' -f 1; }

trained() { # NAME MANIFEST CALIBRATION EXAM COUNT
    cli quantize-int8 "$2" --calibration "$3" --out "$work/$1.int8.onnx" || true # 1: above --max-drop
    oracle "$1" --float "$2" --int8 "$work/$1.int8.yaml" --frames "$4" --count "$5"
}

random() { # NAME EXPORTED.onnx MANIFEST CALIBRATION [FRAMES]: the loss means nothing
    seeded reseed "$2" "$work/$1.onnx"
    sed "s/^sha256:.*/sha256: $(hash_of "$work/$1.onnx")/; s/^model:.*/model: $1.onnx/" "$3" >"$work/$1.yaml"
    cli quantize-int8 "$work/$1.yaml" --calibration "$4" --frames 8 --judging-frames 1 \
        --max-drop 1000 --smooth-alpha 0
    if [ -n "${5:-}" ]; then # pixels of 0 to 255; noise is of 0 to 1
        oracle "$1" --float "$work/$1.yaml" --int8 "$work/$1.int8.yaml" --frames "$5" --count 2
    else
        oracle "$1" --float "$work/$1.onnx" --int8 "$work/$1.int8.onnx"
    fi
    for kind in float int8; do seeded pack "$models/$1.$kind.onnx" "$carry/seeded/$1.$kind.npz"; done
}

yolox_manifest() {
    python - "$YOLOX" "$COCO/.." "$work" <<'PY'
import sys
from pathlib import Path
from benchmarks.int8.accuracy import write_yolox_manifest
from benchmarks.int8.coco import CocoFolder
print(write_yolox_manifest(Path(sys.argv[1]), CocoFolder(Path(sys.argv[2])), Path(sys.argv[3])))
PY
}

random_vit() {
    python - "$work" <<'PY'
import sys
from pathlib import Path
import torch, yaml
from training.detector.export import export_onnx, manifest_of
from training.detector.model import ModelConfig, NanoDetector
torch.manual_seed(0)
config = ModelConfig(tuple("abcdefghijkl"), vit_width=192)
onnx = Path(sys.argv[1], "vit.onnx")
export_onnx(NanoDetector(config).eval(), onnx)
onnx.with_suffix(".yaml").write_text(
    yaml.safe_dump(manifest_of(config, onnx, provenance={}, accuracy={}))
)
PY
}

trained demo_yolo engines/demo_yolox_nano.yaml "$DEMO_FRAMES" "$EXAM" 16
trained yolox_nano "$(yolox_manifest)" "$COCO" "$COCO" 32
names=(demo_yolo yolox_nano)
if [ -n "${VIT:-}" ]; then
    trained vit_detector "$VIT" "$DEMO_FRAMES" "$EXAM" 16 && names+=(vit_detector)
else
    random_vit && random vit_detector "$work/vit.onnx" "$work/vit.yaml" "$DEMO_FRAMES" "$EXAM"
fi
for size in n s m; do
    cli export "yolov8$size.yaml" --out "$work/exported$size.onnx" --size 640 640 --opset 16 \
        --python "$ULTRALYTICS"
    random "yolov8$size" "$work/exported$size.onnx" "$work/exported$size.yaml" "$COCO"
done
graphs=()
for name in "${names[@]}"; do graphs+=("$name.float.onnx" "$name.int8.onnx"); done
tar cf - -C "$models" "${graphs[@]}" | xz --lzma2=preset=6,dict=64MiB >"$carry/trained.tar.xz"
cp "$models"/*.npz "$carry/"
du -sh "$carry"
