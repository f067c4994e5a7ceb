"""The manifest of a model: everything needed to run it and to trust it, never its file's name.

A manifest is a YAML file beside the model. This module turns the parsed mapping into a validated
``Manifest``; reading the file and checking the model's hash is ``backends/store.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar

from edge_perception.errors import ManifestError

SCHEMA = 1

# Head families, by the raw output that their decoder reads (see detection/decoders.py and, for
# "classifier", detection/classifier.py).
HEADS = ("yolov5", "yolov8", "yolo_end_to_end", "yolox", "rtdetr", "detr", "classifier")
PAD_ALIGNS = ("center", "top_left", "stretch")
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64")

# What a key must hold, by the annotation of its field (a string, as annotations are here).
_SCALAR_TYPES: Mapping[object, Any] = {"str": str, "int": int, "float": (int, float)}

T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a model's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sides = self.shape if isinstance(self.shape, tuple) else ()
        if not sides or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ManifestError(
                f"tensor {self.name!r} has a bad shape",
                expected="positive whole sides",
                got=self.shape,
            )
        _check_choice(f"dtype of tensor {self.name!r}", self.dtype, DTYPES)


@dataclass(frozen=True)
class Preprocessing:
    """From source pixels to the input tensor: letterbox, then ``(value * scale - mean) / std``.

    ``height`` and ``width`` in px; ``color`` is the channel order the network wants; ``mean`` and
    ``std`` are per channel in that order, after ``scale`` (1/255 for a network fed 0..1).
    ``pad_value`` is the grey (0..255) around the picture; ``pad_align`` says where the picture
    lies, or "stretch" for no padding, at the price of the picture's aspect.
    """

    height: int
    width: int
    color: str = "rgb"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int = 114
    pad_align: str = "center"
    layout: str = "nchw"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            if not 1 <= getattr(self, side) <= 8192:
                raise ManifestError(
                    f"preprocessing.{side}", expected="1 to 8192 px", got=getattr(self, side)
                )
        _check_choice("preprocessing.color", self.color, ("rgb", "bgr"))
        _check_choice("preprocessing.pad_align", self.pad_align, PAD_ALIGNS)
        _check_choice("preprocessing.layout", self.layout, ("nchw", "nhwc"))
        _check_choice("preprocessing.dtype", self.dtype, ("float32", "float16", "uint8"))
        if not 0 <= self.pad_value <= 255:
            raise ManifestError("preprocessing.pad_value", expected="0 to 255", got=self.pad_value)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise ManifestError(
                "preprocessing.mean and std", expected="three values each, std not 0"
            )
        if not all(_is_finite(value) for value in (self.scale, *self.mean, *self.std)):
            raise ManifestError(
                "preprocessing.scale, mean and std",
                expected="finite numbers",
                got=(self.scale, self.mean, self.std),
            )

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor for one image."""
        if self.layout == "nchw":
            return (1, 3, self.height, self.width)
        return (1, self.height, self.width, 3)


@dataclass(frozen=True)
class Manifest:
    """A validated manifest.

    ``model`` is the model's path relative to the manifest, ``sha256`` the hash of its bytes,
    ``provenance`` and ``accuracy`` are free-form facts for people and reports.
    """

    name: str
    model: str
    sha256: str
    license: str
    source: str
    head: str
    class_names: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    precision: str = "float32"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("head", self.head, HEADS)
        _check_choice("precision", self.precision, ("float32", "float16", "int8"))
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ManifestError("sha256", expected="64 lower-case hex digits", got=self.sha256)
        if not self.outputs:
            raise ManifestError("outputs", expected="at least one tensor", got=self.outputs)
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ManifestError("class_names", expected="distinct names", got=self.class_names)
        if len(self.inputs) != 1:
            raise ManifestError("inputs", expected="exactly one image tensor", got=self.inputs)
        if self.inputs[0].shape != self.preprocessing.input_shape:
            raise ManifestError(
                f"input {self.inputs[0].name!r} and preprocessing disagree",
                expected=f"shape {self.preprocessing.input_shape}",
                got=self.inputs[0].shape,
            )

    def check_tensors(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """Raise ``ManifestError`` unless these, a loaded model's, are the tensors promised."""
        for side, found in (("inputs", inputs), ("outputs", outputs)):
            promised = getattr(self, side)
            if promised != found:
                raise ManifestError(
                    f"manifest {self.name!r} and its model disagree on {side}",
                    expected=f"{promised}",
                    got=found,
                    mend="Export the model again together with its manifest.",
                )


def parse_manifest(mapping: object) -> Manifest:
    """Turn the mapping read from a manifest file into a ``Manifest``.

    Raises:
        ManifestError: not a mapping, another schema, a key missing, unknown or of a wrong type.
    """
    values = dict(_as_mapping("manifest", mapping))
    schema = values.pop("schema", None)
    if schema != SCHEMA:
        raise ManifestError(
            "manifest schema", expected=str(SCHEMA), got=schema, mend="Export the model again."
        )
    values["inputs"] = _tensors("inputs", values.get("inputs"))
    values["outputs"] = _tensors("outputs", values.get("outputs"))
    values["preprocessing"] = _build(Preprocessing, "preprocessing", values.get("preprocessing"))
    names = values.get("class_names")
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ManifestError("class_names", expected="a list of strings", got=names)
    values["class_names"] = tuple(names)
    for facts in ("provenance", "accuracy"):
        values[facts] = MappingProxyType(dict(_as_mapping(facts, values.get(facts, {}))))
    return _build(Manifest, "manifest", values)


def _tensors(key: str, value: object) -> tuple[TensorSpec, ...]:
    if not isinstance(value, (list, tuple)):
        raise ManifestError(key, expected="a list of tensors", got=value)
    return tuple(_build(TensorSpec, f"{key}[{i}]", item) for i, item in enumerate(value))


def _build(kind: type[T], where: str, value: object) -> T:
    """Construct a dataclass from a mapping, naming keys that are missing, unknown or mistyped."""
    given: dict[str, Any] = dict(_as_mapping(where, value))
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ManifestError(
            f"{where} has unknown keys", expected=f"only {', '.join(known)}", got=unknown
        )
    for key, item in given.items():
        if isinstance(item, list):
            given[key] = tuple(item)
    _check_scalars(kind, where, given)
    try:
        return kind(**given)
    except TypeError as error:
        raise ManifestError(
            f"{where} is incomplete or has a value of a wrong type: {error}"
        ) from error


def _check_scalars(kind: type[Any], where: str, given: Mapping[str, Any]) -> None:
    for known in fields(kind):
        wanted = _SCALAR_TYPES.get(known.type)
        if wanted is None or known.name not in given:
            continue
        value = given[known.name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ManifestError(f"{where}.{known.name}", expected=f"type {known.type}", got=value)


def _is_finite(value: object) -> bool:
    """Whether a value is a number that float32 can hold with room to spare."""
    return isinstance(value, (int, float)) and -1e9 < value < 1e9


def _as_mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ManifestError(where, expected="a mapping", got=value)
    return value


def _check_choice(what: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ManifestError(what, expected=f"one of {', '.join(choices)}", got=value)
