"""Parameters: every one described, with its range, and refused outside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("rclpy")
from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_perception.errors import ConfigError
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.managed import ManagedNode
from edge_perception.nodes.params import Declaration, declare
from edge_perception.nodes.profiler import ProfilerNode

NODES: list[Callable[[], ManagedNode]] = [CameraNode, DetectorNode, ProfilerNode]


@pytest.fixture(params=NODES, ids=lambda kind: kind.__name__)
def node(ros: None, request: pytest.FixtureRequest) -> Iterator[ManagedNode]:
    made = request.param()
    yield made
    made.destroy_node()


@pytest.fixture
def plain(ros: None) -> Iterator[Node]:
    made = Node("plain")
    yield made
    made.destroy_node()


def test_every_parameter_is_described_and_its_default_is_allowed(node: ManagedNode) -> None:
    for name in node._table:
        descriptor = node.describe_parameter(name)
        assert len(descriptor.description) > 10, name
        assert name == name.lower()
        node._table[name].check(node._table[name].default)
        assert node.set_parameters([node.get_parameter(name)])[0].successful


def test_value_outside_its_range_or_choices_is_refused(node: ManagedNode) -> None:
    refused = 0
    for name, entry in node._table.items():
        for wrong in wrong_values(entry):
            result = node.set_parameters([Parameter(name, value=wrong)])[0]
            assert not result.successful, (name, wrong)
            refused += 1
    assert refused


def wrong_values(entry: Declaration) -> list[object]:
    wrong: list[object] = ["no such choice"] if entry.choices else []
    if entry.bounds is not None:
        low, high = entry.bounds
        kind = type(entry.default)
        wrong += [kind(low - 1), kind(high + 1)]
        if kind is float:
            wrong += [math.inf, -math.inf, math.nan]
    return wrong


TABLE = (
    Declaration("gain", 1.0, "How loud.", bounds=(0.0, 2.0)),
    Declaration("count", 3, "How many.", bounds=(1, 5)),
    Declaration("mode", "slow", "How fast.", choices=("slow", "fast")),
    Declaration("names", ("a", "b"), "Who."),
    Declaration("loud", False, "Whether."),
)


def test_declared_values_and_ranges_are_those_of_the_table(plain: Node) -> None:
    declare(plain, TABLE)
    assert [plain.get_parameter(e.name).value for e in TABLE] == [1.0, 3, "slow", ["a", "b"], False]
    assert plain.describe_parameter("gain").floating_point_range[0].to_value == 2.0
    (whole,) = plain.describe_parameter("count").integer_range
    assert (whole.from_value, whole.to_value, whole.step) == (1, 5, 1)
    assert plain.describe_parameter("mode").additional_constraints == "one of slow, fast"


def test_check_names_the_choices() -> None:
    TABLE[2].check("fast")
    with pytest.raises(ConfigError, match="parameter mode: expected one of slow, fast, got 'x'"):
        TABLE[2].check("x")
