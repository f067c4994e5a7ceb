"""A process with a VLM node whose model is the fake one, beside its camera, or alone.

The node's ``model`` says how the fake behaves, as JSON in place of a path; ``alone`` in it reads
frame handles of a camera in another process.
"""

import json
import sys
import threading
from collections.abc import Callable

from fake_vlm import FakeModel

from edge_perception.errors import DeviceMemoryError
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.frame_streams import LocalFrameStream
from edge_perception.nodes.runner import run
from edge_perception.nodes.vlm import VlmNode
from edge_perception.vlm.model_choice import ModelChoice


def open_fake(choice: ModelChoice) -> FakeModel:
    behaviour = json.loads(str(choice.path)) if str(choice.path).startswith("{") else {}
    breaks_at = behaviour.pop("breaks_at", 0)
    out_of_memory_at = behaviour.pop("out_of_memory_at", 0)
    model = FakeModel(**behaviour)
    model.on_token = _failing(breaks_at, out_of_memory_at)
    return model


def _failing(breaks_at: int, out_of_memory_at: int) -> Callable[[], None]:
    """Count tokens after the warm-up, and fail at some of them."""
    told = [0]

    def on_token() -> None:
        if threading.current_thread().name != "vlm-worker":
            return
        told[0] += 1
        if told[0] == breaks_at:
            raise RuntimeError("the model broke")
        if told[0] == out_of_memory_at:
            raise DeviceMemoryError("out of memory")

    return on_token


def compose() -> list:
    if "--alone" in sys.argv:
        return [VlmNode(open_model=open_fake)]
    camera = CameraNode()
    return [camera, VlmNode(streams=[LocalFrameStream(camera)], open_model=open_fake)]


if __name__ == "__main__":
    sys.exit(run(compose))
