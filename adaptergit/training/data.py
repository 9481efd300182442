"""Labelled texts, the commonest data there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptergit.training.readers import read_rows
from adaptergit.training.rows import label_names


@dataclass(frozen=True)
class Examples:
    """Texts and, where asked for, their labels, in file order."""

    path: Path
    """The file."""
    texts: list[str]
    """One for each row."""
    labels: list[str] | None
    """One for each text; None: they were not asked for."""
    sha256: str
    """Of the file's bytes."""

    def __len__(self) -> int:
        return len(self.texts)

    def label_names(self) -> tuple[str, ...]:
        """Return the distinct labels: by number if all are numbers, else alphabetically."""
        return label_names(self.labels or ())


def read_examples(path: str | Path, *, text_column: str, label_column: str | None) -> Examples:
    """Read a whole file.

    Args:
        path: See :func:`~adaptergit.training.readers.read_rows`.
        text_column: Where the text is.
        label_column: Where the label is; None to read texts only.

    Raises:
        NotFoundError: No such file.
        DataError: Another kind of file, a missing column, a line that cannot be read, a missing label, no lines.
    """
    data = read_rows(path, [column for column in (text_column, label_column) if column is not None])
    texts = [row.text(text_column) for row in data]
    labels = [row.label(label_column) for row in data] if label_column is not None else None
    return Examples(data.path, texts, labels, data.sha256)
