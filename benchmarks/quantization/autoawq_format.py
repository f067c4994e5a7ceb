"""AutoAWQ's own layers against our reader and writer, both ways.

    pip download --no-deps --no-binary :all: autoawq==0.2.9 && tar xzf autoawq-0.2.9.tar.gz
    python benchmarks/quantization/autoawq_format.py --autoawq autoawq-0.2.9 --out FILE.json

Their package as a whole wants a transformers of 2024; their layer classes need torch alone, and
are loaded without the rest. For each layout: what they pack from a rounded weight, we read to the
same codes, scales and zero points; what we pack is theirs tensor by tensor; for gemm, their
forward on our tensors gives our layer's output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_perception.core.machine import describe_code, describe_machine, utc_now
from edge_perception.quantization.encoding import round_alone
from edge_perception.quantization.grid import WeightFormat
from edge_perception.vlm.loaders import layouts
from edge_perception.vlm.loaders.layouts import Codes
from edge_perception.vlm.packed_linear import PackedLinear, PackedWeight

ROWS, COLUMNS = 256, 512


def import_layers(source: Path) -> dict[str, Any]:
    """Their layer classes, imported past their package's ``__init__``."""
    for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")))]
        sys.modules[name] = package
    return {
        "gemm": importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM,
        "gemv": importlib.import_module("awq.modules.linear.gemv").WQLinear_GEMV,
        "gemv_fast": importlib.import_module("awq.modules.linear.gemv_fast").WQLinear_GEMVFast,
        "marlin": importlib.import_module("awq.modules.linear.marlin").WQLinear_Marlin,
    }


def rounded_layer(group_size: int, symmetric: bool) -> tuple[nn.Linear, Codes]:
    """A linear layer whose weights lie on a grid, and that grid's codes."""
    torch.manual_seed(group_size)
    form = WeightFormat(4, group_size, symmetric)
    made = round_alone(torch.randn(ROWS, COLUMNS), form)
    linear = nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = made.grid.dequantize(made.codes)
    return linear, Codes(made.codes, made.grid.scales.half(), made.grid.zeros.to(torch.uint8))


def theirs_of(kind: Any, layout: str, linear: nn.Linear, codes: Codes, group: int) -> nn.Module:
    """Their layer packed from ``linear``; gemm wants scales and zeros by group first."""
    scales, zeros = codes.scales, codes.zeros.float()
    if layout == "gemm":
        scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
    if layout == "marlin":
        return kind.from_linear(linear, 4, group, scales=scales.float(), zeros=None)
    return kind.from_linear(linear, 4, group, scales=scales.float(), zeros=zeros)


def check(kind: Any, layout: str, group: int) -> dict[str, Any]:
    """Both ways for one layout and group size."""
    linear, codes = rounded_layer(group, symmetric=layout == "marlin")
    layer = theirs_of(kind, layout, linear, codes, group)
    tensors = {k: v for k, v in layer.state_dict().items() if k in ("qweight", "qzeros", "scales")}
    if layout == "gemm":
        read, ours = layouts.read_awq_gemm(**tensors), layouts.write_awq_gemm(codes)
    elif layout == "gemv":
        read = layouts.read_awq_gemv(**tensors, group_size=group)
        ours = layouts.write_awq_gemv(codes)
    elif layout == "gemv_fast":
        read = layouts.read_awq_fast(
            tensors["qweight"], tensors["scales"], tensors["qzeros"], group
        )
        ours = layouts.write_awq_fast(codes)
    else:
        tensors = {"qweight": tensors["qweight"], "scales": tensors["scales"]}
        read, ours = layouts.read_awq_marlin(**tensors), layouts.write_awq_marlin(codes)
    result: dict[str, Any] = {
        "layout": layout,
        "group_size": group,
        "we_read_theirs": all(
            torch.equal(a, b)
            for a, b in ((read.codes, codes.codes), (read.scales, codes.scales),
                         (read.zeros, codes.zeros))
        ),
        "we_write_theirs": {name: torch.equal(ours[name], tensors[name]) for name in tensors},
    }  # fmt: skip
    if layout == "gemm":
        result["largest_output_difference"] = output_difference(layer, ours, codes)
    return result


def output_difference(layer: nn.Module, ours: dict[str, Tensor], codes: Codes) -> float:
    """Their forward on our tensors against our layer, fp16, as a share of the largest output."""
    layer.load_state_dict(ours)
    packed = PackedWeight.from_codes(codes.codes, codes.scales, codes.zeros, bits=4)
    inputs = torch.randn(1, 16, COLUMNS).half()
    with torch.no_grad():
        theirs, mine = layer.eval()(inputs).float(), PackedLinear(packed)(inputs).float()
    return float((theirs - mine).abs().max() / mine.abs().max())


def main() -> None:
    """Check every layout and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoawq", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = []
    for layout, kind in import_layers(arguments.autoawq).items():
        for group in (128,) if layout == "marlin" else (128, 64, 32):
            try:
                results.append(check(kind, layout, group))
            except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
                results.append({"layout": layout, "group_size": group, "failed": repr(error)})
            print(results[-1], flush=True)
    report = {
        "schema": 1, "machine": describe_machine(), "code": describe_code(), "date": utc_now(),
        "autoawq": "0.2.9", "torch": torch.__version__, "shape": [ROWS, COLUMNS],
        "results": results,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
