"""The VLM node among processes: what comes in and goes out over DDS."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vlm import draw_number

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

from edge_perception.core.answers import Answer
from edge_perception.nodes.messages import to_nanoseconds

pytestmark = pytest.mark.timeout(180)


class Asking:
    """Somebody who asks a VLM node of a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.heard = graph.listen(String, "vlm/answer")
        self.prompts = graph.publisher(String, "vlm/prompt")

    def show(self, number: int) -> Header:
        return self.graph.send(draw_number(number))

    def say(self, message: str | Mapping[str, Any]) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        self.prompts.publish(String(data=text))

    def answers(self) -> list[Answer]:
        return [Answer.from_json(message.data) for message in self.heard]

    def answer_to(self, request_id: str) -> Answer:
        self.graph.wait_for(lambda: any(answer.id == request_id for answer in self.answers()))
        return next(answer for answer in self.answers() if answer.id == request_id)

    def ask(self, request_id: str, prompt: str = "number?", **fields: Any) -> Answer:
        self.say({"id": request_id, "prompt": prompt, **fields})
        return self.answer_to(request_id)


def start(graph: Any, behaviour: Mapping[str, Any] | None = None, **parameters: Any) -> Asking:
    """A camera and a VLM node in one process, active."""
    given = {
        "autostart": True, "vlm__model": json.dumps(behaviour or {}),
        "vlm__max_frame_age_ms": 20_000.0, "vlm__frame_timeout_ms": 5000.0,
    }  # fmt: skip
    graph.start("vlm_process", **{**given, **parameters})
    graph.wait_for(lambda: graph.level("vlm") in ("ok", "warn"))
    return Asking(graph)


@pytest.fixture(scope="module")
def asking(module_graph: Any) -> Asking:
    """A node that every test of this module may ask; it is never broken."""
    made = start(module_graph, vlm__gate_patience=1, vlm__caption_rate_hz=20.0)
    made.show(1)
    made.ask("ready")
    return made


def test_every_answer_is_about_the_frame_that_it_names(asking: Asking) -> None:
    shown: dict[int, int] = {}
    for number in range(100, 130):
        header = asking.show(number)
        shown[to_nanoseconds(header.stamp)] = number
        answer = asking.ask(f"n{number}")
        assert answer.text == str(shown.get(answer.stamp_ns, answer.text))
        assert answer.frame_id == "camera_optical"
    told = {answer.stamp_ns for answer in asking.answers() if answer.id.startswith("n1")}
    assert len(told & shown.keys()) > 20


def test_answer_tells_its_times(asking: Asking) -> None:
    asking.show(3)
    answer = asking.ask("times", "Describe.")
    assert answer.finish_reason == "end"
    assert answer.tokens == len(answer.text)
    assert answer.ttft_ms <= answer.total_ms
    assert answer.tokens_per_s > 0
    assert answer.stale_ms >= 0
    assert answer.model == "fake"


def test_plain_text_is_a_prompt(asking: Asking) -> None:
    asking.show(4)
    before = len(asking.heard)
    asking.say("Describe.")
    asking.graph.wait_for(lambda: len(asking.heard) > before)
    assert asking.answers()[-1].text.startswith("this is frame")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("{broken", "no JSON"),
        ("x" * 1_000_000, "too long"),
        ("{" * 1_000_000, "too long"),
        ('{"prompt": "x", "max_tokens": -1}', "max_tokens"),
        ('{"prompt": "x", "wrong": 1}', "unknown fields"),
        ("", "empty prompt"),
    ],
)
def test_message_that_is_no_prompt_is_answered_with_an_error(
    asking: Asking, message: str, told: str
) -> None:
    before = len(asking.heard)
    asking.say(message)
    asking.graph.wait_for(lambda: len(asking.heard) > before)
    answer = asking.answers()[-1]
    assert answer.finish_reason == "error"
    assert told in answer.error


def test_broken_utf8_is_answered_with_an_error(asking: Asking) -> None:
    text = b'{"prompt": "\xff\xfe caf\xe9"}\0'
    serialised = b"\x00\x01\x00\x00" + len(text).to_bytes(4, "little") + text
    before = len(asking.heard)
    asking.prompts.publish(serialised)
    asking.graph.wait_for(lambda: len(asking.heard) > before)
    assert "UTF-8" in asking.answers()[-1].error


def test_schema_that_cannot_be_met_is_answered_with_an_error(asking: Asking) -> None:
    pytest.importorskip("llguidance")
    asking.show(5)
    answer = asking.ask("no", schema={"type": "integer", "minimum": 5, "maximum": 2})
    assert answer.finish_reason == "error"
    assert "constrained" in answer.error
    assert asking.ask("yes", choices=["4", "5"]).text == "5"


def test_captions_come_with_their_plain_twin(asking: Asking) -> None:
    graph = asking.graph
    captions = graph.listen(String, "caption")
    texts = graph.listen(String, "vlm/caption_text")
    assert graph.set_parameters("vlm", captions="rate").successful
    asking.show(600)
    graph.wait_for(lambda: any("600" in message.data for message in texts))
    graph.wait_for(lambda: any("this is frame 600" in message.data for message in captions))
    assert graph.set_parameters("vlm", captions="off").successful


def detections(header: Header, *names: str) -> Detection2DArray:
    message = Detection2DArray(header=header)
    for name in names:
        detection = Detection2D(header=header, results=[ObjectHypothesisWithPose()])
        detection.results[0].hypothesis.class_id = name
        detection.bbox.size_x = detection.bbox.size_y = 10.0
        message.detections.append(detection)
    return message


def test_answer_names_the_detections_it_speaks_of(asking: Asking) -> None:
    graph = asking.graph
    publisher = graph.publisher(Detection2DArray, "detections")  # heard while answers are
    header = asking.show(7)
    publisher.publish(detections(header, "cup", "frame", "chair", "frame"))
    graph.spin_for(0.2)
    answer = asking.ask("grounded", "Describe.")
    assert answer.stamp_ns == to_nanoseconds(header.stamp)
    assert answer.grounded == (1, 3)
    assert answer.grounded_stamp_ns == answer.stamp_ns
    near = asking.show(8)  # this one the detector skipped
    answer = asking.ask("near", "Describe.")
    assert answer.stamp_ns == to_nanoseconds(near.stamp)
    assert answer.grounded_stamp_ns == to_nanoseconds(header.stamp)
    graph.send(draw_number(9), header=graph.next_header("another_camera"))
    graph.wait_for(lambda: asking.ask(f"far {time.time()}").frame_id == "another_camera")
    assert asking.answers()[-1].grounded is None


def test_parameters_change_between_two_answers(asking: Asking) -> None:
    assert asking.graph.set_parameters("vlm", max_tokens=4).successful
    assert asking.ask("short", "Describe.").text == "this"
    assert asking.graph.set_parameters("vlm", max_tokens=64).successful
    refused = asking.graph.set_parameters("vlm", stale_answers="maybe")
    assert not refused.successful


def test_diagnostics_tell_of_answers_and_the_cache(asking: Asking) -> None:
    asking.ask("again")
    counters = asking.graph.counters("vlm")
    assert counters["prompts"] >= 1
    assert counters["cache_hits"] + counters["cache_misses"] >= 1
    assert counters["model"] == "fake"


def test_flood_is_refused_and_the_node_goes_on(asking: Asking) -> None:
    for number in range(300):
        asking.say({"id": "flood", "prompt": "Describe."})
        if number % 30 == 0:
            asking.graph.spin_for(0.02)
    asking.show(11)
    attempts = (asking.ask(f"after the flood {number}") for number in range(1000))
    after = next(answer for answer in attempts if "wait already" not in answer.error)
    assert after.finish_reason == "end"


def test_cancel_ends_a_long_answer(graph: Any) -> None:
    asking = start(graph, {"token_s": 0.2})
    asking.show(1)
    asking.say({"id": "long", "prompt": "Describe."})
    partial = graph.listen(String, "vlm/answer/partial")
    graph.wait_for(lambda: partial)
    asking.say({"id": "long", "prompt": ""})
    answer = asking.answer_to("long")
    assert answer.finish_reason == "cancelled"
    assert "this is frame 1".startswith(answer.text)


def test_short_memory_lowers_the_resolution_then_fails_clearly(graph: Any) -> None:
    asking = start(graph, {"out_of_memory_at": 3, "image_sides_px": [64, 128]})
    asking.show(9)
    assert asking.ask("a").image_side_px == 128
    answer = asking.ask("b", "Describe.")
    assert (answer.text, answer.image_side_px) == ("this is frame 9", 64)
    graph.wait_for(lambda: "memory was short" in graph.message("vlm"))


def test_newest_error_is_the_one_told(graph: Any) -> None:
    asking = start(graph, vlm__frame_timeout_ms=100.0)
    asking.say("{broken")
    graph.wait_for(lambda: "no JSON" in str(graph.counters("vlm").get("last_error")))
    assert "no image" in asking.ask("nothing was shown").error
    graph.wait_for(lambda: "no image" in str(graph.counters("vlm").get("last_error")))


def test_broken_model_leaves_a_node_that_can_be_configured_again(graph: Any) -> None:
    asking = start(graph, {"breaks_at": 3})
    asking.show(9)
    assert "the model broke" in asking.ask("a", "Describe.").error
    graph.wait_for(lambda: graph.level("vlm") == "error")
    assert "the model broke" in graph.message("vlm")
    assert graph.state("vlm") == "unconfigured"
    assert graph.change_state("vlm", "configure")
    assert graph.change_state("vlm", "activate")
    asking.graph.wait_for(lambda: asking.prompts.get_subscription_count())
    graph.spin_for(0.3)
    asking.show(8)
    answer = asking.ask("b")
    assert answer.text == "8", answer


def test_camera_that_is_gone_is_told_in_time(graph: Any) -> None:
    asking = start(graph, vlm__frame_timeout_ms=50.0, vlm__max_frame_age_ms=50.0)
    answer = asking.ask("nothing yet")
    assert answer.finish_reason == "error"
    assert "no image" in answer.error


def test_frames_of_a_camera_in_another_process_are_read(graph: Any) -> None:
    graph.start("camera", autostart=True, share_frames=True)
    graph.start(
        "vlm_process",
        arguments=["--alone"],
        autostart=True,
        vlm__model="{}",
        vlm__max_frame_age_ms=20_000.0,
    )
    graph.wait_for(lambda: graph.level("vlm") in ("ok", "warn"))
    asking = Asking(graph)
    until = time.monotonic() + 20
    answer = None
    while answer is None or answer.text != "321":
        assert time.monotonic() < until, answer
        header = asking.show(321)
        answer = asking.ask(f"q{header.stamp.nanosec}")
    assert answer.frame_id == "camera_optical"


def test_debug_image_shows_what_is_said(asking: Asking) -> None:
    pictures = asking.graph.listen(Image, "vlm/debug_image")
    asking.graph.spin_for(0.3)
    asking.show(12)
    asking.ask("drawn", "Describe.")
    asking.graph.wait_for(lambda: pictures)
    drawn = np.frombuffer(pictures[-1].data, np.uint8).reshape(pictures[-1].height, -1, 3)
    assert pictures[-1].height > 120
    assert (drawn[120:] > 200).any()  # letters below the picture


def test_unknown_model_is_a_failed_transition(graph: Any, tmp_path: Path) -> None:
    graph.start("vlm", model=str(tmp_path / "none.yaml"))
    graph.wait_for(lambda: graph.level("vlm"))
    assert not graph.change_state("vlm", "configure")
    graph.wait_for(lambda: "cannot read manifest" in graph.message("vlm"))


def test_asker_asks_in_turn_and_writes_down_what_it_hears(graph: Any, tmp_path: Path) -> None:
    asking = start(graph)
    asking.show(44)
    questions = tmp_path / "questions.jsonl"
    asked = [{"id": name, "prompt": "number?"} for name in "ab"]
    questions.write_text("".join(json.dumps(question) + "\n" for question in asked))
    output = tmp_path / "heard.jsonl"
    graph.start("asker", autostart=True, questions=str(questions), output=str(output))

    def heard() -> list[Answer]:
        lines = output.read_text().splitlines() if output.exists() else []
        told = [json.loads(line) for line in lines]
        return [Answer.from_json(row["message"]) for row in told if row["kind"] == "answer"]

    graph.wait_for(lambda: len(heard()) >= 4)
    assert [answer.id for answer in heard()[:4]] == ["a #0", "b #1", "a #2", "b #3"]
    assert {answer.text for answer in heard()} == {"44"}
    assert graph.counters("asker")["answers"] >= 4


def test_asker_without_questions_is_a_failed_transition(graph: Any, tmp_path: Path) -> None:
    graph.start("asker", questions=str(tmp_path / "none.jsonl"))
    graph.wait_for(lambda: graph.level("asker"))
    assert not graph.change_state("asker", "configure")
    graph.wait_for(lambda: "cannot be read" in graph.message("asker"))


@pytest.mark.slow  # torch and transformers are imported in the container
def test_container_answers_and_detects_on_the_same_frames(
    graph: Any, manifest: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny_vlm_checkpoints import write_vlm

    write_vlm(tmp_path / "llava", "LLaVA")
    graph.start_container(manifest, vlm=True, vlm__model=tmp_path / "llava", profiler__window=100)
    graph.wait_for(lambda: graph.level("vlm") in ("ok", "warn"), timeout_s=60)
    found = graph.listen(Detection2DArray, "detections")
    work = graph.listen(DiagnosticArray, "vlm/stages")
    asking = Asking(graph)
    graph.spin_for(0.5)
    header = asking.show(5)
    graph.answer_to(header, found)
    answer = asking.ask("a", "What is there?", max_tokens=8)
    assert answer.stamp_ns == to_nanoseconds(header.stamp)
    assert answer.tokens <= 8
    assert answer.finish_reason in ("end", "length")
    graph.wait_for(lambda: work)
    later = asking.show(6)
    graph.answer_to(later, found)
    assert graph.counters("vlm")["answers"] == 1
    assert graph.counters("detector")["processed"] >= 2
