"""Charts as small pure functions: numbers in, inline SVG out. Every text is escaped; colours are classes of the style sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_WIDTH: Final = 640
_HEIGHT: Final = 260
_LEFT: Final = 62
_RIGHT: Final = 14
_TOP: Final = 10
_BOTTOM: Final = 42
_COLOURS: Final = 8
_MOST_POINTS: Final = 300
_TICKS: Final = 5
_FLAT: Final = 2e-3
_ROOM: Final = 0.05
_LONGEST_BAR: Final = 15


@dataclass(frozen=True)
class Series:
    """A named line, or with `marks` single points: (x, y), in order of x.

    spread: how far around each y, where that is known; least: what no value is below.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False
    spread: Sequence[float] = ()
    least: float = -math.inf

    @property
    def edges(self) -> list[tuple[float, float]]:
        """The points less their spread, then in the other direction the points and their spread: an outline."""
        around = list(zip(self.points, self.spread, strict=False))
        return [(x, max(y - s, self.least)) for (x, y), s in around] + [(x, y + s) for (x, y), s in reversed(around)]


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> Markup:
    """Lines over a common pair of axes, with a legend where there are several. Long lines are averaged over buckets."""
    drawn = [_thinned_series(each) for each in series]
    points = [point for each in drawn for point in (*each.points, *each.edges)]
    frame = _Frame(points, x_label, y_label, room=_ROOM if all(each.marks for each in drawn) else 0.0)
    parts = [frame.axes()]
    for index, each in enumerate(drawn):
        if each.spread:
            outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, each.edges))
            parts.append(Markup('<polygon class="band f{0} l{0}" points="{1}"/>').format(index % _COLOURS, outline))
    for index, each in enumerate(drawn):
        colour = index % _COLOURS
        places = [frame.place(point) for point in each.points]
        if not each.marks and len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(Markup('<polyline class="line l{}" points="{}"/>').format(colour, path))
        for (x, y), (given_x, given_y) in zip(places, each.points, strict=True):
            if each.marks or len(places) == 1:
                told = f"{each.name}: {number(given_x)}, {number(given_y)}"
                told += f" ± {number(each.spread[0])}" if each.spread else ""
                mark = Markup('<circle class="f{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
                parts.append(mark.format(colour, x, y, told))
    names = [each.name for each in drawn] if len(drawn) > 1 else []
    return _svg(f"{y_label} over {x_label}", parts, names)


def stacked_areas(parts: Sequence[Series], line: Series, x_label: str, y_label: str) -> Markup:
    """Parts one on another over common places, and a line that is not one of them. Long ones are averaged over buckets."""
    drawn, over = [_as_line(each) for each in parts], _as_line(line)
    heights, layers = [0.0] * len(over.points), []
    for each in drawn:
        below, heights = heights, [height + y for height, (_, y) in zip(heights, each.points, strict=True)]
        layers.append((below, heights))
    xs = [x for x, _ in over.points]
    frame = _Frame([*over.points, *zip(xs, heights, strict=True), (xs[0], 0.0)], x_label, y_label)
    shown = []
    for index, (each, (below, above)) in enumerate(zip(drawn, layers, strict=True)):
        outline = [*zip(xs, above, strict=True), *zip(reversed(xs), reversed(below), strict=True)]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, outline))
        area = Markup('<polygon class="area f{}" points="{}"><title>{}</title></polygon>')
        shown.append(area.format(index % _COLOURS, corners, f"{each.name}: {number(each.points[-1][1])} at the end"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, over.points))
    shown.append(Markup('<polyline class="line l{}" points="{}"/>').format(len(drawn) % _COLOURS, path))
    names = [*(each.name for each in drawn), over.name]
    return _svg(f"{y_label} over {x_label}", [frame.axes(), *shown], names)


def heat_map(
    labels: Sequence[str], values: Sequence[Sequence[float | None]], what: str, largest: float = 1.0
) -> Markup:
    """A square map: `values` [n, n], the darker the nearer to `largest`; below zero in another colour."""
    count = len(labels)
    cell = min(36, 560 / max(count, 1))
    parts = []
    for row, numbers_of_row in enumerate(values):
        y = 4 + row * cell
        parts.append(
            Markup('<text x="52" y="{:.1f}" text-anchor="end">{}</text>').format(y + cell / 2 + 4, labels[row])
        )
        for column, value in enumerate(numbers_of_row):
            x = 58 + column * cell
            share = 0.0 if value is None else min(abs(value) / largest, 1) if largest else 0.0
            kind = "heat below" if value is not None and value < 0 else "heat"
            told = f"{labels[row]}, {labels[column]}: {'none' if value is None else number(value)}"
            rect = Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.3f}">'
                "<title>{}</title></rect>"
            )
            parts.append(rect.format(kind, x, y, cell, cell, share, told))
    bottom = 4 + count * cell
    for column, label in enumerate(labels):
        place = Markup('<text text-anchor="end" transform="translate({:.1f} {:.1f}) rotate(-60)">{}</text>')
        parts.append(place.format(58 + (column + 0.6) * cell, bottom + 12, label))
    longest = max((len(label) for label in labels), default=0)
    return _svg(what, parts, [], width=max(58 + count * cell + 10, 200), height=bottom + 16 + 7 * min(longest, 20))


def stacked_bars(rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> Markup:
    """One horizontal bar a row, its parts one after another, all on one scale; `unit` names what is measured."""
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    widest = max((sum(parts.values()) for _, parts in rows), default=0) or 1.0
    longest = max((len(shortened(label, _LONGEST_BAR)) for label, _ in rows), default=0)
    left, height, drawn = round(20 + 9.5 * longest), 26, []
    for index, (label, bar) in enumerate(rows):
        y, x = 4 + index * height, float(left)
        drawn.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                left - 8, y + 15, shortened(label, _LONGEST_BAR)
            )
        )
        for name, value in bar.items():
            width = value / widest * (_WIDTH - left - _RIGHT)
            rect = Markup('<rect class="f{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>')
            told = f"{label}, {name}: {number(value)} {unit}"
            drawn.append(rect.format(names.index(name) % _COLOURS, x, y, width, height - 6, told))
            x += width
    return _svg(unit, drawn, names if len(names) > 1 else [], height=8 + len(rows) * height)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 300 points: each the mean of the neighbours that it stands for."""
    size = max(-(-len(points) // _MOST_POINTS), 1)
    buckets = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in some) / len(some), sum(y for _, y in some) / len(some)) for some in buckets]


def _thinned_series(series: Series) -> Series:
    xs = [x for x, _ in series.points]
    around = [y for _, y in thinned(list(zip(xs, series.spread, strict=False)))]
    return Series(series.name, thinned(series.points), series.marks, around, series.least)


def _as_line(series: Series) -> Series:
    """Thinned, and two points of the same height where there is one."""
    points = thinned(series.points)
    return Series(series.name, points if len(points) > 1 else [(x + side, y) for x, y in points for side in (0.0, 1.0)])


def number(value: float) -> str:
    """A number as people read it: `1,234`, `0.0312`, `3.2e-05`."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def shortened(text: str, most: int) -> str:
    """Text of at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class _Frame:
    """Axes that hold all points, with `room` at either end, as a share of the range."""

    def __init__(self, points: Iterable[tuple[float, float]], x_label: str, y_label: str, room: float = 0.0) -> None:
        known = list(points) or [(0.0, 0.0)]
        self.x_label, self.y_label = x_label, y_label
        self._whole = all(x == int(x) for x, _ in known)  # steps and taps have nothing between them
        self._x, self._y = (_wider(_range(values), room) for values in zip(*known, strict=True))

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point lies in the picture."""
        (low_x, high_x), (low_y, high_y) = self._x, self._y
        x = _LEFT + (point[0] - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (point[1] - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)
        return x, y

    def axes(self) -> Markup:
        """Both axes with ticks and labels."""
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = [Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(_LEFT, _TOP, bottom, right)]
        for value in (tick for tick in _ticks(*self._x) if tick == int(tick) or not self._whole):
            x, _ = self.place((value, self._y[0]))
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 16, number(value))
            )
        for value in _ticks(*self._y):
            _, y = self.place((self._x[0], value))
            parts.append(Markup('<path class="axis" d="M{} {:.1f}H{}"/>').format(_LEFT, y, right))
            parts.append(
                Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, number(value))
            )
        middle = (_TOP + bottom) / 2
        parts.append(
            Markup('<text x="{:.0f}" y="{}" text-anchor="middle">{}</text>').format(
                (_LEFT + right) / 2, _HEIGHT - 6, self.x_label
            )
        )
        turned = Markup('<text text-anchor="middle" transform="translate(12 {:.0f}) rotate(-90)">{}</text>')
        parts.append(turned.format(middle, self.y_label))
        return Markup("").join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= _FLAT * largest:  # a scale that fine would show rounding as a trend, and no tick could be told
        room = largest * 0.1 or 1.0
        return max(low - room, 0.0) if low >= 0 else low - room, high + room
    return low, high


def _wider(ends: tuple[float, float], room: float) -> tuple[float, float]:
    low, high = ends
    return low - room * (high - low), high + room * (high - low)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(
    label: str, parts: Sequence[Markup], legend: Sequence[str], width: float = _WIDTH, height: float = _HEIGHT
) -> Markup:
    x, y, drawn = 4.0, height + 14, list(parts)
    for index, name in enumerate(legend):
        shown = shortened(name, 40)
        taken = 28 + 8.5 * len(shown)
        if x + taken > width and x > 4:
            x, y = 4.0, y + 18
        drawn.append(
            Markup('<rect class="f{}" x="{:.0f}" y="{:.0f}" width="12" height="12"/>').format(
                index % _COLOURS, x, y - 10
            )
        )
        drawn.append(Markup('<text x="{:.0f}" y="{:.0f}">{}</text>').format(x + 16, y, shown))
        x += taken
    total = y + 6 if legend else height
    kind = "wide" if width == _WIDTH else "natural"
    head = Markup('<svg class="{}" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" role="img" aria-label="{}">')
    head = head.format(kind, width, total, width, label)
    return head + Markup("").join(drawn) + Markup("</svg>")
