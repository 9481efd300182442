"""What a benchmark found: rows, targets, machine and versions; as a table, as JSON, and as a plot beside it."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"
_CONSOLE = Console(width=150)


@dataclass
class Row:
    """One measured number, and how it compares."""

    group: str
    contender: str
    name: str
    value: float
    unit: str
    """"s", "bytes", "x" or what is counted."""
    low: float | None = None
    """Lower quartile."""
    high: float | None = None
    against: str | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    """Ends of a 95 % interval."""
    ratio_high: float | None = None
    x: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Target:
    """What was promised. It is met, missed, or could not be judged."""

    what: str
    found: float | None
    limit: float | None
    unit: str
    """"s", "bytes", "x" (a ratio), "%" (an overhead; 0.05 is 5 %) or what is counted."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the number found is at most the limit."""
        return None if self.found is None or self.limit is None else self.found <= self.limit


@dataclass
class Result:
    """One question's answer."""

    name: str
    title: str
    mode: str
    """"quick" or "full"."""
    settings: dict[str, Any]
    percent: bool = False
    """Ratios are shown as overheads."""
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d}")
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def target(self, what: str, found: float | None, limit: float | None, unit: str, note: str = "") -> None:
        """Judge a promise."""
        self.targets.append(Target(what, found, limit, unit, note))

    def finish(self, folder: Path | None = None) -> None:
        """Print the table, and write JSON and plot."""
        self.machine["load_after"] = _load()
        show(self)
        folder = folder or folder_of(self.mode == "quick")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        raw = asdict(self)
        for target, plain in zip(self.targets, raw["targets"], strict=True):
            plain["met"] = target.met
        path.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
        try:
            from plots import draw
        except ModuleNotFoundError as error:
            shown(f"no plot: {error.name} is not installed (pip install 'adaptergit[bench]')")
            return
        path.with_suffix(".svg").write_bytes(draw(self))


def folder_of(quick: bool) -> Path:
    """Return where results go: quick ones are nobody's record."""
    return FOLDER / "quick" if quick else FOLDER


def save(name: str, found: dict[str, Any], *, quick: bool) -> None:
    """Write a result of a form of its own, with machine and date; see :mod:`forms`."""
    keep(folder_of(quick) / f"{name}.json", found, "quick" if quick else "full")


def keep(path: Path, found: dict[str, Any], mode: str = "full") -> None:
    """Write a result of a form of its own into a file."""
    about = {"mode": mode, "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, **about}, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> Result:
    """Read what :meth:`Result.finish` wrote."""
    raw = json.loads(path.read_text())
    raw["rows"] = [Row(**row) for row in raw["rows"]]
    raw["targets"] = [Target(**{k: v for k, v in target.items() if k != "met"}) for target in raw["targets"]]
    return Result(**raw)


def show(result: Result) -> None:
    """Print a result as a table."""
    table = Table(title=f"{result.title} ({result.mode})", title_justify="left")
    for column in ("", "who", "what", "median", "quartiles", "ratio [95 %]", "of"):
        table.add_column(column, justify="right" if column in ("median", "quartiles") else "left")
    previous = ""
    for row in result.rows:
        spread = (
            "" if row.low is None or row.high is None else f"{number(row.low, row.unit)} – {number(row.high, row.unit)}"
        )
        group = "" if row.group == previous else row.group
        table.add_row(
            group,
            row.contender,
            row.name,
            number(row.value, row.unit),
            spread,
            compared(row, result.percent),
            row.against,
        )
        previous = row.group
    _CONSOLE.print(table)
    for target in result.targets:
        _CONSOLE.print(f"{verdict(target):<8} {judged(target)}", highlight=False)
    for note in (*result.notes, *busy(result.machine)):
        _CONSOLE.print(f"note: {note}", highlight=False)


def shown(text: str) -> None:
    """Print a line of progress."""
    _CONSOLE.print(text, style="dim", highlight=False)


def verdict(target: Target) -> str:
    """Return a target's outcome in a word."""
    return {True: "met", False: "missed", None: "open"}[target.met]


def judged(target: Target) -> str:
    """Return a target with its numbers."""
    found = "not measured" if target.found is None else number(target.found, target.unit)
    limit = "no limit to compare with" if target.limit is None else f"at most {number(target.limit, target.unit)}"
    return f"{target.what}: {found} ({limit}{'; ' + target.note if target.note else ''})"


def compared(row: Row, percent: bool) -> str:
    """Return a row's ratio with its interval."""
    if row.ratio is None:
        return ""
    if row.ratio_low is None or row.ratio_high is None:
        return f"{100 * (row.ratio - 1):+.1f} %" if percent else f"× {row.ratio:.3g}"
    if percent:
        middle, low, high = (100 * (value - 1) for value in (row.ratio, row.ratio_low, row.ratio_high))
        return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"
    return f"× {row.ratio:.3g} [{row.ratio_low:.3g}, {row.ratio_high:.3g}]"


def number(value: float, unit: str) -> str:
    """Return a number for people.

    >>> number(0.00123, "s"), number(3_500_000, "bytes"), number(0.083, "%"), number(1.5, "x")
    ('1.23 ms', '3.50 MB', '8.3 %', '× 1.5')
    """
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {name}" if value * factor < 1000 else f"{value * factor:,.0f} {name}"
        return f"{value * 1e6:.2g} µs"
    if unit == "bytes":
        for factor, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= factor:
                return f"{value / factor:.2f} {name}"
        return f"{value:.0f} bytes"
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"× {value:.4g}" if unit == "x" else f"{value:,.0f} {unit}" if value >= 1e6 else f"{value:,.6g} {unit}"


def busy(about: dict[str, Any]) -> list[str]:
    """Say so if other programs ran on the machine when a result was measured."""
    load, cores = about.get("load_before"), about.get("cores")
    if load is None or cores is None or load < 0.6 * cores:
        return []
    return [f"other programs ran (load {load:.1f} on {cores} cores): times are preliminary, ratios less so"]


def machine() -> dict[str, Any]:
    """Describe this machine."""
    found: dict[str, Any] = {
        "processor": _line("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "million_additions": _million_additions(),
        "load_before": _load(),
    }
    memory = _line("/proc/meminfo", r"MemTotal:\s*(\d+) kB")
    return {**found, "memory": 1024 * int(memory)} if memory else found


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _million_additions() -> float:
    """Return the seconds that Python needs for a million additions: how fast this machine is, told in a number."""

    def once() -> float:
        started, total = time.perf_counter(), 0
        for one in range(10**6):
            total += one
        return time.perf_counter() - started

    return round(min(once() for _ in range(3)), 4)


def _line(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None
