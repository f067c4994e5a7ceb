"""Camera and detector as two processes over shared frames: the same answers as one process."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
from pictures import BLUE, GREEN, RED, picture
from vision_msgs.msg import Detection2DArray

from edge_perception.nodes.messages import from_detection2d_array


def start_pair(graph: Any, manifest: Path) -> tuple[Any, Any]:
    camera = graph.start("camera", share_frames=True, autostart=True)
    detector = graph.start("detector", manifest=manifest, threads=1, autostart=True)
    for node in ("camera", "detector"):
        graph.wait_for(lambda node=node: graph.level(node) in ("ok", "warn"))
    return camera, detector


def random_pictures(count: int) -> list[np.ndarray]:
    chance = random.Random(7)
    pictures = []
    for _ in range(count):
        image = np.zeros((128, 128, 3), np.uint8)
        for _ in range(chance.randint(0, 5)):
            colour = chance.choice([RED, GREEN, BLUE, (200, 100, 30)])
            image |= picture(colour, chance.randrange(8), chance.randrange(8))
        pictures.append(image)
    return pictures


def test_two_processes_find_what_one_process_finds(
    graph: Any, running: Any, manifest: Path
) -> None:
    start_pair(graph, manifest)
    detections = graph.listen_to_detections()
    found = 0
    for i, image in enumerate(random_pictures(20)):
        encoding, padding = (("rgb8", 0), ("bgr8", 3), ("nv12", 0), ("bayer_rggb8", 2))[i % 4]
        frame_id = ("camera", "相机/öß 🤖" * 100)[i % 2]  # handles carry any text too
        header = graph.next_header(frame_id)
        here = graph.send(image, encoding, padding, header=header)
        apart = graph.answer_to(here, detections)
        together = running.answer_to(
            running.send(image, encoding, padding, header=here), running.detections
        )
        assert from_detection2d_array(apart) == from_detection2d_array(together)
        found += len(apart.detections)
    assert found > 20
    assert graph.counters("camera")["frame_transport"] == "shared_memory"
    assert graph.counters("camera")["ring_readers"] == 1


def test_detector_attaches_to_a_camera_that_started_anew(graph: Any, manifest: Path) -> None:
    camera, _ = start_pair(graph, manifest)
    detections = graph.listen_to_detections()
    graph.answer_to(graph.send(picture(RED)), detections)

    camera.send_signal(signal.SIGKILL)
    camera.wait()
    graph.told.pop("camera")
    graph.start("camera", share_frames=True, autostart=True)
    graph.wait_for(lambda: graph.level("camera") in ("ok", "warn"))

    def blue_found() -> bool:
        graph.send(picture(BLUE))  # the first may come before the detector hears the new camera
        graph.spin_for(0.1)
        return bool(detections[-1].detections[0].results[0].hypothesis.class_id == "blue_block")

    graph.wait_for(blue_found)
    assert graph.state("detector") == "active"


def test_detector_that_dies_costs_the_camera_nothing(graph: Any, manifest: Path) -> None:
    _, detector = start_pair(graph, manifest)
    detections = graph.listen_to_detections()
    graph.answer_to(graph.send(picture(RED)), detections)
    detector.send_signal(signal.SIGKILL)
    detector.wait()
    for _ in range(20):
        graph.send(picture(RED))
        graph.spin_for(0.01)
    graph.wait_for(lambda: graph.counters("camera")["ring_readers"] == 0)
    counters = graph.counters("camera")
    assert counters["received"] == counters["ring_written"]
    assert counters["ring_leases_held"] == 0


def test_image_where_a_frame_handle_belongs_is_refused_and_told(graph: Any, manifest: Path) -> None:
    graph.start("detector", manifest=manifest, threads=1, autostart=True, frames=["image"])
    graph.wait_for(lambda: graph.level("detector"))
    graph.listen(Detection2DArray, "detections")

    def refused() -> bool:
        graph.send(picture())  # again and again: the subscription may not be matched yet
        return "not a frame handle" in graph.counters("detector")["last_refusal"]

    graph.wait_for(refused)
    assert graph.level("detector") == "warn"
