"""Curves as a plain SVG file, drawn by hand: a line for each arm, with its spread over seeds.

The idea: a few sizes on a scale where each has the same distance to the next, whatever they are. The invariant: the
same numbers give the same file, byte by byte, so that a page of results changes only with its results.
What this does not do: anything that a reader could click on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from xml.sax.saxutils import escape

Point: TypeAlias = tuple[float, float, float]  # x, mean, standard deviation

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 36, 48
TICKS = 5
MARGIN = 0.05  # of the range, above and below the curves
# Okabe and Ito's colours, which people who see fewer colours can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Curve:
    """One drawing: a line for each arm, of points with rising x."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class _Scale:
    """Where numbers lie on the drawing."""

    places: tuple[float, ...]
    low: float
    high: float

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Scale:
        low = min(mean - sd for _, mean, sd in points)
        high = max(mean + sd for _, mean, sd in points)
        room = MARGIN * (high - low) or abs(high) or 1.0
        return cls(tuple(sorted({x for x, _, _ in points})), low - room, high + room)

    def x(self, value: float) -> float:
        step = (WIDTH - LEFT - RIGHT) / max(len(self.places) - 1, 1)
        return LEFT + step * self.places.index(value)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)


def plot(curve: Curve) -> str:
    """Return the drawing as SVG. Raises ValueError if there is no point."""
    points = [point for line in curve.lines.values() for point in line]
    if not points:
        raise ValueError(f"'{curve.title}' has no points to draw")
    scale = _Scale.of(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, TOP - 16, curve.title, extra=' font-weight="bold"'),
        *_axes(curve, scale),
    ]
    for number, (name, line) in enumerate(curve.lines.items()):
        parts += _line(name, line, number, scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(curve: Curve, scale: _Scale) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="black"/>']
    for tick in range(TICKS):
        value = scale.low + (scale.high - scale.low) * tick / (TICKS - 1)
        parts.append(f'<path d="M{LEFT} {scale.y(value):.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, scale.y(value) + 4, f"{value:.3f}", anchor="end"))
    parts += [_text(scale.x(place), bottom + 16, f"{place:g}", anchor="middle") for place in scale.places]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 10, curve.x_label, anchor="middle"))
    middle = (TOP + bottom) / 2
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    return [*parts, _text(14, middle, curve.y_label, anchor="middle", extra=turned)]


def _line(name: str, line: Sequence[Point], number: int, scale: _Scale) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(f"{scale.x(x):.1f},{scale.y(mean):.1f}" for x, mean, _ in line)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for x, mean, sd in line:
        across, low, high = scale.x(x), scale.y(mean - sd), scale.y(mean + sd)
        parts.append(f'<path d="M{across:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{across:.1f}" cy="{scale.y(mean):.1f}" r="3" fill="{colour}"/>')
    height = TOP + 18 * number
    swatch = WIDTH - RIGHT + 16
    parts.append(f'<path d="M{swatch} {height}h16" stroke="{colour}" stroke-width="2"/>')
    return [*parts, _text(swatch + 22, height + 4, name)]


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
