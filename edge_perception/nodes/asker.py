"""The asker node: asks a VLM node one question after the other, and writes down what it hears.

For demos and tests: a robot's own nodes ask what they need to know.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from edge_perception.core.answers import Answer
from edge_perception.errors import ConfigError, RequestError
from edge_perception.nodes.managed import ManagedNode
from edge_perception.nodes.params import Declaration
from edge_perception.nodes.runner import run

PARAMETERS = (
    Declaration(
        "questions",
        "",
        "File of prompt messages, one JSON object a line, asked in turn, over and over.",
        fixed=True,
    ),
    Declaration("output", "", "File for answers and captions, one a line.", fixed=True),
    Declaration("pause_s", 0.0, "Time from an answer to the next question.", bounds=(0.0, 3600.0)),
    Declaration(
        "patience_s",
        5.0,
        "How long an answer is waited for before the next question.",
        bounds=(0.1, 3600.0),
    ),
)
_LOOK_S = 0.1


class AskerNode(ManagedNode):
    """Publishes prompts on ``vlm/prompt``; listens to ``vlm/answer`` and ``caption``."""

    def __init__(self, name: str = "asker", **node_options: Any) -> None:
        super().__init__(name, PARAMETERS, **node_options)
        self._questions: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._output: TextIO | None = None
        self._waits_for = ""
        self._last_ns = 0  # of the last question or answer
        self._ears: list[Any] = []
        self._timer: Any = None

    def configure(self) -> None:
        """Read the questions and open the file."""
        values = self.parameter_values()
        self._questions = _read_questions(Path(values["questions"]).expanduser())
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self._prompts = self.create_lifecycle_publisher(String, "vlm/prompt", reliable)
        if values["output"]:
            path = Path(values["output"]).expanduser()
            self._output = path.open("w", encoding="utf-8", buffering=1)

    def activate(self) -> None:
        """Begin to ask."""
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._ears = [
            self.create_subscription(String, "vlm/answer", self._on_answer, reliable),
            self.create_subscription(String, "caption", self._on_caption, reliable),
        ]
        self._timer = self.create_steady_timer(_LOOK_S, self._ask_when_due)

    def deactivate(self) -> None:
        """Ask and listen no more."""
        for ear in self._ears:
            self.destroy_subscription(ear)
        self._ears = []
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def cleanup(self) -> None:
        """Close the file."""
        if self._output is not None:
            self._output.close()
            self._output = None
        if hasattr(self, "_prompts"):
            self.destroy_lifecycle_publisher(self._prompts)
            del self._prompts

    def counters(self) -> Mapping[str, object]:
        """What was asked and heard."""
        return {name: self._counts[name] for name in ("asked", "answers", "captions", "unanswered")}

    def _ask_when_due(self) -> None:
        """Ask once somebody listens and the last answer came, or was waited for in vain."""
        if not self._prompts.get_subscription_count():
            return
        values, now_ns = self.parameter_values(), self.get_clock().now().nanoseconds
        since_s = (now_ns - self._last_ns) / 1e9
        if since_s < values["patience_s" if self._waits_for else "pause_s"]:
            return
        self._counts["unanswered"] += bool(self._waits_for)
        self._ask(now_ns)

    def _ask(self, now_ns: int) -> None:
        number = self._counts["asked"]
        question = self._questions[number % len(self._questions)]
        self._waits_for, self._last_ns = f"{question.get('id', '')} #{number}", now_ns
        self._counts["asked"] += 1
        self._prompts.publish(String(data=json.dumps({**question, "id": self._waits_for})))

    def _on_answer(self, message: String) -> None:
        answer = self._write("answer", message)
        if answer is not None and answer.id == self._waits_for:
            self._counts["answers"] += 1
            self._waits_for, self._last_ns = "", self.get_clock().now().nanoseconds

    def _on_caption(self, message: String) -> None:
        if self._write("caption", message) is not None:
            self._counts["captions"] += 1

    def _write(self, kind: str, message: String) -> Answer | None:
        try:
            answer = Answer.from_json(message.data)
        except RequestError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return None
        if self._output is not None:
            self._output.write(json.dumps({"kind": kind, "message": message.data}) + "\n")
        return answer


def _read_questions(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"parameter questions: {str(path)!r} cannot be read ({error})") from error
    if not questions or not all(isinstance(question, dict) for question in questions):
        raise ConfigError("parameter questions", expected="a JSON object a line", got=str(path))
    return questions


def main() -> int:
    """Run the node in a process of its own."""
    return run(lambda: [AskerNode()])


if __name__ == "__main__":
    sys.exit(main())
