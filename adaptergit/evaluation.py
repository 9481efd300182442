"""Evaluate: score a loaded adapter on a file, and compare with what its card says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptergit.answering import opened
from adaptergit.errors import PackageError, UsageError
from adaptergit.package import Card
from adaptergit.reference import check_needed_paths
from adaptergit.training.evaluate import answers_of
from adaptergit.training.measures import Metrics, measured
from adaptergit.training.readers import read_rows
from adaptergit.training.rows import Data

TOLERANCE = 1e-3
"""Of a score; other machines round other last digits, and an example on the edge may fall on the other side."""


@dataclass(frozen=True)
class Evaluation:
    """Scores on a file, and the card's."""

    metrics: Metrics
    claimed: Mapping[str, float]
    """What the card says of this very file; empty if it says nothing."""
    reproduced: bool | None
    """None: the card says nothing of this file."""
    verdict: str
    """The same in words."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; the last key holds the evaluation metrics."""
        return {
            "claimed": dict(self.claimed),
            "reproduced": self.reproduced,
            "verdict": self.verdict,
            "metrics": self.metrics.to_json(),
        }


def evaluate(
    ref: str | Path,
    data: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
    batch_size: int = 32,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Evaluation:
    """Score an adapter on a file with its task's own measures.

    Args:
        ref: A reference or a package folder.
        data: Held-out examples, see :func:`~adaptergit.training.readers.read_rows`.
        columns: Columns by role; default: those it was trained with.
        base: Folder of the base model; default: the settings' mapping of the card's id, or the id.
        batch_size: Examples at once.
        policy: See :func:`adaptergit.load`, as ``offline``, ``index`` and ``lock``.
        refresh: Ask for a newer version even if a recent answer is known.
        report: Called with (done, total).

    Raises:
        UsageError, DataError: The file is not of the adapter's task.
        ModelError: Nothing in the package answers the task.
        AdaptergitError: Whatever :func:`adaptergit.load` raises.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be positive, not {batch_size}")
    check_needed_paths(data=data)
    package = opened(ref, policy=policy, offline=offline, refresh=refresh, index=index, lock=lock)
    named = package.columns(columns or {})
    rows = read_rows(data, list(named.values()))
    task, model, tools = package.answering(named, base)
    task.check(rows)
    answers = answers_of(task, model, rows, tools, batch_size=batch_size, report=report)
    return _compared(measured(task.measures(answers, rows), len(answers)), package.card, rows)


def _compared(metrics: Metrics, card: Card, rows: Data) -> Evaluation:
    entries = card.data.get("evaluation", ())
    try:
        claimed = {e["metric"]: float(e["value"]) for e in entries if e.get("data_sha256") == rows.sha256}
    except (TypeError, ValueError) as error:
        raise PackageError(f"evaluation: {error}", where=card.name) from error
    common = {name: value for name, value in claimed.items() if name in metrics.values}
    if not common:
        return Evaluation(metrics, {}, None, "the card says nothing of this file")
    far = {
        name: value for name, value in common.items() if abs(metrics.values[name] - value) > TOLERANCE * max(1, value)
    }
    if not far:
        return Evaluation(metrics, common, True, f"reproduces the card's {', '.join(common)}")
    told = ", ".join(f"{name} {value:g}, found {metrics.values[name]:g}" for name, value in far.items())
    return Evaluation(metrics, common, False, f"does not reproduce the card: it says {told}")
