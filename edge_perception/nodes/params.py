"""ROS parameters declared from one table a node, with descriptors, ranges and choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from edge_perception.errors import ConfigError

Value = bool | int | float | str | Sequence[str]


@dataclass(frozen=True)
class Declaration:
    """One parameter: its name, default, what it means, and the values that it may take.

    ``bounds`` are inclusive. ``fixed`` parameters are read when the node is configured and
    refuse to change until it is cleaned up. The default's type is the parameter's; a sequence is
    a list of strings, and never empty, since rclpy cannot tell an empty list's type.
    """

    name: str
    default: Value
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    fixed: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """Return the ROS descriptor, so that ``ros2 param describe`` shows text and range."""
        descriptor = ParameterDescriptor(description=self.description)
        if self.choices:
            descriptor.additional_constraints = f"one of {', '.join(self.choices)}"
        if self.bounds is not None:
            low, high = self.bounds
            if isinstance(self.default, float):
                limits = FloatingPointRange(from_value=float(low), to_value=float(high))
                descriptor.floating_point_range = [limits]
            else:
                whole = IntegerRange(from_value=int(low), to_value=int(high), step=1)
                descriptor.integer_range = [whole]
        return descriptor

    def check(self, value: object) -> None:
        """Raise ``ConfigError`` unless ``value`` is one of the choices, where there are any."""
        if self.choices and value not in self.choices:
            raise ConfigError(
                f"parameter {self.name}", expected=f"one of {', '.join(self.choices)}", got=value
            )


def declare(node: Node, table: Sequence[Declaration]) -> None:
    """Declare every parameter of ``table`` on ``node``."""
    for entry in table:
        default = (
            entry.default
            if isinstance(entry.default, (bool, int, float, str))
            else list(entry.default)
        )
        node.declare_parameter(entry.name, default, entry.descriptor())
