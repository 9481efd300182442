"""A result as a picture: bars with quartiles for each group, or lines where something grows."""

from __future__ import annotations

import io
from collections import defaultdict

import matplotlib as mpl
from matplotlib.figure import Figure
from results import Result, Row

_COLOURS = {"ours": "#1b6ca8", "ours on 4.57": "#6fa8d0", "adapters": "#d1792c", "peft": "#5a9b4f"}
_OTHER = "#888888"
_LOG_FROM = 50
"""How many times the shortest bar the longest is, where bars of one scale would show only that one."""
_SCALES = {"s": (1e3, "ms"), "bytes": (1e-6, "MB"), "x": (1, "times"), "%": (100, "%")}
# Ids and dates that do not change from one drawing to the next.
mpl.rcParams.update({"svg.hashsalt": "adaptergit", "svg.fonttype": "none", "font.size": 9})


def draw(result: Result) -> bytes:
    """Return an SVG."""
    grows = [row for row in result.rows if row.x is not None]
    figure = _lines(grows) if grows else _bars(result)
    figure.suptitle(result.title)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return out.getvalue()


def _bars(result: Result) -> Figure:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in result.rows:
        groups[row.group, row.unit].append(row)
    heights = [0.6 + 0.24 * len(rows) for rows in groups.values()]
    figure = Figure(figsize=(8, sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, ((group, unit), rows) in zip(panels, groups.items(), strict=True):
        as_overhead = result.percent and any(row.ratio is not None for row in rows)
        shown = [row for row in rows if row.ratio is not None] if as_overhead else rows
        values, lows, highs = zip(*(_bar(row, as_overhead) for row in shown), strict=True)
        spread = [
            [v - low for v, low in zip(values, lows, strict=True)],
            [h - v for v, h in zip(values, highs, strict=True)],
        ]
        labels = [f"{row.contender}: {row.name}" for row in shown]
        colours = [_COLOURS.get(row.contender, _OTHER) for row in shown]
        panel.barh(labels, values, xerr=spread, color=colours, height=0.7, error_kw={"lw": 0.8, "ecolor": "#333333"})
        positive = [value for value in values if value > 0]
        if not as_overhead and positive and max(positive) > _LOG_FROM * min(positive):
            panel.set_xscale("log")
        panel.invert_yaxis()
        panel.set_title(group, loc="left", fontsize=9)
        panel.set_xlabel("% above the plain model" if as_overhead else _SCALES.get(unit, (1, unit))[1])
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _bar(row: Row, as_overhead: bool) -> tuple[float, float, float]:
    if as_overhead:
        assert row.ratio is not None
        ends = row.ratio_low or row.ratio, row.ratio_high or row.ratio
        return 100 * (row.ratio - 1), 100 * (ends[0] - 1), 100 * (ends[1] - 1)
    factor = _SCALES.get(row.unit, (1, ""))[0]
    low, high = (row.value if end is None else end for end in (row.low, row.high))
    return factor * row.value, factor * low, factor * high


def _lines(rows: list[Row]) -> Figure:
    kinds: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        kinds[row.name, row.unit][row.contender].append(row)
    figure = Figure(figsize=(8, 3.4 * -(-len(kinds) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(kinds) // 2), 2, squeeze=False).ravel()
    for panel, ((name, unit), series) in zip(panels, kinds.items(), strict=False):
        factor, shown = _SCALES.get(unit, (1, unit))
        for contender, points in series.items():
            colour = _COLOURS.get(contender, _OTHER)
            xs, ys = [row.x for row in points], [factor * row.value for row in points]
            panel.plot(xs, ys, "o-", color=colour, label=contender, markersize=4)
        panel.set(title=name, xscale="log", yscale="log", ylabel=shown)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(kinds) :]:
        panel.set_visible(False)
    return figure
