"""What is written about the VLM node's messages and layouts, held to what the code does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from edge_perception.core.answers import FINISH_REASONS, MAX_CHOICES, Answer, Request, parse_request

ROOT = Path(__file__).resolve().parent.parent
TOPICS = {
    "/detector/debug_image", "/vlm/debug_image", "/vlm/caption_text", "/vlm/answer",
    "/vlm/answer/partial", "/vlm/prompt", "/diagnostics",
}  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ROOT / f"docs/{name}.schema.json").read_text())
    return read


def test_answer_has_exactly_the_fields_of_its_schema() -> None:
    told = json.loads(Answer("q", "What?", "A cup.", "end", stamp_ns=5).to_json())
    written = schema("vlm_answer")
    assert set(told) == set(written["properties"]) == set(written["required"])
    assert set(written["properties"]["finish_reason"]["enum"]) == {"", *FINISH_REASONS}


def test_answer_has_the_types_of_its_schema() -> None:
    kinds = {str: "string", float: "number", int: "integer", bool: "boolean", list: "array",
             dict: "object", type(None): "null"}  # fmt: skip
    full = Answer(
        "q", "What?", "A cup.", "end", 1, "front", 2.5, True, 3.5, 4.5, 6, 7.5, (0,), 8, 224, True
    )
    for answer in (full, Answer("", "", "", "")):
        for name, value in json.loads(answer.to_json()).items():
            entry = schema("vlm_answer")["properties"][name]
            options = entry.get("anyOf", [entry])
            allowed = {k for o in options for k in _as_list(o.get("type", "string"))}
            assert kinds[type(value)] in allowed, name


def _as_list(kind: str | list[str]) -> list[str]:
    return [kind] if isinstance(kind, str) else kind


def test_prompt_takes_exactly_the_fields_of_its_schema() -> None:
    written = schema("vlm_prompt")["properties"]
    assert set(written) == {entry.name for entry in fields(Request)}
    assert written["choices"]["maxItems"] == MAX_CHOICES


def leaves(layout: Any) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
    else:
        yield from leaves(layout["first"])
        yield from leaves(layout["second"])


def test_foxglove_layout_shows_every_panel_and_only_topics_that_exist() -> None:
    layout = json.loads((ROOT / "config/foxglove_layout.json").read_text())
    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])
    text = json.dumps(layout)
    for panel in layout["configById"].values():
        topic = panel.get("topicName") or panel.get("topicToRender") or panel.get("topicPath", "")
        topic = topic.removesuffix(".data") or panel["imageMode"]["imageTopic"]
        assert topic in TOPICS, text


PANEL_FIELDS = {
    "Image": {"imageMode"},
    "RawMessages": {"topicPath", "diffEnabled", "diffMethod", "diffTopicPath",
                    "showFullMessageForDiff"},
    "Publish": {"topicName", "datatype", "value", "advancedView", "buttonText", "buttonTooltip",
                "buttonColor"},
    "DiagnosticSummary": {"topicToRender", "minLevel", "pinnedIds", "hardwareIdFilter",
                          "sortByLevel"},
}  # fmt: skip
"""What Foxglove Studio and Lichtblick save of each kind."""


def test_foxglove_panels_have_the_fields_of_their_kind() -> None:
    panels = json.loads((ROOT / "config/foxglove_layout.json").read_text())["configById"]
    for name, panel in panels.items():
        assert set(panel) - {"foxglovePanelTitle"} == PANEL_FIELDS[name.split("!")[0]], name
    (prompt,) = (panel for name, panel in panels.items() if name.startswith("Publish!"))
    parse_request(json.loads(prompt["value"])["data"], max_bytes=16384)


RVIZ_TOPIC = {"Value", "Depth", "History Policy", "Reliability Policy", "Durability Policy"}


def test_rviz_displays_are_images_with_a_whole_topic_each() -> None:
    shown = yaml.safe_load((ROOT / "config/perception.rviz").read_text())
    for display in shown["Visualization Manager"]["Displays"]:
        assert display["Class"] == "rviz_default_plugins/Image"
        assert display["Enabled"] is display["Value"] is True
        assert set(display["Topic"]) == RVIZ_TOPIC


def test_rviz_shows_only_topics_that_exist() -> None:
    shown = yaml.safe_load((ROOT / "config/perception.rviz").read_text())
    displays = shown["Visualization Manager"]["Displays"]
    assert {display["Topic"]["Value"] for display in displays} <= TOPICS
