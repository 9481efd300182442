"""Leaderboards, and small plots of score against size: made once for everything that is compared with one another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaptergit.index.site.model import Adapter, size_text

_LOW = {"loss", "mae", "mse", "perplexity", "rmse", "wer", "cer", "eval_loss"}
"""Metrics of which less is better."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 620, 20, 250


@dataclass(frozen=True)
class Row:
    """One place of a leaderboard."""

    place: int
    adapter: Adapter
    value: str


@dataclass(frozen=True)
class Dot:
    """One adapter in a plot."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Plot:
    """Score against size."""

    title: str
    ys: tuple[tuple[float, str], ...]
    xs: tuple[tuple[float, str], ...]
    dots: dict[str, Dot]
    """By page."""
    front: str
    """Path through what nothing smaller beats."""


@dataclass(frozen=True)
class Board:
    """Who is how good at one thing."""

    title: str
    metric: str
    rows: tuple[Row, ...]
    plot: Plot | None
    places: dict[str, int]
    """Of all, by page."""

    def top(self, most: int, here: Adapter | None = None) -> list[Row]:
        """Return the first rows, and that of an adapter wherever it is."""
        rows = list(self.rows[:most])
        if here is not None and (place := self.places.get(here.page, 0)) > most:
            rows.append(self.rows[place - 1])
        return rows


def boards(adapters: Sequence[Adapter], *, most: int, dots: int) -> list[Board]:
    """Return a leaderboard for every data set and metric that several adapters have a number of.

    Args:
        adapters: That are compared.
        most: Boards; those with the most adapters.
        dots: In a plot; the best ones.
    """
    scores: dict[tuple[str, str], list[tuple[Adapter, float]]] = defaultdict(list)
    for adapter in adapters:
        seen = set()
        for metric in adapter.entry.metrics:
            key = metric.dataset, metric.name
            if math.isfinite(metric.value) and key not in seen:
                scores[key].append((adapter, metric.value))
                seen.add(key)
    several = [item for item in scores.items() if len(item[1]) > 1]
    several.sort(key=lambda item: (-len(item[1]), item[0]))
    return [_board(dataset, name, found, dots) for (dataset, name), found in several[:most]]


def _board(dataset: str, name: str, found: list[tuple[Adapter, float]], dots: int) -> Board:
    sign = 1 if name.lower() in _LOW else -1
    found.sort(key=lambda item: (sign * item[1], item[0].entry.id))
    rows = tuple(Row(place, adapter, f"{value:.4g}") for place, (adapter, value) in enumerate(found, 1))
    title = f"{name} on {dataset}"
    places = {row.adapter.page: row.place for row in rows}
    return Board(title, name, rows, _plot(title, found[:dots], sign), places)


def _plot(title: str, found: Sequence[tuple[Adapter, float]], sign: int) -> Plot | None:
    points = [(adapter, math.log10(adapter.entry.size), value) for adapter, value in found if adapter.entry.size]
    sizes, values = [size for _, size, _ in points], [value for _, _, value in points]
    if len(points) < 2 or (max(values) == min(values) and max(sizes) == min(sizes)):
        return None
    left, right = min(sizes) - 0.1, max(sizes) + 0.1
    margin = (max(values) - min(values)) * 0.1 or abs(values[0]) * 0.1 or 1.0
    low, high = min(values) - margin, max(values) + margin

    def x(size: float) -> float:
        return round(_LEFT + 10 + (_RIGHT - _LEFT - 20) * (size - left) / (right - left), 1)

    def y(value: float) -> float:
        return round(_BOTTOM - 5 - (_BOTTOM - _TOP - 15) * (value - low) / (high - low), 1)

    placed = {
        adapter.page: Dot(x(size), y(value), f"{adapter.entry.name}: {value:.4g}, {adapter.size}")
        for adapter, size, value in points
    }
    best = list(_front(sorted((size, sign * value) for _, size, value in points)))
    front = "".join(f"{'L' if n else 'M'}{x(size)} {y(sign * value)}" for n, (size, value) in enumerate(best))
    return Plot(
        f"{title} against size",
        tuple((y(value), f"{value:.3g}") for value in (low + (high - low) * i / 4 for i in range(5))),
        tuple((x(size), size_text(int(10**size))) for size in (left + (right - left) * i / 3 for i in range(4))),
        placed,
        front if len(best) > 1 else "",
    )


def _front(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield the points that are better than every smaller one."""
    best = math.inf
    for size, badness in points:
        if badness < best:
            best = badness
            yield size, badness
