"""What is written about the VLM node's messages and layouts, held to what the code does."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from edge_perception.core.answers import FINISH_REASONS, MAX_CHOICES, Answer, Request, parse_request

ROOT = Path(__file__).resolve().parent.parent
NODES_FOLDER = ROOT / "edge_perception/nodes"
NODES = ("detector", "vlm")
PANEL_MESSAGES = {
    "Image": "Image",
    "RawMessages": "String",
    "DiagnosticSummary": "DiagnosticArray",
    "Publish": "String",
}
"""What kind of message each kind of panel shows or sends in this layout."""


def topics(word: str) -> dict[str, str]:
    """The message type of each topic that the nodes' source makes by a call with this word in it.

    Names are those of a graph without a namespace, as ROS 2 resolves them.
    """
    found: dict[str, str] = {}
    for node in NODES:
        sources = [*NODES_FOLDER.glob(f"{node}*.py"), NODES_FOLDER / "managed.py"]
        for call in (n for s in sources for n in ast.walk(ast.parse(s.read_text()))):
            match call:
                case ast.Call(func=made, args=[ast.Name(kind), ast.Constant(str(name)), *_]) if (
                    word in ast.unparse(made)
                ):
                    absolute = name if name[0] in "~/" else f"/{name}"
                    found[absolute.replace("~", f"/{node}", 1)] = kind
    return found


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


def test_foxglove_layout_places_every_panel_once() -> None:
    layout = json.loads((ROOT / "config/foxglove_layout.json").read_text())
    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])


def test_foxglove_panels_show_topics_of_their_type_that_the_nodes_make() -> None:
    panels = json.loads((ROOT / "config/foxglove_layout.json").read_text())["configById"]
    told, heard = topics("publisher"), topics("_listen")
    for name, panel in panels.items():
        kind = name.split("!")[0]
        topic = panel.get("topicName") or panel.get("topicToRender") or panel.get("topicPath", "")
        topic = topic.removesuffix(".data") or panel["imageMode"]["imageTopic"]
        made = heard if kind == "Publish" else told
        assert made.get(topic) == PANEL_MESSAGES[kind], name


PANEL_FIELDS = {
    "Image": {"imageMode"},
    "RawMessages": {"topicPath", "diffEnabled", "diffMethod", "diffTopicPath",
                    "showFullMessageForDiff"},
    "Publish": {"topicName", "datatype", "value", "advancedView", "buttonText", "buttonTooltip",
                "buttonColor"},
    "DiagnosticSummary": {"topicToRender", "minLevel", "pinnedIds", "hardwareIdFilter",
                          "sortByLevel"},
}  # fmt: skip
"""What Foxglove Studio and Lichtblick save of each kind, beside the title."""
TITLES = ("foxglovePanelTitle", "lichtblickPanelTitle")


def test_foxglove_panels_have_the_fields_of_their_kind() -> None:
    panels = json.loads((ROOT / "config/foxglove_layout.json").read_text())["configById"]
    for name, panel in panels.items():
        assert set(panel) - set(TITLES) == PANEL_FIELDS[name.split("!")[0]], name
        assert len({panel[title] for title in TITLES}) == 1, f"{name} has two titles"
    (prompt,) = (panel for name, panel in panels.items() if name.startswith("Publish!"))
    parse_request(json.loads(prompt["value"])["data"], max_bytes=16384)


RVIZ_TOPIC = {"Value", "Depth", "History Policy", "Reliability Policy", "Durability Policy"}


def test_rviz_displays_are_images_with_a_whole_topic_each() -> None:
    shown = yaml.safe_load((ROOT / "config/perception.rviz").read_text())
    for display in shown["Visualization Manager"]["Displays"]:
        assert display["Class"] == "rviz_default_plugins/Image"
        assert display["Enabled"] is display["Value"] is True
        assert set(display["Topic"]) == RVIZ_TOPIC


def test_rviz_shows_only_images_that_the_nodes_publish() -> None:
    shown = yaml.safe_load((ROOT / "config/perception.rviz").read_text())
    told = topics("publisher")
    for display in shown["Visualization Manager"]["Displays"]:
        assert told.get(display["Topic"]["Value"]) == "Image", display["Name"]
