"""Reading labelled text from CSV, TSV and JSONL files; every problem names file and line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptergit.errors import DataError, NotFoundError

_KINDS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".ndjson": None}
_MAX_FIELD = 1 << 24


@dataclass(frozen=True)
class Examples:
    """Texts and, where asked for, their labels, in file order."""

    path: Path
    texts: list[str]
    labels: list[str] | None
    sha256: str

    def __len__(self) -> int:
        return len(self.texts)

    def label_names(self) -> tuple[str, ...]:
        """Return the distinct labels: by number if all are numbers, else alphabetically."""
        names = set(self.labels or ())
        numeric = all(name.lstrip("-").isdigit() for name in names)
        return tuple(sorted(names, key=int if numeric else str))


def read_examples(path: str | Path, *, text_column: str, label_column: str | None) -> Examples:
    """Read a whole file.

    Args:
        path: ``.csv`` and ``.tsv`` with a header line, or ``.jsonl`` with one object a line; UTF-8.
        text_column: Where the text is.
        label_column: Where the label is; None to read texts only.

    Raises:
        NotFoundError: No such file.
        DataError: Another kind of file, a missing column, a line that cannot be read, a missing label, no lines.
    """
    path = Path(path)
    if path.suffix.lower() not in _KINDS:
        raise DataError(
            f"{path.suffix or 'no suffix'!r} is not a kind of data file",
            where=str(path),
            hint=f"use {', '.join(_KINDS)}",
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8", where=f"{path}:{line}", hint="convert it: iconv -f latin1 -t utf-8") from error
    texts: list[str] = []
    labels: list[str] = []
    columns = [c for c in (text_column, label_column) if c is not None]
    for line, row in _rows(path, content, columns):
        texts.append(_text(row, text_column, path, line))
        if label_column is not None:
            label = _text(row, label_column, path, line).strip()
            if not label:
                raise DataError(f"the label in column {label_column!r} is empty", where=f"{path}:{line}")
            labels.append(label)
    if not texts:
        raise DataError("the file holds no examples", where=str(path))
    return Examples(path, texts, labels if label_column is not None else None, hashlib.sha256(data).hexdigest())


def _rows(path: Path, content: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = _KINDS[path.suffix.lower()]
    if delimiter is None:
        yield from _json_rows(path, content)
        return
    csv.field_size_limit(_MAX_FIELD)
    lines = io.StringIO(content, newline="")  # unlike splitlines(), ends lines at CR and LF only
    if delimiter == ",":
        reader = csv.reader(lines, strict=True)
    else:  # TSV as it is found in the field has no quoting
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    try:
        header = next(reader, [])
        for column in columns:
            if header and column not in header:
                known = ", ".join(header)
                raise DataError(f"there is no column {column!r}", where=f"{path}:1", hint=f"columns: {known}")
        if len(set(header)) != len(header):
            raise DataError("two columns have the same name", where=f"{path}:1")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                what = f"{len(fields)} fields, the header names {len(header)}"
                raise DataError(
                    what, where=f"{path}:{reader.line_num}", hint="is the delimiter right, are quotes closed?"
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"not valid: {error}", where=f"{path}:{reader.line_num}") from error


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=f"{path}:{number}") from error
        if not isinstance(row, dict):
            raise DataError("expected one JSON object a line", where=f"{path}:{number}")
        yield number, row


def _text(row: dict[str, Any], column: str, path: Path, line: int) -> str:
    if column not in row:
        raise DataError(
            f"there is no column {column!r}",
            where=f"{path}:{line}",
            hint=f"columns: {', '.join(map(str, row)) or 'none'}",
        )
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"column {column!r} holds {type(value).__name__}, expected text", where=f"{path}:{line}")
    return str(value)
