"""CUDA C++ sources to launchable kernels, compiled at run time for the GPU that is there."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import resources
from typing import Any

from cuda.bindings import driver, nvrtc

from edge_perception.errors import CudaError
from edge_perception.gpu.cuda import Device, checked, get_device

Grid = tuple[int, int, int]


class Kernel:
    """One ``extern "C"`` kernel of a compiled source."""

    def __init__(self, name: str, function: Any) -> None:
        self.name = name
        self._function = function
        self._shared_limit = 32 * 1024  # with what the kernel has of its own, below 48 KiB

    def launch(
        self,
        grid: Grid,
        block: Grid,
        stream: int,
        *arguments: Any,
        shared_bytes: int = 0,
        overlapping: bool = False,
    ) -> None:
        """Queue the kernel on a stream.

        Args:
            grid: blocks along x, y, z.
            block: threads along x, y, z.
            stream: handle.
            arguments: ``ctypes`` values laid out exactly as the kernel's parameters; they are
                copied before this returns.
            shared_bytes: dynamic shared memory of a block, up to what the GPU has (99 KiB or more).
            overlapping: the kernel may start while the one before it on the stream still runs
                ("programmatic dependent launch", from Hopper on); it waits for it by itself.

        Raises:
            CudaError: the launch was refused, or an earlier failure was sticky.
        """
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        where = ctypes.addressof(addresses)
        self._allow_shared(shared_bytes)
        if overlapping:
            config = _overlapping_launch(grid, block, stream, shared_bytes)
            result = driver.cuLaunchKernelEx(config, self._function, where, 0)
        else:
            result = driver.cuLaunchKernel(
                self._function, *grid, *block, shared_bytes, stream, where, 0
            )
        checked(result, f"launching {self.name}")

    def _allow_shared(self, shared_bytes: int) -> None:
        """For more than 48 KiB of shared memory in all a kernel has to be told once."""
        if shared_bytes <= self._shared_limit:
            return
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        result = driver.cuFuncSetAttribute(self._function, attribute, shared_bytes)
        checked(result, f"giving {self.name} {shared_bytes} bytes of shared memory")
        self._shared_limit = shared_bytes


def _overlapping_launch(
    grid: Grid, block: Grid, stream: int, shared_bytes: int
) -> driver.CUlaunchConfig:
    attribute = driver.CUlaunchAttribute()
    which = driver.CUlaunchAttributeID
    attribute.id = which.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes = shared_bytes
    config.hStream = driver.CUstream(stream)
    config.attrs, config.numAttrs = [attribute], 1
    return config


class KernelModule:
    """Compiled kernels, loaded into the primary context for the process's life."""

    def __init__(self, device: Device, name: str, cubin: bytes) -> None:
        device.make_current()
        self._cubin = cubin
        self._module = checked(driver.cuModuleLoadData(cubin), f"loading {name}")

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by name."""
        doing = f"looking for kernel {name}"
        return Kernel(name, checked(driver.cuModuleGetFunction(self._module, name.encode()), doing))


@cache
def load_module(source_name: str, ordinal: int = 0) -> KernelModule:
    """Compile (about 0.3 s) and load a source of ``gpu/kernels`` once a process."""
    device = get_device(ordinal)
    return KernelModule(device, source_name, compile_source(source_name, device.architecture))


def read_source(source_name: str) -> str:
    """Return the text of a source in ``gpu/kernels``."""
    return (resources.files(__package__) / "kernels" / source_name).read_text()


def compile_source(source_name: str, architecture: str) -> bytes:
    """Compile a source of ``gpu/kernels``; see ``compile_text``."""
    return compile_text(read_source(source_name), source_name, architecture)


def compile_text(text: str, name: str, architecture: str) -> bytes:
    """Compile CUDA C++ with NVRTC; returns a cubin for ``architecture`` (``sm_90``).

    Raises:
        CudaError: the compiler refused; the error holds its log.
    """
    try:
        program = _compiled(nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []))
    except RuntimeError as error:  # cuda-bindings when libnvrtc is missing
        raise CudaError(
            f"no CUDA run-time compiler: {error}", mend="Install requirements/gpu.txt."
        ) from error
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"-lineinfo"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CudaError(f"{name} does not compile", got=_log(program))
    cubin = bytes(_compiled(nvrtc.nvrtcGetCUBINSize(program)))
    _compiled(nvrtc.nvrtcGetCUBIN(program, cubin))
    _compiled(nvrtc.nvrtcDestroyProgram(program))
    return cubin


def _log(program: Any) -> str:
    log = bytes(_compiled(nvrtc.nvrtcGetProgramLogSize(program)))
    _compiled(nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0").decode("utf-8", "replace")


def _compiled(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CudaError("the CUDA run-time compiler failed", got=status.name)
    return values[0] if values else None
