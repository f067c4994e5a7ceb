"""What every managed node here shares: parameters, 1 Hz diagnostics, and a way to fail safely."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.timer import Timer

from edge_perception.core.lately import Lately
from edge_perception.errors import EdgePerceptionError
from edge_perception.nodes.messages import to_diagnostic_array, to_status
from edge_perception.nodes.params import Declaration, declare

STARTING = (
    Declaration(
        "autostart",
        False,
        "Configure and activate the node when its process starts, without a life-cycle manager.",
    ),
    Declaration(
        "exit_on_failure",
        False,
        "End the process with status 1 where autostart fails, for scripts. A robot's node lives on"
        " unconfigured, tells why in diagnostics, and can be configured again.",
    ),
)
DIAGNOSTICS_PERIOD_S = 1.0

# Topics that a robot's other nodes read and write obey the standard parameters qos_overrides.
OVERRIDABLE = QoSOverridingOptions.with_default_policies()

Health = tuple[bytes, str]


class ManagedNode(LifecycleNode, abc.ABC):
    """A managed node that reports on ``/diagnostics`` and survives its own errors.

    Subclasses implement ``configure``, ``activate``, ``deactivate``, ``cleanup`` and ``counters``;
    errors raised inside the first two become a failed transition with the reason in the log and
    in diagnostics, never a dead process. After an error both ``deactivate`` and ``cleanup`` must
    cope with work that was done by half; errors of their own are told and stop nothing.
    """

    def __init__(self, name: str, table: Sequence[Declaration], **node_options: object) -> None:
        super().__init__(name, **node_options)
        self._table: dict[str, Declaration] = {entry.name: entry for entry in (*STARTING, *table)}
        declare(self, tuple(self._table.values()))
        self._failure: str | None = None
        self._configured = False
        self._active = False
        self.lately = Lately()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_steady_timer(
            DIAGNOSTICS_PERIOD_S, self.publish_diagnostics
        )
        self.add_on_set_parameters_callback(self._check_parameters)
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._answer_change_state

    def create_steady_timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """Call back every ``period_s`` of real time, also while a simulated one stands still.

        Before the first message on /clock it does, and that may wait for what a timer brings about.
        """
        return self.create_timer(period_s, callback, clock=self._steady)

    @abc.abstractmethod
    def configure(self) -> None:
        """Acquire what the node needs; raise an ``EdgePerceptionError`` where that fails."""

    @abc.abstractmethod
    def cleanup(self) -> None:
        """Give everything back; called also after a ``configure`` that failed midway."""

    def activate(self) -> None:
        """Begin to work."""

    def deactivate(self) -> None:
        """Stop working; what was acquired stays."""

    @abc.abstractmethod
    def counters(self) -> Mapping[str, object]:
        """Return what diagnostics tell."""

    def health(self) -> Health:
        """Return level and message while active; overridden where more is known."""
        return DiagnosticStatus.OK, "active"

    def apply_parameters(self, values: Mapping[str, Any]) -> None:
        """Take over parameters that change at run time; raise ``ConfigError`` to refuse."""

    # The transitions, as rclpy calls them.

    def _answer_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Answer "no" to a transition that the present state lacks, where rclpy itself raises.

        What it raises would end the executor, and the asker would wait forever.
        """
        try:
            return self._change_state(request, response)
        except RuntimeError:  # RCLError, which rclpy exports nowhere
            response.success = False
            return response

    def on_configure(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Run ``configure``."""
        try:
            self.configure()
        except Exception as error:  # rclpy would swallow what is not expected without a word
            self._tell_failure(f"cannot configure: {_in_words(error)}")
            self._attempt(self.cleanup)
            return TransitionCallbackReturn.FAILURE
        self._failure = None
        self._configured = True
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run ``activate`` once the publishers are active."""
        result = super().on_activate(state)
        try:
            self.activate()
        except Exception as error:
            self._tell_failure(f"cannot activate: {_in_words(error)}")
            self._attempt(self.deactivate)
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        self._active = True
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run ``deactivate``."""
        self._active = False
        self._attempt(self.deactivate)
        return super().on_deactivate(state)

    def on_cleanup(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Run ``cleanup``."""
        self._configured = False
        self._attempt(self.cleanup)
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Stop and give everything back, from whatever state."""
        self.stop()
        return TransitionCallbackReturn.SUCCESS

    def stop(self) -> None:
        """Give everything back when the process ends; may be called in any state, and twice."""
        if self._active:
            self._active = False
            self._attempt(self.deactivate)
        if self._configured:
            self._configured = False
            self._attempt(self.cleanup)

    def fail(self, reason: str) -> None:
        """Leave a node whose work cannot go on unconfigured, able to be configured again."""
        self._tell_failure(reason)
        if self._active:
            self.trigger_deactivate()
        if self._configured:
            self.trigger_cleanup()

    def _attempt(self, step: Callable[[], None]) -> None:
        """Stop working or give back: an error is told, but the node is stopped all the same."""
        try:
            step()
        except Exception as error:
            reason = f"{step.__name__} went wrong: {_in_words(error)}"
            self.get_logger().error(reason)
            self._failure = self._failure or reason  # what failed first says more

    def _tell_failure(self, reason: str) -> None:
        self._failure = reason
        self.get_logger().error(reason)
        self.publish_diagnostics()

    # Diagnostics and parameters.

    def publish_diagnostics(self) -> None:
        """Publish one status named after the node."""
        level, message = self._health()
        values = self.counters() if self._configured else {}
        status = to_status(self.get_fully_qualified_name().lstrip("/"), level, message, values)
        header = DiagnosticArray().header
        header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(to_diagnostic_array(header, status))

    def _health(self) -> Health:
        if self._failure is not None:
            return DiagnosticStatus.ERROR, self._failure
        if not self._active:
            return DiagnosticStatus.STALE, "inactive" if self._configured else "unconfigured"
        return self.health()

    def _check_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        fixed = [p.name for p in parameters if p.name in self._table and self._table[p.name].fixed]
        if fixed and self._configured:
            reason = f"{', '.join(fixed)} cannot change while configured; clean the node up first"
            return SetParametersResult(successful=False, reason=reason)
        changed = {p.name: p.value for p in parameters if p.name in self._table}
        try:
            for name, value in changed.items():
                self._table[name].check(value)
            if self._configured and changed:
                self.apply_parameters({**self.parameter_values(), **changed})
        except EdgePerceptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def parameter_values(self) -> dict[str, Any]:
        """Return every parameter of this node's table."""
        return {name: self.get_parameter(name).value for name in self._table}


def reliable(depth: int) -> QoSProfile:
    """A new profile each time: rclpy writes what ``qos_overrides`` say into the one it is given."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)


def _in_words(error: Exception) -> str:
    """Errors raised on purpose speak for themselves; of others the kind says most."""
    return str(error) if isinstance(error, EdgePerceptionError) else f"{error!r}"
