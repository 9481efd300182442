"""Questions with several choices, one of them right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from adaptergit.errors import DataError
from adaptergit.splice.heads import HeadConfig, MultipleChoiceHead
from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import Collate, Feature, Generate, Run, Task, Tools
from adaptergit.training.tasks.said import Choice, rounded


@dataclass(frozen=True)
class MultipleChoice(Task):
    """``choices`` is a list, or a text with ``|`` between choices; ``label`` is a choice or its number, from 0."""

    count: int = 0
    """Choices of every row."""

    name: ClassVar[str] = "multiple-choice"
    roles: ClassVar[Mapping[str, str | None]] = {"text": "text", "choices": "choices", "label": "label"}
    asks: ClassVar[tuple[str, ...]] = ("text", "choices")
    heads: ClassVar[tuple[str, ...]] = ("multiple_choice",)

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Count the choices."""
        found = cls(columns, (), len(data.rows[0].texts(columns["choices"], "|")))
        found.check(data)
        return found

    @classmethod
    def of(cls, columns: Mapping[str, str], head: HeadConfig | None) -> Self:
        """Return the task of a head."""
        return cls(columns, (), int(getattr(head, "num_choices", 0)))

    def check(self, data: Data) -> None:
        """All rows must have as many choices."""
        for row in data:
            self._target(row)

    def head(self) -> HeadConfig:
        """Return a multiple-choice head."""
        return MultipleChoiceHead(num_choices=self.count)

    def features(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise the text with every choice."""
        return [{**one, "labels": self._target(row)} for one, row in zip(self.encoded(data, tools), data, strict=True)]

    def collate(self, tools: Tools) -> Collate:
        """Pad to (batch, choices, seq)."""

        def pad(features: list[Feature]) -> dict[str, torch.Tensor]:
            flat = [
                {key: values[i] for key, values in one.items() if key != "labels"}
                for one in features
                for i in range(self.count)
            ]
            batch = tools.tokenizer.pad(flat, padding=True, return_tensors="pt")
            made = {key: value.view(len(features), self.count, -1) for key, value in batch.items()}
            if "labels" in features[0]:
                made["labels"] = torch.tensor([one["labels"] for one in features])
            return made

        return pad

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[torch.Tensor]:
        """Return logits (choices,)."""
        return run(
            self.encoded(data, tools), self.collate(tools), lambda output, _: output.logits.float().cpu().unbind()
        )

    def measures(self, answers: Sequence[torch.Tensor], data: Data) -> list[measures.Measure]:
        """Accuracy."""
        hits = [int(one.argmax()) == self._target(row) for one, row in zip(answers, data, strict=True)]
        return [measures.mean("accuracy", hits)]

    def worded(self, reply: torch.Tensor, row: Row) -> Choice:
        """Return the most probable choice."""
        best, probabilities = int(reply.argmax()), tuple(rounded(one) for one in reply.softmax(dim=-1).tolist())
        return Choice(self._choices(row)[best], best, probabilities[best], probabilities)

    def encoded(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise without the right choice."""
        made = []
        for row in data:
            choices = self._choices(row)
            text = row.text(self.columns["text"])
            found = tools.tokenizer([text] * len(choices), choices, truncation=True, max_length=tools.max_length)
            made.append(dict(found))
        return made

    def _target(self, row: Row) -> int:
        choices, label = self._choices(row), row.label(self.columns["label"])
        if label in choices:
            return choices.index(label)
        if label in (numbers := [str(number) for number in range(self.count)]):
            return numbers.index(label)
        raise DataError(
            f"{label!r} is none of the choices, nor the number of one",
            where=row.where,
            hint=f"write one of {', '.join(numbers)}, or a choice word for word",
        )

    def _choices(self, row: Row) -> list[str]:
        choices = row.texts(self.columns["choices"], "|")
        if len(choices) != self.count or self.count < 2:
            raise DataError(
                f"{len(choices)} choices, expected {max(self.count, 2)}",
                where=row.where,
                hint="write a list, or a text with | between them",
            )
        return choices
