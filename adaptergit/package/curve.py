"""How a training went, as a card says it and as a picture: a function of the card alone.

The picture is a file of the package, because forges show committed SVG files and none that stands inside Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

PICTURE = "training.svg"
MOST = 64
"""Points of a series in a card."""
FAR = 1e15
"""What is as large is no point that anybody could read; nor is what is no number."""

_MARK = "<!-- drawn from card.yaml by adaptergit -->"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 200, 56, 12, 30, 34
"""Of one plot, and the room around its lines."""


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    """What was measured."""
    unit: str
    """What the first numbers count: steps, epochs."""
    points: tuple[tuple[float, float], ...]

    @property
    def told(self) -> str:
        """The line in words, for those who do not see it."""
        (first, start), (last, end) = self.points[0], self.points[-1]
        at, then = f"{_number(start)} at {self.unit} {_number(first)}", f"{_number(end)} at {_number(last)}"
        return f"{self.name} {at}, {then}"


def thinned(points: Sequence[tuple[float, float]], most: int = MOST) -> list[list[float]]:
    """Return at most so many points: each is the mean of those it stands for, at the place of the last of them.

    >>> thinned([(1, 4.0), (2, 2.0), (3, 1.0)], most=2)
    [[2, 3.0], [3, 1.0]]
    """
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [[group[-1][0], float(f"{sum(y for _, y in group) / len(group):.4g}")] for group in groups]


def series_of(card: Mapping[str, Any]) -> list[Series]:
    """Return what a card's data says of how its training went; nothing, if it does not."""
    curve = card.get("training", {}).get("curve", {})
    named = (("loss", "training loss", "step"), ("score", str(curve.get("metric", "score")), "epoch"))
    found = (Series(name, unit, tuple((x, y) for x, y in curve.get(key, ()))) for key, name, unit in named)
    return [one for one in found if len(one.points) > 1]


def picture(series: Sequence[Series]) -> str:
    """Draw series side by side, always to the same bytes; colours are for light and dark pages alike."""
    width = _WIDTH * len(series)
    title = escape("; ".join(one.told for one in series), quote=False)
    plots = "".join(_plot(one, _WIDTH * number) for number, one in enumerate(series))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="11" fill="#7d8590">\n<title>{title}</title>\n{plots}</svg>\n'
    )


def picture_file(series: Sequence[Series]) -> bytes:
    """Return the content of the file of that picture, which says that it was drawn."""
    return f"{_MARK}\n{picture(series)}".encode()


def is_drawn(data: bytes) -> bool:
    """Tell whether a file is such a picture, and no one's own."""
    return data.startswith(_MARK.encode())


def _plot(series: Series, offset: int) -> str:
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    left, right, top, bottom = offset + _LEFT, offset + _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    low, high = min(ys), max(ys)
    wide, tall = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0

    def place(x: float, y: float) -> str:
        across = left + (right - left) * (x - min(xs)) / wide
        down = bottom - (bottom - top) * (y - low) / tall
        return f"{across:.1f},{down:.1f}"

    line = " ".join(place(x, y) for x, y in series.points)
    marks = [(y, bottom - (bottom - top) * (y - low) / tall) for y in dict.fromkeys((low, high))]
    ticks = "".join(
        f'<text x="{left - 6}" y="{down + 4:.1f}" text-anchor="end">{_number(y)}</text>' for y, down in marks
    )
    return (
        f'<text x="{left}" y="18">{escape(series.name, quote=False)}</text>\n'
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#7d8590" stroke-opacity="0.5"/>\n'
        f'<polyline points="{line}" fill="none" stroke="#3b82d6" stroke-width="2" stroke-linejoin="round"/>\n'
        f"{ticks}\n"
        f'<text x="{left}" y="{bottom + 16}">{_number(min(xs))}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{series.unit} {_number(max(xs))}</text>\n'
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 or value != int(value) else f"{value:.0f}"
