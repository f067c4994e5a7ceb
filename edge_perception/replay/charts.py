"""The reports' charts as inline SVG.

Drawn by hand rather than by matplotlib, because an inline SVG takes its colours from the page
(dark or light), stays sharp, and has some kilobytes. Colours are CSS variables of page.css.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_WIDTH, _HEIGHT = 1080, 264
_LEFT, _RIGHT, _TOP = 52, 16, 26
_BASE = _HEIGHT - 38
_MOST_DRAWN = 4000


@dataclass(frozen=True)
class _Axis:
    """A linear map from values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def px(self, value: float) -> float:
        span = self.high - self.low if self.high > self.low else 1.0
        return self.start_px + (value - self.low) * (self.end_px - self.start_px) / span


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return round values between ``low`` and ``high``, some ``about`` of them."""
    if not high - low > 1e-9:  # ticks are told to ten places
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / about))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= about:
            step *= factor
            break
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def histogram(
    values: Sequence[float],
    marks: Mapping[str, float | None],
    *,
    unit: str = "ms",
    counted: str = "frames",
    title: str = "Histogram of end-to-end latency",
) -> str:
    """Draw how often each value occurred, with a line and its name at each mark.

    ``unit`` and ``counted`` are the words of the axes. Values are not negative. The axis ends at
    the 99.5th percentile or the last mark, so that one outlier does not press the rest together;
    what lies beyond is told in words.
    """
    if not values:
        return _nothing(counted)
    known = {name: value for name, value in marks.items() if value is not None}
    end = max(float(np.percentile(values, 99.5)), *known.values(), 1e-3) * 1.04
    counts, edges = np.histogram(values, bins=60, range=(0.0, end))
    beyond = sum(value > end for value in values)
    axis_x = _Axis(0.0, end, _LEFT, _WIDTH - _RIGHT)
    axis_y = _Axis(0.0, float(counts.max()), _BASE, _TOP)
    bars = [
        f'<rect class="bar" x="{axis_x.px(left) + 0.75:.1f}" y="{axis_y.px(count):.1f}"'
        f' width="{axis_x.px(right) - axis_x.px(left) - 1.5:.1f}"'
        f' height="{_BASE - axis_y.px(count):.1f}"'
        f' rx="1.5"><title>{left:.4g} to {right:.4g} {unit}: {count} {counted}</title></rect>'
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    ]
    parts = [*_vertical_grid(axis_y, nice_ticks(0, axis_y.high, 4)), *bars]
    parts += [_mark(axis_x.px(value), name, value) for name, value in known.items()]
    parts += _horizontal_axis(axis_x, nice_ticks(0, end, 10), unit)
    if beyond:
        parts.append(_note(f"{beyond} beyond {end:.3g} {unit}"))
    return _svg(parts, title)


def changes(
    levels: Sequence[float], differences: Sequence[float], *, title: str, counted: str
) -> str:
    """Draw a point a pair: how far a value in 0..1 moved, over where it was.

    The vertical axis is symmetric, so that a bias to one side is seen as one. Of more than 4,000
    points every n-th is drawn, and the chart says so.
    """
    if not levels:
        return _nothing(counted)
    step = math.ceil(len(levels) / _MOST_DRAWN)
    end = max(max(map(abs, differences)), 1e-3) * 1.1
    axis_x = _Axis(0.0, 1.0, _LEFT, _WIDTH - _RIGHT)
    axis_y = _Axis(-end, end, _BASE, _TOP)
    zero = f'y1="{axis_y.px(0):.1f}" y2="{axis_y.px(0):.1f}"'
    parts = [
        *_vertical_grid(axis_y, nice_ticks(-end, end, 5)),
        f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {zero}/>',
    ]
    parts += [
        f'<circle class="point" cx="{axis_x.px(level):.1f}" cy="{axis_y.px(change):.1f}" r="2.4">'
        f"<title>{level:.3f}: {change:+.4f}</title></circle>"
        for level, change in zip(levels[::step], differences[::step], strict=True)
    ]
    parts += _horizontal_axis(axis_x, nice_ticks(0.0, 1.0, 10), "")
    if step > 1:
        parts.append(_note(f"one of {step} {counted} is drawn"))
    return _svg(parts, title)


def timeline(
    seconds: Sequence[float],
    values_ms: Sequence[float | None],
    deadline_ms: float,
) -> str:
    """Draw each sent frame at its time: a point at its latency, or a tick below if dropped.

    Of more than 4,000 frames every n-th is drawn, and the chart says so.
    """
    step = math.ceil(len(values_ms) / _MOST_DRAWN)
    seconds, values_ms = seconds[::step], values_ms[::step]
    known = [value for value in values_ms if value is not None]
    if not known:
        return _nothing("frames")
    top = max(known) * 1.08
    axis_x = _Axis(0.0, max(*seconds, 1e-3), _LEFT, _WIDTH - _RIGHT)
    axis_y = _Axis(0.0, top, _BASE - 14, _TOP)
    parts = _vertical_grid(axis_y, nice_ticks(0, top, 4))
    if deadline_ms < top:
        parts.append(_deadline(axis_y.px(deadline_ms), deadline_ms))
    parts += [
        _frame(axis_x.px(second), second, value, axis_y)
        for second, value in zip(seconds, values_ms, strict=True)
    ]
    parts += _horizontal_axis(axis_x, nice_ticks(0, axis_x.high, 10), "s")
    if step > 1:
        parts.append(_note(f"one of {step} frames is drawn"))
    return _svg(parts, "End-to-end latency of each frame over time")


def _frame(x: float, second: float, value: float | None, axis_y: _Axis) -> str:
    if value is None:
        return (
            f'<line class="dropped" x1="{x:.1f}" x2="{x:.1f}" y1="{_BASE - 8}" y2="{_BASE}">'
            f"<title>dropped at {second:.2f} s</title></line>"
        )
    return (
        f'<circle class="point" cx="{x:.1f}" cy="{axis_y.px(value):.1f}" r="2.4">'
        f"<title>{second:.2f} s: {value:.1f} ms</title></circle>"
    )


def _deadline(y: float, deadline_ms: float) -> str:
    return (
        f'<line class="deadline" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="note" x="{_WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">'
        f"deadline {deadline_ms:g} ms</text>"
    )


def _mark(x: float, name: str, value: float) -> str:
    anchor = "end" if x > _WIDTH - 120 else "start"
    offset = -6 if anchor == "end" else 6
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 12}" y2="{_BASE}"/>'
        f'<text class="mark-text" x="{x + offset:.1f}" y="{_TOP - 4}" text-anchor="{anchor}">'
        f"{name} {value:.{1 if value >= 1 else 2}f}</text>"
    )


def _vertical_grid(axis_y: _Axis, ticks: Sequence[float]) -> list[str]:
    return [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{axis_y.px(t):.1f}"'
        f' y2="{axis_y.px(t):.1f}"/><text class="tick" x="{_LEFT - 8}" y="{axis_y.px(t) + 4:.1f}"'
        f' text-anchor="end">{t:g}</text>'
        for t in ticks
    ]


def _horizontal_axis(axis_x: _Axis, ticks: Sequence[float], unit: str) -> list[str]:
    right = _WIDTH - _RIGHT
    axis = f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{_BASE}" y2="{_BASE}"/>'
    labels = [
        f'<text class="tick" x="{axis_x.px(t):.1f}" y="{_BASE + 20}" text-anchor="middle">'
        f"{t:g}{' ' + unit if index == len(ticks) - 1 else ''}</text>"
        for index, t in enumerate(ticks)
    ]
    return [axis, *labels]


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def _note(text: str) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - 2
    return f'<text class="note" x="{right}" y="{bottom}" text-anchor="end">{text}</text>'


def _nothing(counted: str) -> str:
    return f'<p class="note">No {counted} to draw.</p>'
