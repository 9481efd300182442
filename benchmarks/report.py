"""Write docs/performance.md and its plots from the results. ``--quick`` only prints how the quick results stand.

Nothing is measured here: whoever runs a benchmark runs this after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from forms import FORMS
from results import Result, Row, busy, compared, folder_of, judged, number, read, verdict
from rich.console import Console
from rich.table import Table

TRIED = Path(__file__).with_name("tried.md")
DOCS = Path(__file__).resolve().parent.parent / "docs"
ORDER = (
    "forward", "loading", "switching", "mixed", "training", "startup", "merging", "memory", "many", "compiling", "gpu",
    "gpu_compiled", "fetch", "scale", "index", "stress", "quality", "serve",
)  # fmt: skip
_SIGNS = {"met": "met", "missed": "**missed**", "open": "not judged"}
_HEAD = """# Performance

This page is written by `benchmarks/report.py` from `benchmarks/results/`; do not edit it. `make bench-full` measures
again all that needs one CPU and an hour or two, `make bench` the same in a hurry (its numbers go to
`benchmarks/results/quick` and not here); `make bench-quality`, `make bench-serve` and `make bench-stress` measure what
is trained, served and attacked, `benchmarks/gpu.py` and `benchmarks/gpu_compiled.py` what needs a GPU.

Every claim is a ratio against what one would use instead, measured side by side: each library in a process and an
environment of its own (`adapters` 1.3.0 needs transformers 4.57), pinned to the same processors with as many threads,
in turn, in a random order from a seed. A number is the median of the rounds, with quartiles; a ratio is the median of
the ratios of each round, with a 95 % bootstrap interval. Overheads are over the plain model *of the same process*,
which shares its weights; a second plain model shows how much of an overhead is chance. Times count with the garbage
collector off, for everybody. Models are randomly initialised BERTs (base: 12 blocks of 768; small: 6 of 384), unless
a name says otherwise.
"""


def main() -> None:
    quick = "--quick" in sys.argv
    results = found(folder_of(quick))
    if not results:
        raise SystemExit(f"there are no results in {folder_of(quick)}: make bench")
    print_targets(results)
    if not quick:
        write(results, DOCS)


def found(folder: Path) -> list[Result]:
    """Read every result in a folder, in the page's order."""
    results = []
    for name in ORDER:
        path = folder / f"{name}.json"
        if path.exists():
            results.append(FORMS[name](json.loads(path.read_text())) if name in FORMS else read(path))
    return results


def print_targets(results: list[Result]) -> None:
    """Show how every target stands."""
    table = Table(title="Targets", title_justify="left")
    for column in ("", "target", "found", "at most", "note"):
        table.add_column(column)
    for result in results:
        for target in result.targets:
            values = ("" if v is None else number(v, target.unit) for v in (target.found, target.limit))
            table.add_row(verdict(target), target.what, *values, target.note)
    Console(width=170).print(table)


def write(results: list[Result], docs: Path) -> None:
    """Write the page and its plots."""
    pictures = docs / "performance"
    pictures.mkdir(exist_ok=True)
    for result in results:
        _draw(result, pictures / f"{result.name}.svg")
    (docs / "performance.md").write_text(page(results))


def page(results: list[Result]) -> str:
    """Return the page."""
    parts = [_HEAD, "## Targets\n", _targets(results)]
    parts += [_section(result) for result in results]
    parts.append(TRIED.read_text("utf-8"))
    missing = [name for name in ORDER if name not in {result.name for result in results}]
    if missing:
        parts.append(f"## Not measured yet\n\nThere are no results of {', '.join(missing)}.\n")
    return "\n".join(parts)


def _targets(results: list[Result]) -> str:
    judged_ones = [(verdict(target), result, target) for result in results for target in result.targets]
    counts = {word: sum(one == word for one, _, _ in judged_ones) for word in _SIGNS}
    lines = [
        f"{counts['met']} met, {counts['missed']} missed, {counts['open']} not judged.\n",
        "| question | target | found | at most | |",
        "|---|---|---|---|---|",
    ]
    for word, result, target in judged_ones:
        link = f"[{result.name}](#{_anchor(result)})"
        values = ["–" if v is None else number(v, target.unit) for v in (target.found, target.limit)]
        note = f" ({target.note})" if target.note else ""
        lines.append(f"| {link} | {_cell(target.what + note)} | {' | '.join(values)} | {_SIGNS[word]} |")
    return "\n".join(lines) + "\n"


def _section(result: Result) -> str:
    lines = [f"## {result.title}\n", _conditions(result), ""]
    lines += [f"![{result.title}](performance/{result.name}.svg)\n"] if _drawable(result) else []
    for target in result.targets:
        lines.append(f"- {_SIGNS[verdict(target)]}: {judged(target)}")
    lines += ["", _table(result), ""]
    lines += [f"> {note}\n" for note in (*result.notes, *busy(result.machine))]
    return "\n".join(lines)


def _table(result: Result) -> str:
    if all(row.x is not None for row in result.rows):
        return _growth(result)
    compares = any(row.ratio is not None for row in result.rows)
    spreads = any(row.low is not None for row in result.rows)
    columns = ["", "who", "what", "median", *(["quartiles"] if spreads else []), *(["ratio", "of"] if compares else [])]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    previous = ""
    for row in result.rows:
        group = "" if row.group == previous else row.group
        cells = [group, row.contender, row.name, number(row.value, row.unit)]
        if spreads:
            ends = [number(end, row.unit) for end in (row.low, row.high) if end is not None]
            cells.append(" – ".join(ends))
        if compares:
            cells += [compared(row, result.percent), row.against or ""]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        previous = row.group
    return "\n".join(lines) + "\n"


def _growth(result: Result) -> str:
    """Return a table with a column for every size."""
    groups = list(dict.fromkeys(row.group for row in result.rows))
    kinds: dict[tuple[str, str], dict[str, Row]] = {}
    for row in result.rows:
        kinds.setdefault((row.name, row.contender), {})[row.group] = row
    lines = [f"| what | who | {' | '.join(groups)} |", "|---" * (2 + len(groups)) + "|"]
    for (name, who), rows in kinds.items():
        cells = [number(rows[group].value, rows[group].unit) if group in rows else "–" for group in groups]
        lines.append(f"| {' | '.join(map(_cell, (name, who, *cells)))} |")
    return "\n".join(lines) + "\n"


def _conditions(result: Result) -> str:
    machine, settings = result.machine, result.settings
    parts = [f"Measured {result.date}" + (" (quick)" if result.mode == "quick" else "")]
    if "processor" in machine:
        memory = f", {machine['memory'] / 2**30:.0f} GiB" if "memory" in machine else ""
        parts.append(
            f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}, Python {machine['python']}"
        )
        if "million_additions" in machine:
            parts.append(f"a million additions in Python take {number(machine['million_additions'], 's')}")
    elif machine:
        parts.append(", ".join(f"{value} {key}" for key, value in machine.items()))
    else:
        parts.append("machine not recorded")
    if "device" in settings:
        parts.append(str(settings["device"]))
    elif "threads" in settings:
        clock = "" if settings["clock"] == "wall" else ", processor time"
        parts.append(f"{settings['rounds']} rounds, {_plural(settings['threads'], 'thread')}{clock}")
    parts += [f"{who}: {_versions(listed)}" for who, listed in result.versions.items()]
    return "; ".join(parts) + "."


def _versions(listed: dict[str, Any]) -> str:
    return ", ".join(f"{package} {version}" for package, version in listed.items())


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _anchor(result: Result) -> str:
    kept = "".join(c for c in result.title.lower() if c.isalnum() or c in " -_")
    return "-".join(kept.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _drawable(result: Result) -> bool:
    return bool(result.rows)


def _draw(result: Result, path: Path) -> None:
    from plots import draw

    if _drawable(result):
        path.write_bytes(draw(result))


if __name__ == "__main__":
    main()
