"""ROS parameters declared from one table a node, with descriptors and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple, Union

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

Value = Union[bool, int, float, str, Sequence[str]]


@dataclass(frozen=True)
class Declaration:
    """One parameter: its name, default, what it means, and the values that it may take.

    ``bounds`` are inclusive. ``fixed`` parameters are read when the node is configured and
    refuse to change while it is configured or active.
    """

    name: str
    default: Value
    description: str
    bounds: Optional[Tuple[float, float]] = None
    fixed: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """Return the ROS descriptor, so that ``ros2 param describe`` shows text and range."""
        descriptor = ParameterDescriptor(description=self.description)
        if self.bounds is not None:
            low, high = self.bounds
            if isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low, to_value=high)
                ]
            else:
                whole = IntegerRange(from_value=int(low), to_value=int(high), step=1)
                descriptor.integer_range = [whole]
        return descriptor


def declare(node: Node, table: Sequence[Declaration]) -> None:
    """Declare every parameter of ``table`` on ``node``.

    A string list is declared with the type of its default; an empty default needs the explicit
    type, since rclpy cannot infer one from an empty list.
    """
    for entry in table:
        default: Any = entry.default
        if isinstance(default, (list, tuple)):
            default = Parameter(entry.name, Parameter.Type.STRING_ARRAY, list(default)).value
        node.declare_parameter(entry.name, default, entry.descriptor())


def value_of(node: Node, name: str) -> Any:
    """Return the current value of a declared parameter."""
    return node.get_parameter(name).value
