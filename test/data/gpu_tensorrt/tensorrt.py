"""In TensorRT's place, on a real GPU: the tiny YOLOv8 as one CUDA kernel on the caller's stream.

Of the fake TensorRT everything but the running: device addresses are device addresses here, and
what is queued may be captured. To be found before the real module, on ``PYTHONPATH``.
"""

from __future__ import annotations

import ctypes
from typing import Any

from fake_tensorrt import Context, fake_tensorrt
from tiny_models import CELL_PX, SIDE_PX

from edge_perception.gpu.cuda import get_device
from edge_perception.gpu.kernel_module import KernelModule, compile_text

_fake = fake_tensorrt("10.3.0")
globals().update({name: value for name, value in vars(_fake).items() if name[0] != "_"})
__version__ = _fake.__version__

_CELLS = SIDE_PX // CELL_PX
_SOURCE = f"""
constexpr int kSide = {SIDE_PX}, kCell = {CELL_PX}, kAlong = {_CELLS}, kCells = {_CELLS**2};

extern "C" __global__ void tiny_yolov8(float const* images, float* output) {{
  int const cell = threadIdx.x, x = cell % kAlong * kCell, y = cell / kAlong * kCell;
  float const box[] = {{x + kCell / 2.f, y + kCell / 2.f, 2.f * kCell, 2.f * kCell}};
  for (int side = 0; side < 4; ++side) output[side * kCells + cell] = box[side];
  for (int channel = 0; channel < 3; ++channel) {{
    float sum = 0;
    for (int pixel = 0; pixel < kCell * kCell; ++pixel) {{
      int const row = y + pixel / kCell, column = x + pixel % kCell;
      sum += images[(channel * kSide + row) * kSide + column];
    }}
    output[(4 + channel) * kCells + cell] = sum / (kCell * kCell);
  }}
}}
"""


class KernelContext(Context):
    """Queues the kernel on what is bound."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        device = get_device()
        cubin = compile_text(_SOURCE, "tiny_yolov8.cu", device.architecture)
        self._module = KernelModule(device, "tiny_yolov8", cubin)
        self._kernel = self._module.kernel("tiny_yolov8")

    def execute_async_v3(self, stream: int) -> bool:
        addresses = [ctypes.c_void_p(self._addresses[name]) for name in ("images", "output")]
        self._kernel.launch((1, 1, 1), (_CELLS**2, 1, 1), stream, *addresses)
        return True


class Runtime(_fake.Runtime):
    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        engine = super().deserialize_cuda_engine(plan)
        if engine is not None:
            engine.create_execution_context = lambda: KernelContext(engine)
        return engine
