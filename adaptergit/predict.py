"""Predict: load an adapter, and answer texts, files or whatever else its task is about, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptergit.answering import opened
from adaptergit.errors import DataError, UsageError, no_file
from adaptergit.training.evaluate import replies_of
from adaptergit.training.measures import Metrics, measured
from adaptergit.training.readers import parse_rows, read_rows
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks import Task, Wishes
from adaptergit.training.tasks.said import Said

_TEXT = ".txt"


@dataclass(frozen=True)
class Predictions:
    """One answer for every row."""

    task: str
    """Its name, as ``adaptergit train --task`` knows it."""
    asked: tuple[str, ...]
    """What stands for each row: its text, its question, the path of its image."""
    said: tuple[Said, ...]
    """Of the class in :mod:`adaptergit.training.tasks.said` that belongs to the task."""
    metrics: Metrics | None = None
    """The scores that :func:`adaptergit.evaluate` finds on the same file, where they were asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        rows = [one.to_json() for one in self.said]
        return {"task": self.task, "predictions": rows, "metrics": self.metrics.to_json() if self.metrics else None}


def predict(
    ref: str | Path,
    *,
    texts: Sequence[str | Sequence[str]] | None = None,
    file: str | Path | None = None,
    content: tuple[str, bytes] | None = None,
    columns: Mapping[str, str] | None = None,
    score: bool = False,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    base: str | None = None,
    batch_size: int = 32,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Predictions:
    """Run an adapter over texts, or over a file, and put into words what it says.

    What is asked depends on the task: a text or a pair, a sentence (its words stand between spaces), question and
    context, text and choices, a text with ``[MASK]`` in it, the beginning of a text, the path of an image.

    Args:
        ref: A reference or a package folder.
        texts: What is asked, a string each, with tabs between where the task reads more than one; or the parts.
        file: Or a file of any kind that training reads; it need not say what is right.
        content: Or the content of one, behind its suffix: ``(".jsonl", b"…")``.
        columns: Of the file, by role; default: those the adapter was trained with.
        score: Also score the answers with what the file says is right; naming that column does the same.
        top_k: Guesses for each mask, if the task is fill-mask; default: 5.
        max_new_tokens: The most tokens to write, if the task is to write; default: 32 behind a text, and of
            texts from texts as many as training read.
        base: Folder of the base model; default: the settings' mapping of the card's id, or the id.
        batch_size: Rows at once.
        policy: See :func:`adaptergit.load`, as ``offline``, ``index`` and ``lock``.
        refresh: Ask for a newer version even if a recent answer is known.
        report: Called with (done, total).

    Raises:
        UsageError, DataError: Wrong input.
        ModelError: Nothing in the package answers its task.
        AdaptergitError: Whatever :func:`adaptergit.load` raises.
    """
    if sum(one is not None for one in (texts, file, content)) != 1:
        raise UsageError("give texts, a file or its content, and one of them only")
    listed = isinstance(texts, Sequence) and not isinstance(texts, str)
    if texts is not None and not (listed and all(_is_asked(one) for one in texts)):
        raise UsageError("texts are a list of strings, or of lists of strings", hint='write texts=["…"]')
    if batch_size < 1:
        raise UsageError(f"batch_size must be positive, not {batch_size}")
    file = Path(file) if file is not None else None
    wishes = Wishes(top_k, max_new_tokens)
    if file is not None and not file.exists():  # said before anything is fetched
        raise no_file(file)
    package = opened(ref, policy=policy, offline=offline, refresh=refresh, index=index, lock=lock)
    kind = package.kind
    wishes.check(kind)
    columns = dict(columns or {})
    if texts is not None and any(not isinstance(text, str) and len(text) > 1 for text in texts):
        columns = {**{role: role for role in kind.asks}, **columns}
    named = package.columns(columns)
    scored = score or (kind.right is not None and kind.right in columns)
    if scored and (kind.right is None or texts is not None):
        why = (
            f"the answers of {kind.name} are not what is scored"
            if kind.right is None
            else "texts do not say what is right"
        )
        raise UsageError(why, hint="adaptergit eval scores an adapter on a file")
    if texts is not None:
        data = _asked(kind, named, texts)
    else:
        wanted = [column for role, column in named.items() if scored or role != kind.right]
        data = _read(kind, named, file, content, wanted)
    report(0, len(data))  # before the models are loaded, which takes seconds
    task, model, tools = package.answering(named, base)
    if scored:
        task.check(data)
    replies = replies_of(task, model, data, tools, wishes, batch_size=batch_size, report=report)
    said = tuple(task.worded(reply, row) for reply, row in zip(replies, data, strict=True))
    metrics = measured(task.measures(replies, data), len(replies)) if scored else None
    return Predictions(kind.name, tuple(task.shown(row) for row in data), said, metrics)


def _is_asked(one: object) -> bool:
    return isinstance(one, str) or (isinstance(one, Sequence) and all(isinstance(part, str) for part in one))


def _asked(kind: type[Task], columns: Mapping[str, str], texts: Sequence[str | Sequence[str]]) -> Data:
    """Make rows of texts."""
    if not texts:
        raise DataError("there is nothing to answer", hint='write texts=["…"]')
    rows = (Row(kind.asked(columns, text), f"text {number}") for number, text in enumerate(texts, 1))
    return _checked(kind, columns, Data(Path("texts"), tuple(rows), ""))


def _read(
    kind: type[Task],
    columns: Mapping[str, str],
    file: Path | None,
    content: tuple[str, bytes] | None,
    wanted: Sequence[str],
) -> Data:
    """Read rows; lines of plain text are whatever the task asks for."""
    plain = (content[0] if content is not None else str(file)).lower().endswith(_TEXT)
    wanted = ["text"] if plain else wanted
    if content is not None:
        data = parse_rows(content[1], content[0], Path("standard input"), wanted)
    else:
        assert file is not None
        data = read_rows(file, wanted)
    if plain:
        data = replace(data, rows=tuple(replace(row, values=kind.asked(columns, row.text("text"))) for row in data))
    return _checked(kind, columns, data)


def _checked(kind: type[Task], columns: Mapping[str, str], data: Data) -> Data:
    """Refuse rows without what is asked, before a model is loaded."""
    for row in data:
        for role in kind.asks:
            if role in columns:
                row.value(columns[role])
    return data
