"""Managed nodes: transitions, failures that leave the node alive, and a clean end."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("rclpy")
from pictures import BLUE, RED, WHITE, picture
from tiny_models import write_detector
from vision_msgs.msg import Detection2DArray

from edge_perception.nodes.runner import END_WITH_PARENT

NODES = ("camera", "detector", "profiler")


def test_nodes_go_through_their_states_and_back_and_work_again(graph: Any, manifest: Path) -> None:
    graph.start("container", manifest=manifest, threads=1)
    for node in NODES:
        assert graph.state(node) == "unconfigured"
        assert graph.change_state(node, "configure")
        assert graph.state(node) == "inactive"
        assert graph.change_state(node, "activate")
        assert graph.state(node) == "active"
    detections = graph.listen(Detection2DArray, "detections")
    graph.answer_to(graph.send(picture(RED)), detections)

    for node in NODES:
        assert graph.change_state(node, "deactivate")
        assert graph.state(node) == "inactive"
    graph.wait_for(lambda: all(graph.message(node) == "inactive" for node in NODES))
    for node in NODES:
        assert graph.change_state(node, "cleanup")
        assert graph.state(node) == "unconfigured"
        assert not graph.change_state(node, "activate"), "refused, and answered"

    for transition in ("configure", "activate"):
        for node in NODES:
            assert graph.change_state(node, transition)
    answer = graph.answer_to(graph.send(picture(BLUE)), detections)
    assert answer.detections[0].results[0].hypothesis.class_id == "blue_block"


def test_engine_that_cannot_be_had_is_told_and_the_cpu_taken(graph: Any, manifest: Path) -> None:
    graph.start("container", manifest=manifest, threads=1)
    assert graph.set_parameters("detector", backend="tensorrt", device=63).successful
    assert not graph.change_state("detector", "configure")
    assert graph.state("detector") == "unconfigured"
    graph.wait_for(lambda: "cannot configure" in graph.message("detector"))
    assert any(
        reason in graph.message("detector")
        for reason in ("CUDA bindings are missing", "no CUDA driver", "looking for GPU 63")
    )
    assert not graph.set_parameters("detector", build="perhaps").successful
    assert graph.set_parameters("detector", backend="onnxruntime").successful
    assert graph.change_state("detector", "configure")


def test_model_that_cannot_be_used_is_told_and_the_next_one_taken(
    graph: Any, manifest: Path, tmp_path: Path
) -> None:
    no_model = b"\x08\x07 no model"
    corrupt = write_detector(tmp_path / "corrupt")
    (tmp_path / "corrupt" / "model.onnx").write_bytes(no_model)
    garbage = write_detector(tmp_path / "garbage", sha256=hashlib.sha256(no_model).hexdigest())
    (tmp_path / "garbage" / "model.onnx").write_bytes(no_model)
    gone = write_detector(tmp_path / "gone")
    (tmp_path / "gone" / "model.onnx").unlink()
    two_names = write_detector(tmp_path / "names", class_names=["one", "two"])
    shapes = write_detector(tmp_path / "shapes", outputs=[{"name": "output", "shape": [1, 7, 99]}])
    (tmp_path / "text.yaml").write_text("just text")

    graph.start("container", threads=1)
    for wrong, told in (
        (tmp_path / "nothing.yaml", "cannot read manifest"),
        (tmp_path / "text.yaml", "expected a mapping"),
        (Path("~nobody-of-this-name/manifest.yaml"), "cannot configure"),
        (gone, "missing model"),
        (corrupt, "is not the one that manifest"),
        (garbage, "cannot load"),
        (two_names, "2 class names"),
        (shapes, "disagree on outputs"),
    ):
        assert graph.set_parameters("detector", manifest=str(wrong)).successful
        assert not graph.change_state("detector", "configure"), told
        assert graph.state("detector") == "unconfigured"
        graph.wait_for(lambda told=told: told in graph.message("detector"))
        assert graph.level("detector") == "error"

    right = {"manifest": str(manifest), "classes": ["zebra"]}
    assert graph.set_parameters("detector", **right).successful
    assert not graph.change_state("detector", "configure")
    graph.wait_for(lambda: "does not know" in graph.message("detector"))

    assert graph.set_parameters("detector", classes=["*"]).successful
    for node in NODES:
        assert graph.change_state(node, "configure")
        assert graph.change_state(node, "activate")
    graph.wait_for(lambda: graph.level("detector") == "ok")
    detections = graph.listen(Detection2DArray, "detections")  # first: unheard means not processed
    graph.answer_to(graph.send(picture()), detections)


def test_runtime_that_breaks_leaves_the_node_unconfigured_and_configurable(
    graph: Any, tmp_path: Path
) -> None:
    graph.start_container(write_detector(tmp_path / "model", fails_on_white=True))
    detections = graph.listen(Detection2DArray, "detections")
    graph.answer_to(graph.send(picture(RED)), detections)

    white = picture()
    white[:] = WHITE
    graph.send(white)
    graph.wait_for(lambda: "inference failed" in graph.message("detector"))
    assert graph.level("detector") == "error"
    assert "Gather" in graph.message("detector")
    assert graph.state("detector") == "unconfigured"
    assert graph.state("camera") == "active"

    assert graph.change_state("detector", "configure")
    assert graph.change_state("detector", "activate")
    detections = graph.listen(Detection2DArray, "detections")
    answer = graph.answer_to(graph.send(picture(BLUE)), detections)
    assert answer.detections[0].results[0].hypothesis.class_id == "blue_block"
    graph.wait_for(lambda: graph.level("detector") == "ok")


def test_interrupt_of_resting_nodes_ends_with_exit_status_0(graph: Any, manifest: Path) -> None:
    process = graph.start("container", manifest=manifest, threads=1)
    assert graph.state("camera") == "unconfigured"
    assert graph.change_state("detector", "configure")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0
    assert "Traceback" not in graph.logs()


FRAGILE = """
import sys
from std_msgs.msg import String
from edge_perception.nodes.managed import ManagedNode
from edge_perception.nodes.runner import run

class Fragile(ManagedNode):
    def __init__(self, name):
        super().__init__(name, ())
        self.heard = 0
        self.create_subscription(String, "words", self.on_word, 10)
    def configure(self): self.broken = False
    def deactivate(self): self.expect_whole()
    def cleanup(self): self.expect_whole()
    def counters(self): return {"heard": self.heard}
    def expect_whole(self):
        if self.broken:
            raise OSError("no space is left")
    def on_word(self, message):
        if message.data == "break":
            self.broken = True
            raise ZeroDivisionError("nobody foresaw this")
        self.heard += 1

sys.exit(run(lambda: [Fragile("fragile"), Fragile("bystander")]))
"""


def test_error_that_nobody_foresaw_fails_its_node_and_ends_no_thread(graph: Any) -> None:
    from std_msgs.msg import String

    command = [sys.executable, "-c", FRAGILE, "--ros-args", "-r", f"__ns:={graph.namespace}"]
    command += ["-p", "autostart:=true", "-r", "bystander:words:=other_words"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    graph.processes.append(process)
    words = graph.publisher(String, "words")
    graph.wait_for(lambda: graph.level("fragile") == "ok")

    words.publish(String(data="break"))
    graph.wait_for(lambda: "nobody foresaw this" in graph.message("fragile"))
    assert graph.level("fragile") == "error"
    assert graph.state("fragile") == "unconfigured"
    assert graph.state("bystander") == "active"

    assert graph.change_state("fragile", "configure")
    assert graph.change_state("fragile", "activate")
    words.publish(String(data="go on"))
    graph.wait_for(lambda: graph.counters("fragile")["heard"] == 1)
    assert process.poll() is None


SLOW = """
import sys, time
from pathlib import Path
from edge_perception.nodes.managed import ManagedNode
from edge_perception.nodes.runner import run

class Started(ManagedNode):
    def configure(self): pass
    def cleanup(self): print(f"{self.get_name()} cleaned up", flush=True)
    def counters(self): return {}

class Slow(Started):
    def configure(self):
        print("building", flush=True)
        while not Path(sys.argv[1]).exists():
            time.sleep(0.5)
        print("built", flush=True)
        if "fails" in sys.argv:
            raise OSError("no space is left")

sys.exit(run(lambda: [Started("first", ()), Slow("slow", ()), Started("last", ())]))
"""


def start_slow(graph: Any, *arguments: str) -> subprocess.Popen[bytes]:
    """Start three nodes; the second is being configured, as one that builds, till ``end_build``."""
    command = [sys.executable, "-c", SLOW, str(graph.folder / "may_end"), *arguments, "--ros-args"]
    command += ["-r", f"__ns:={graph.namespace}", "-p", "autostart:=true"]
    command += ["-p", "exit_on_failure:=true"]
    with (graph.folder / "slow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    graph.processes.append(process)
    graph.wait_for(lambda: "building" in graph.logs())
    return process


def end_build(graph: Any) -> None:
    assert "built" not in graph.logs()
    (graph.folder / "may_end").touch()


def test_other_nodes_work_and_answer_while_one_is_being_configured(graph: Any) -> None:
    start_slow(graph)
    graph.wait_for(lambda: graph.level("first") == "ok")
    assert graph.state("first") == "active"
    assert graph.state("last") == "unconfigured"
    graph.wait_for(lambda: graph.message("last") == "unconfigured")
    end_build(graph)
    graph.wait_for(lambda: graph.level("slow") == graph.level("last") == "ok")


def test_transition_asked_for_before_autostart_stands(graph: Any) -> None:
    start_slow(graph)
    assert graph.change_state("last", "configure")
    end_build(graph)
    graph.wait_for(lambda: "left to who asked before" in graph.logs())
    assert graph.state("last") == "inactive"
    graph.wait_for(lambda: graph.level("slow") == "ok")


def test_interrupt_while_a_node_is_configured_starts_no_other_and_gives_all_back(
    graph: Any,
) -> None:
    process = start_slow(graph)
    process.send_signal(signal.SIGINT)
    end_build(graph)
    assert process.wait(timeout=20) == 0
    assert "Traceback" not in graph.logs()
    told = [line for line in graph.logs().splitlines() if "cleaned up" in line]
    assert told == ["slow cleaned up", "first cleaned up"], "and the last was never started"


def test_slow_autostart_that_fails_ends_a_script_with_status_1_too(graph: Any) -> None:
    process = start_slow(graph, "fails")
    end_build(graph)
    assert process.wait(timeout=20) == 1
    assert "no space is left" in graph.logs()


def test_autostart_that_fails_ends_a_script_with_status_1_and_the_reason(
    graph: Any, tmp_path: Path
) -> None:
    missing = str(tmp_path / "nothing.yaml")
    process = graph.start("container", manifest=missing, autostart=True, exit_on_failure=True)
    assert process.wait(timeout=30) == 1
    assert "cannot read manifest" in graph.logs()


def test_autostart_that_fails_leaves_the_node_alive_and_configurable(
    graph: Any, tmp_path: Path, manifest: Path
) -> None:
    missing = str(tmp_path / "nothing.yaml")
    process = graph.start("container", manifest=missing, autostart=True)
    graph.wait_for(lambda: graph.level("detector") == "error")
    assert "cannot read manifest" in graph.message("detector")
    assert process.poll() is None
    graph.set_parameters("detector", manifest=str(manifest))
    assert graph.change_state("detector", "configure")


def test_camera_size_is_learnt_from_the_pictures(running: Any) -> None:
    for scale in (1, 3, 1, 2):  # the ring is made anew for the larger, kept for the smaller
        image = picture(RED).repeat(scale, axis=0).repeat(scale, axis=1)
        answer = running.answer_to(running.send(image), running.detections)
        centre = answer.detections[0].bbox.center.position
        assert (centre.x, centre.y) == (40 * scale, 24 * scale)


def test_transition_that_cannot_be_is_refused_and_disturbs_nothing(running: Any) -> None:
    for transition in ("configure", "activate", "cleanup"):
        assert not running.change_state("detector", transition)
    assert running.state("detector") == "active"
    assert running.level("detector") == "ok"


def test_frames_while_the_detector_rests_are_not_its_drops(running: Any) -> None:
    before = running.counters("detector")
    assert running.change_state("detector", "deactivate")
    for _ in range(5):
        running.send(picture())
        running.spin_for(0.02)
    assert running.change_state("detector", "activate")
    running.answer_to(running.send(picture()), running.detections)
    after = running.counters("detector")
    assert after["dropped"] == before["dropped"]
    assert after["processed"] - before["processed"] in (1, 2)  # the newest may have waited


def test_node_ends_with_its_parent_where_launch_asks_for_it(graph: Any) -> None:
    child = [sys.executable, "-m", "edge_perception.nodes.camera", "--ros-args"]
    child += ["-r", f"__ns:={graph.namespace}"]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({child!r})"],
        env={**os.environ, END_WITH_PARENT: "1"},
    )
    graph.processes.append(parent)
    assert graph.state("camera") == "unconfigured"
    (node,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert node.wait(timeout=15) is None  # not our child: psutil sees only that it is gone
