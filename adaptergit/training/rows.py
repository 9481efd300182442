"""Rows of a data file; every problem names file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from adaptergit.errors import DataError

NAME_IT = "; name another with --text-column, --label-column …, in Python columns={'text': …}"
_WHOLE = re.compile("-?[0-9]{1,18}")


@dataclass(frozen=True)
class Row:
    """One example as its file gives it."""

    values: Mapping[str, Any]
    where: str
    """``file:line``, for messages."""

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def value(self, column: str) -> Any:
        """Return what a column holds.

        Raises:
            DataError: There is no such column, as for all other methods.
        """
        if column not in self.values:
            known = ", ".join(map(str, self.values)) or "none"
            hint = self._of_task() or f"columns: {known}{NAME_IT}"
            raise DataError(f"there is no column {column!r}", where=self.where, hint=hint)
        return self.values[column]

    def text(self, column: str) -> str:
        """Return a text; numbers are written out."""
        value = self.value(column)
        if not _is_text(value):
            self._refuse(column, value, "text")
        return str(value)

    def label(self, column: str) -> str:
        """Return a text that is not empty, without spaces around it."""
        label = self.text(column).strip()
        if not label:
            raise DataError(
                f"the label in column {column!r} is empty",
                where=self.where,
                hint="give the row a label, or take it out",
            )
        return label

    def number(self, column: str) -> float:
        """Return a finite number."""
        value = self.value(column)
        try:
            number = float(value) if _is_text(value) else nan
        except ValueError:
            number = nan
        if not isfinite(number):
            raise DataError(
                f"column {column!r} holds {value!r}, expected a number",
                where=self.where,
                hint="what has names is learnt as text-classification",
            )
        return number

    def texts(self, column: str, separator: str | None = None) -> list[str]:
        """Return a list of texts; where a file has no lists, one text with separators."""
        value = self.value(column)
        if isinstance(value, str) and separator is not None:
            return [part.strip() for part in value.split(separator) if part.strip()]
        if not isinstance(value, Sequence) or isinstance(value, str):
            self._refuse(column, value, "a list")
        if not all(map(_is_text, value)):
            raise DataError(
                f"column {column!r} holds a list of something else than texts",
                where=self.where,
                hint='write ["…", "…"]',
            )
        return [str(item) for item in value]

    def _of_task(self) -> str | None:
        """Say what rows with such columns are for: the wrong task was named, or none."""
        kinds = {"token-classification": {"tokens", "tags"}, "question-answering": {"question", "context"}}
        task = next((task for task, columns in kinds.items() if columns <= self.values.keys()), None)
        return f"rows like these are for --task {task} (in Python task={task!r})" if task else None

    def _refuse(self, column: str, value: Any, wanted: str) -> None:
        # Where pandas and others have nothing, JSON has NaN.
        what = str(value) if isinstance(value, float) else type(value).__name__
        hint = f'write "{str(value).lower()}" or {int(value)}' if isinstance(value, bool) else self._of_task()
        raise DataError(f"column {column!r} holds {what}, expected {wanted}", where=self.where, hint=hint)


@dataclass(frozen=True)
class Data:
    """Rows in the order of their file."""

    path: Path
    rows: tuple[Row, ...]
    sha256: str
    """Of the file; of a folder, of its files' names and digests."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def _is_text(value: Any) -> bool:
    """Tell whether something is a text, or a number that can be written out."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct labels: by number if all are whole numbers, else alphabetically."""
    names = sorted(set(labels))
    numeric = all(_WHOLE.fullmatch(name) for name in names)
    return tuple(sorted(names, key=int) if numeric else names)
