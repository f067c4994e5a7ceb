"""Launches the kernels of ``vlm/kernels`` on torch's current stream.

Sources are compiled by NVRTC for the GPU that is there, once a machine: the result is kept under a
name that says source, compiler and architecture, in ``$XDG_CACHE_HOME/edge_perception/kernels``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import nvrtc

from edge_perception.core.cache import cache_folder
from edge_perception.gpu.cuda import get_device
from edge_perception.gpu.kernel_module import Kernel, KernelModule, compile_text
from edge_perception.vlm.kernel_arguments import Grid

_LOG = logging.getLogger(__name__)


class GpuLauncher:
    """A ``Launcher`` for one GPU; kernels are queued, nothing synchronises.

    From Hopper on a kernel of a CUDA graph may start before the one ahead of it has ended
    (``ptx.cuh``); in a chain of short kernels, which decoding is, their starts then cost next to
    nothing. Outside a graph the host's time a launch weighs more, and this way takes more of it.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._ordinal = ordinal
        self._overlapping = get_device(ordinal).compute_capability >= (9, 0)

    def launch(
        self, source: str, kernel: str, grid: Grid, threads: int, shared_bytes: int, *arguments: Any
    ) -> None:
        stream = torch.cuda.current_stream(self._ordinal).cuda_stream
        found = load_kernel(source, kernel, self._ordinal)
        found.launch(
            grid,
            (threads, 1, 1),
            stream,
            *arguments,
            shared_bytes=shared_bytes,
            overlapping=self._overlapping and torch.cuda.is_current_stream_capturing(),
        )


@cache
def load_kernel(source: str, kernel: str, ordinal: int) -> Kernel:
    """A kernel of ``vlm/kernels``; raises ``CudaError`` where it does not compile or load."""
    return _load_module(source, ordinal).kernel(kernel)


@cache
def _load_module(source: str, ordinal: int) -> KernelModule:
    device = get_device(ordinal)
    return KernelModule(
        device, source, cached_cubin(source, device.architecture, cache_folder("kernels"))
    )


def cached_cubin(source: str, architecture: str, folder: Path) -> bytes:
    """The compiled source, from ``folder`` if it was compiled before; safe among processes.

    Where ``folder`` cannot be written (a read-only root, no home), it is compiled each time.
    """
    text = read_source(source)
    key = hashlib.sha256(f"{architecture}\0{nvrtc.nvrtcVersion()}\0{text}".encode()).hexdigest()
    path = folder / f"{source}-{architecture}-{key[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    cubin = compile_text(text, source, architecture)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(cubin)
        os.replace(file.name, path)  # whole or not at all
    except OSError as error:
        _LOG.warning("compiled kernels cannot be kept in %s: %s", folder, error)
    return cubin


def read_source(source: str) -> str:
    """A source of ``vlm/kernels`` behind what all of them share."""
    folder = resources.files("edge_perception.vlm") / "kernels"
    return "".join((folder / name).read_text() for name in ("ptx.cuh", "weights.cuh", source))
