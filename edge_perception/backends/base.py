"""The one protocol every runtime answers to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from edge_perception.core.manifest import TensorSpec

Tensor = npt.NDArray[Any]


class Backend(Protocol):
    """A loaded model with fixed input and output shapes.

    ``infer`` takes C-contiguous arrays as ``inputs`` says, in that order, and returns arrays as
    ``outputs`` says; it blocks until they are complete. The arrays it returns stay valid until
    the next call. Not safe for concurrent calls; one thread owns a backend. ``on_cpu`` tells
    whether inference takes the CPU's cores.
    """

    name: str
    on_cpu: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run the model once."""

    def close(self) -> None:
        """Release the model; a later ``infer`` raises ``EngineError``. May be called twice."""
