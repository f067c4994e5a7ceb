"""Compile the decoder's kernels for every architecture, and record what each of them takes.

    python -m benchmarks.decoder.compile_kernels --nvcc PATH \
        --out docs/benchmarks/decoder_kernels_compiled.json

No GPU is needed. ``ptxas`` tells registers, spilled bytes and static shared memory; with spills
this fails, so that a change which causes them is seen.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from benchmarks.decoder.results import run_facts

ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_90")
SOURCES = (
    "attention.cu", "embedding.cu", "int8.cu", "linear.cu", "prefill.cu", "sampling.cu",
)  # fmt: skip

_ENTRY = re.compile(
    r"entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def main() -> int:
    """Compile, print a table, write JSON; 1 where a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kernels = [
        row
        for arch in ARCHITECTURES
        for name in SOURCES
        for row in compiled(name, arch, options.nvcc)
    ]
    version = subprocess.run(
        [options.nvcc, "--version"], capture_output=True, text=True, check=True
    )
    result = {
        **run_facts(),
        "compiler": version.stdout.strip().splitlines()[-2],
        "kernels": kernels,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in kernels:
        print(
            "{arch} {kernel:18s} {registers:4d} registers {shared_bytes:6d} B shared".format(**row)
        )
    return int(any(row["spill_bytes"] or row["stack_bytes"] for row in kernels))


def compiled(source: str, arch: str, nvcc: str) -> list[dict[str, object]]:
    """Rows of one source for one architecture; raises where it does not compile."""
    folder = Path(str(resources.files("edge_perception.vlm") / "kernels"))
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            *(nvcc, "-std=c++17", f"-arch={arch}", "-cubin", "-Xptxas", "-v"),
            *("-include", str(folder / "ptx.cuh"), "-include", str(folder / "weights.cuh")),
            str(folder / source),
            *("-o", f"{scratch}/kernels.cubin"),
        ]
        told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(told.stderr)
    entries = re.split(r"(?=Compiling entry function)", told.stderr)[1:]
    return [row_of(_ENTRY.search(entry), arch, source) for entry in entries]


def row_of(match: re.Match[str] | None, arch: str, source: str) -> dict[str, object]:
    """One kernel's figures from what ptxas said."""
    assert match is not None, "ptxas speaks differently than it did"
    return {
        "arch": arch,
        "source": source,
        "kernel": match["kernel"],
        "registers": int(match["registers"]),
        "shared_bytes": int(match["shared"] or 0),
        "stack_bytes": int(match["stack"]),
        "spill_bytes": int(match["stores"]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
