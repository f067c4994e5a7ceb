"""vision_msgs as built here is, on the wire, vision_msgs 4.1.1 as every robot has it."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path

import pytest

vision_msgs = pytest.importorskip("vision_msgs.msg", reason="needs ROS 2 messages")

# Type hashes (REP-2011) that rosidl gives the original definitions. Peers whose hashes differ do
# not hear each other. A hash covers the names and types of all fields, those of nested messages
# included: these three reach every definition in interfaces/vision_msgs.
ORIGINAL_HASHES = {
    "Classification": "RIHS01_f74db28d0eaef3afb78f48bf2161cd709a1383a0309d3454383b25be11345143",
    "Detection2DArray": "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "LabelInfo": "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
}
DEFINITIONS = Path(__file__).resolve().parent.parent / "interfaces" / "vision_msgs" / "msg"


def type_description(name: str) -> dict[str, object]:
    """Return what rosidl wrote down about a message type, from whichever prefix has it."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        file = Path(prefix) / "share" / "vision_msgs" / "msg" / f"{name}.json"
        if file.exists():
            return json.loads(file.read_text())
    pytest.skip("this ROS 2 is older than type hashes (Humble)")


@pytest.mark.parametrize(("name", "expected"), ORIGINAL_HASHES.items())
def test_type_hash_is_that_of_the_original(name: str, expected: str) -> None:
    hashes = {
        entry["type_name"]: entry["hash_string"] for entry in type_description(name)["type_hashes"]
    }
    assert hashes[f"vision_msgs/msg/{name}"] == expected


def test_checked_types_reach_every_definition() -> None:
    reached = {
        entry["type_name"].split("/")[-1]
        for name in ORIGINAL_HASHES
        for entry in type_description(name)["type_hashes"]
    }
    assert {file.stem for file in DEFINITIONS.glob("*.msg")} <= reached


@pytest.mark.parametrize("name", ORIGINAL_HASHES)
def test_publisher_announces_the_original_type_hash(name: str) -> None:
    rclpy = pytest.importorskip("rclpy")
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("announcer", context=context)
    try:
        node.create_publisher(getattr(vision_msgs, name), "announced", 1)
        deadline = time.monotonic() + 10.0
        while not (endpoints := node.get_publishers_info_by_topic("/announced")):
            assert time.monotonic() < deadline, "the publisher was not announced"
        announced = getattr(endpoints[0], "topic_type_hash", None)
        if announced is None:
            pytest.skip("this rclpy tells no type hashes (Humble)")
        assert str(announced) == ORIGINAL_HASHES[name]
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_python_modules_hold_every_definition() -> None:
    module = importlib.import_module("vision_msgs.msg")
    missing = [file.stem for file in DEFINITIONS.glob("*.msg") if not hasattr(module, file.stem)]
    assert missing == []
