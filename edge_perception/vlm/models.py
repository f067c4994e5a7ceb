"""Opening a vision-language model by what its files say of it.

A directory is a transformers checkpoint and runs on torch. A YAML file is a manifest, and its
``runtime`` says what runs the model. Each runtime is imported when it is needed: a robot whose
model runs on ONNX Runtime has no torch.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from edge_perception.errors import ManifestError
from edge_perception.vlm.answering import VisionLanguageModel
from edge_perception.vlm.model_choice import ModelChoice

RUNTIMES = ("onnxruntime",)


def open_model(choice: ModelChoice) -> VisionLanguageModel:
    """Open a model; the caller closes it.

    Raises:
        ManifestError: a manifest that is missing, malformed, or of an unknown runtime.
        CheckpointError: a checkpoint that is damaged, or of a family that nothing here can run.
        DeviceMemoryError: the device has no memory for it.
    """
    if choice.path.is_dir():
        return _open_checkpoint(choice)
    runtime = _runtime_of(choice.path)
    if runtime != "onnxruntime":
        raise ManifestError(
            f"manifest {str(choice.path)!r}: runtime",
            expected=" or ".join(RUNTIMES),
            got=runtime,
        )
    from edge_perception.vlm.onnx_model import open_onnx_model

    return open_onnx_model(choice.path, threads=choice.threads, vision_int8=choice.vision_int8)


def _open_checkpoint(choice: ModelChoice) -> VisionLanguageModel:
    try:
        from edge_perception.vlm.transformers_model import open_checkpoint
    except ImportError as error:
        raise ManifestError(
            f"a transformers checkpoint needs torch ({error})", mend="scripts/setup.sh --extra vlm."
        ) from error
    return open_checkpoint(choice)


def _runtime_of(path: Path) -> object:
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"cannot read manifest {str(path)!r}: {error}") from error
    return mapping.get("runtime") if isinstance(mapping, dict) else mapping
