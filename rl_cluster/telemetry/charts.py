"""Line charts as inline SVG, drawn by ourselves so that a report is one small file.

Invariant: the text returned refers to nothing outside itself, and everything written by others is
escaped. Colours are classes (`series-0` ...), so that the page decides on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from rl_cluster.telemetry.formatting import number

WIDTH, HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 26
_FEW_POINTS = 150
_X_LABEL_WIDTH = 92

SERIES = 6
"""Colours that the page knows."""

Point = tuple[float, float]
Band = tuple[float, float, float]
"""x, low, high."""


class Curve:
    """Points of one line, kept few: neighbours are averaged as they grow in number.

    A run that resumed did some steps twice. `add` drops earlier points at or beyond the new x, so
    the line is what the surviving policy went through.
    """

    def __init__(self) -> None:
        self._kept: list[Point] = []
        self._pending: list[Point] = []
        self._stride = 1

    @property
    def points(self) -> list[Point]:
        """The line so far, x rising; fewer than 300 points."""
        return [*self._kept, *([_mean(self._pending)] if self._pending else [])]

    def add(self, x: float, y: float) -> None:
        """Take the next point of a file."""
        for points in (self._pending, self._kept):
            while points and points[-1][0] >= x:
                points.pop()
        self._pending.append((x, y))
        if len(self._pending) >= self._stride:
            self._kept.append(_mean(self._pending))
            self._pending.clear()
        if len(self._kept) >= 2 * _FEW_POINTS:
            self._kept = [_mean(self._kept[i : i + 2]) for i in range(0, len(self._kept), 2)]
            self._stride *= 2


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    series: int = 0
    """Colour: 0 to SERIES - 1."""
    dashed: bool = False
    """For what is compared with: the random policy, the wanted value."""
    dots: bool = False
    """Mark every point: for few measurements, such as evaluations."""
    band: Sequence[Band] = ()
    """Of a confidence interval, x rising."""


@dataclass(frozen=True)
class Chart:
    """A titled picture of some lines over one x-axis."""

    title: str
    explanation: str
    """Shown as a tool tip."""
    x_label: str
    lines: Sequence[Line]
    format_x: Callable[[float], str]
    format_y: Callable[[float], str] = number


def render_chart(chart: Chart) -> str:
    """Return an HTML figure: title, legend, SVG."""
    drawn = [line for line in chart.lines if line.points]
    body = _svg(chart, drawn) if drawn else '<p class="empty">no data yet</p>'
    return (
        f'<figure title="{escape(chart.explanation)}"><figcaption>{escape(chart.title)}'
        f"{_legend(drawn)}</figcaption>{body}</figure>"
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round values (1, 2 or 5 times a power of ten) between low and high."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """The data's range, and where it lies on the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _svg(chart: Chart, lines: Sequence[Line]) -> str:
    frame = _frame_of(lines)
    parts = [*_axes(chart, frame), *(_drawn(line, frame) for line in lines)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f"{''.join(parts)}</svg>"
    )


def _frame_of(lines: Sequence[Line]) -> _Frame:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, *ends in line.band for y in ends]
    x_low, x_high = min(0.0, *xs), max(xs)
    y_low, y_high = _spread(min(ys), max(ys))
    return _Frame(x_low, x_high if x_high > x_low else x_low + 1.0, y_low, y_high)


def _spread(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def _axes(chart: Chart, frame: _Frame) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 6, y + 3.5, "end", chart.format_y(value))
    for value in ticks(frame.x_low, frame.x_high, wanted=8):
        if frame.x(value) < right - _X_LABEL_WIDTH:
            yield _text(frame.x(value), bottom + 15, "middle", chart.format_x(value))
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield _text(right, bottom + 15, "end", chart.x_label)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _drawn(line: Line, frame: _Frame) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    drawn = _drawn_band(line, frame)
    drawn += f'<polyline class="{_classes(line)}" points="{_path(places)}"/>'
    if line.dots or len(places) == 1:
        drawn += "".join(
            f'<circle class="{_classes(line)}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
            for x, y in places
        )
    return drawn


def _drawn_band(line: Line, frame: _Frame) -> str:
    if not line.band:
        return ""
    lows = [(frame.x(x), frame.y(low)) for x, low, _ in line.band]
    highs = [(frame.x(x), frame.y(high)) for x, _, high in reversed(line.band)]
    return f'<polygon class="band series-{line.series}" points="{_path([*lows, *highs])}"/>'


def _path(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    return "".join(
        f'<span class="key"><svg viewBox="0 0 18 6"><line class="{_classes(line)}" x1="0" x2="18" '
        f'y1="3" y2="3"/></svg>{escape(line.label)}</span>'
        for line in lines
    )


def _classes(line: Line) -> str:
    return f"series-{line.series}" + (" dashed" if line.dashed else "")


def _mean(points: Sequence[Point]) -> Point:
    return (
        sum(x for x, _ in points) / len(points),
        sum(y for _, y in points) / len(points),
    )
