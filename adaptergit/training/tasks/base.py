"""What every task has: columns, a head, features for the model, answers read from it, and measures of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch

from adaptergit.errors import DataError, UsageError
from adaptergit.splice.heads import HeadConfig
from adaptergit.training.measures import Measure
from adaptergit.training.rows import Data, Row, label_names
from adaptergit.training.tasks.said import Label, Said, rounded

Feature = dict[str, Any]
"""One input of the model, as lists, before it is padded into a batch."""
Collate = Callable[[list[Feature]], dict[str, Any]]
Read = Callable[[Any, Mapping[str, torch.Tensor]], Sequence[Any]]
"""What to keep of an output and its batch: one thing for every feature."""
Run = Callable[[Sequence[Feature], Collate, Read], list[Any]]
"""Give every feature to the model and return what was read, in their order."""
Generate = Callable[..., list[Any]]
"""Let the model write: (features, collate, options) to lists of new tokens."""


@dataclass(frozen=True)
class Wishes:
    """What may be asked for besides; None: as the task does it."""

    top_k: int | None = None
    """Guesses for a mask."""
    max_new_tokens: int | None = None
    """The most tokens that are written."""

    def check(self, task: type[Task]) -> None:
        """Refuse what a task does not do.

        Raises:
            UsageError: Naming it.
        """
        for name in (field.name for field in fields(self)):
            if (value := getattr(self, name)) is None:
                continue
            if name not in task.wishes:
                raise UsageError(f"{name} means nothing to {task.name}", hint="leave it out")
            if value < 1:
                raise UsageError(f"{name} must be positive, not {value}")


@dataclass(frozen=True)
class Tools:
    """What turns data into inputs."""

    tokenizer: Any
    """Of images, their processor."""
    max_length: int
    """Tokens; what is longer is cut, or comes in several pieces."""


@dataclass(frozen=True)
class Task(ABC):
    """A kind of thing to learn. Instances know the columns of their files and the labels that were seen."""

    columns: Mapping[str, str]
    """Column by role."""
    labels: tuple[str, ...] = ()
    """In the order of the logits."""

    name: ClassVar[str]
    """As on the Hugging Face Hub, where it has a name there."""
    roles: ClassVar[Mapping[str, str | None]]
    """Columns a file has, and what they are called if nobody says; None: there need not be one."""
    model_class: ClassVar[str] = "AutoModel"
    """Class of transformers that makes the model."""
    inputs: ClassVar[str] = "AutoTokenizer"
    """Class of transformers that makes the model's inputs."""
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    """What of a batch is no input of the model."""
    right: ClassVar[str | None] = "label"
    """The role of the column that says what is right; None: answers to rows are not what is scored."""
    asks: ClassVar[tuple[str, ...]] = ("text",)
    """Roles that a line of plain text fills, with tabs between them."""
    wishes: ClassVar[tuple[str, ...]] = ()
    """Fields of :class:`Wishes` that mean something here."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Kinds of heads, and ends of classes with a head of their own, that answer this task, whatever a card calls it."""
    by_word: ClassVar[bool] = False
    """Texts come as words."""

    @classmethod
    def with_columns(cls, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return the columns of all roles.

        Raises:
            UsageError: The task has no such role.
        """
        if unknown := sorted(set(chosen) - set(cls.roles)):
            known = ", ".join(cls.roles)
            raise UsageError(f"{cls.name} has no column for {unknown[0]!r}", hint=f"it has {known}")
        named = {role: chosen.get(role, default) for role, default in cls.roles.items()}
        return {role: column for role, column in named.items() if column is not None}

    @classmethod
    @abstractmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Look at the training data: which labels are there?

        Raises:
            DataError: There is nothing to learn, or the data is of another kind.
        """

    @abstractmethod
    def check(self, data: Data) -> None:
        """Refuse held-out data that the task cannot be scored on.

        Raises:
            DataError: Naming file and line.
        """

    @abstractmethod
    def head(self) -> HeadConfig | None:
        """Return the head; None where the model's own class answers."""

    @classmethod
    def of(cls, columns: Mapping[str, str], head: HeadConfig | None) -> Self:
        """Return the task that a trained head was for."""
        return cls(columns, () if head is None else head.labels)

    @abstractmethod
    def features(self, data: Data, tools: Tools) -> Sequence[Feature]:
        """Turn training data into inputs with labels; a row may give several."""

    @abstractmethod
    def encoded(self, data: Data, tools: Tools) -> Sequence[Any]:
        """Turn rows into what :meth:`answers` asks the model.

        Raises:
            DataError, UsageError: A row cannot be asked; naming it, where one is to blame.
        """

    @abstractmethod
    def collate(self, tools: Tools) -> Collate:
        """Return what pads features into batches."""

    @abstractmethod
    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[Any]:
        """Return what the model says to every row."""

    @abstractmethod
    def measures(self, answers: Sequence[Any], data: Data) -> list[Measure]:
        """Compare answers with what the rows say; the first measure is the one to look at."""

    @classmethod
    def asked(cls, columns: Mapping[str, str], text: str | Sequence[str]) -> dict[str, Any]:
        """Return the row that a line of plain text stands for, or that its parts make.

        Raises:
            DataError: The task needs more texts than there are, or fewer.
        """
        roles = [role for role in cls.asks if role in columns]
        parts = text.split("\t", len(roles) - 1) if isinstance(text, str) else text
        if len(parts) != len(roles):
            wanted = " and ".join(roles)
            hint = f"on a line, write {wanted} with a tab between" if len(roles) > 1 else None
            raise DataError(f"{cls.name} needs {wanted}; there is {parts!r}", hint=hint)
        return {columns[role]: part.strip() for role, part in zip(roles, parts, strict=True)}

    def shown(self, row: Row) -> str:
        """Return what stands for a row in front of people."""
        return row.text(self.columns[self.asks[0]])

    def replies(self, data: Data, tools: Tools, run: Run, generate: Generate, wishes: Wishes) -> list[Any]:
        """Return what the model says to rows that need not say what is right.

        It is what :meth:`answers` gives, but where a task is scored by something else than what people ask it for.

        Raises:
            DataError: A row cannot be answered; naming it.
        """
        return self.answers(data, tools, run, generate)

    @abstractmethod
    def worded(self, reply: Any, row: Row) -> Said:
        """Put one of :meth:`replies` into words, in the shape that :mod:`~adaptergit.training.tasks.said` describes."""

    def plain(self, answer: Any) -> dict[str, Any]:
        """Return an answer as plain data."""
        return {"logits": answer.tolist()}


def padding(tools: Tools) -> Collate:
    """Pad tokens to the longest of a batch."""
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tools.tokenizer)


def chosen_label(logits: torch.Tensor, labels: Sequence[str]) -> Label:
    """Return the most probable label; logits without names are numbered."""
    names = tuple(labels) or tuple(str(index) for index in range(len(logits)))
    probabilities = [rounded(one) for one in logits.softmax(dim=-1).tolist()]
    best = int(logits.argmax())
    by_name = dict(zip(names, probabilities, strict=True))
    return Label(names[best], probabilities[best], by_name, tuple(logits.tolist()))


def known_label(label: str, labels: Sequence[str], row: Row) -> int:
    """Return a label's number.

    Raises:
        DataError: It was not seen in training.
    """
    if label not in labels:
        raise DataError(
            f"the label {label!r} is none of those that the training file has",
            where=row.where,
            hint=f"known labels: {', '.join(labels[:20])}",
        )
    return labels.index(label)


def learnt_labels(labels: Sequence[str], data: Data) -> tuple[str, ...]:
    """Return the labels of a training file in their order.

    Raises:
        DataError: No label, one label, or nearly one for each row.
    """
    names, hint = label_names(labels), "add rows with other labels, or name their column with --label-column"
    if not names:
        raise DataError("no row has a label: there is nothing to learn", where=str(data.path), hint=hint)
    if len(names) < 2:
        if data.path.is_dir():
            hint = "add a folder of images for another label"
        raise DataError(f"all labels are {names[0]!r}: there is nothing to learn", where=str(data.path), hint=hint)
    if len(names) > max(20, len(labels) // 2):
        raise DataError(
            f"{len(names)} different labels in {len(labels)} lines",
            where=str(data.path),
            hint="is --label-column right?",
        )
    return names
