"""Exports a model by Ultralytics' own exporter; run as a file, by an interpreter that has it.

Ultralytics is licensed under the AGPL, and its .pt files are pickles, whose loading runs whatever
they say. Both stay in this process: it is the only file that names Ultralytics, it is started only
when a user asks for such an export, it imports nothing of edge_perception, and what comes out of
it is an ONNX graph, arrays and JSON.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np


def export(model_file: str, out: Path, size: list[int], opset: int, seed: int) -> None:
    """Write ``model.onnx``, ``images.npy``, ``reference.npy`` and ``facts.json`` into a folder.

    The arrays are a random picture and what torch makes of it.
    """
    import torch
    import ultralytics

    torch.manual_seed(seed)
    model = ultralytics.YOLO(model_file)
    if model.task != "detect":
        raise SystemExit(f"only detection models are exported, this one's task is {model.task}")
    images = torch.rand(1, 3, *size)
    network = model.model.float()
    if Path(model_file).suffix in (".yaml", ".yml"):
        settle(network, size)
    network.eval()
    with contextlib.suppress(AttributeError):  # older versions take the NMS-free head by themselves
        network.end2end = True
    with torch.inference_mode():
        found = network(images)
    reference = found[0] if isinstance(found, (tuple, list)) else found
    np.save(out / "images.npy", images.numpy())
    np.save(out / "reference.npy", reference.numpy())
    path = model.export(  # nms False: the NMS-free head where the model has one, else the raw one
        format="onnx", imgsz=size, opset=opset, simplify=False, dynamic=False, nms=False
    )
    shutil.move(str(path), out / "model.onnx")
    facts: dict[str, Any] = {
        "class_names": [model.names[key] for key in sorted(model.names)],
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
    }
    (out / "facts.json").write_text(json.dumps(facts))


def settle(network: Any, size: list[int]) -> None:
    """Give a network of random weights activations of a common scale.

    A fresh batch normalisation passes on what it gets, so that the signal fades from layer to
    layer, every score comes out equal, and neither a comparison nor an INT8 scale means anything.
    """
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            module.reset_running_stats()
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(4, 3, *size))


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    export(
        request["model"],
        Path(request["out"]),
        request["size"],
        request["opset"],
        request["seed"],
    )
