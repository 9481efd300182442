"""Texts, or pairs of texts: one label, several labels, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from adaptergit.splice.heads import ClassificationHead, HeadConfig, MultiLabelHead
from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import (
    Collate,
    Feature,
    Generate,
    Run,
    Task,
    Tools,
    chosen_label,
    known_label,
    learnt_labels,
    padding,
)
from adaptergit.training.tasks.said import Label, Labels, Number, rounded


@dataclass(frozen=True)
class TextTask(Task):
    """Reads texts, or pairs, and answers with logits."""

    roles: ClassVar[Mapping[str, str | None]] = {"text": "text", "pair": None, "label": "label"}
    asks: ClassVar[tuple[str, ...]] = ("text", "pair")

    def target(self, row: Row) -> Any:
        """Return what a row's logits should say."""
        raise NotImplementedError

    def check(self, data: Data) -> None:
        """Every label must be known."""
        for row in data:
            self.target(row)

    def features(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise."""
        inputs = self.encoded(data, tools)
        return [{**one, "labels": self.target(row)} for one, row in zip(inputs, data, strict=True)]

    def collate(self, tools: Tools) -> Collate:
        """Pad."""
        return padding(tools)

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[torch.Tensor]:
        """Return logits (labels,), float32, on the CPU."""
        return run(self.encoded(data, tools), padding(tools), lambda output, _: output.logits.float().cpu().unbind())

    def encoded(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise without labels."""
        texts = [row.text(self.columns["text"]) for row in data]
        pairs = [row.text(self.columns["pair"]) for row in data] if "pair" in self.columns else None
        found = tools.tokenizer(texts, pairs, truncation=True, max_length=tools.max_length)
        return [{key: found[key][i] for key in found} for i in range(len(texts))]


@dataclass(frozen=True)
class TextClassification(TextTask):
    """One label for each text."""

    name: ClassVar[str] = "text-classification"
    heads: ClassVar[tuple[str, ...]] = ("classification", "ForSequenceClassification")

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Collect the labels."""
        return cls(columns, learnt_labels([row.label(columns["label"]) for row in data], data))

    def head(self) -> HeadConfig:
        """Return a classification head."""
        return ClassificationHead(num_labels=len(self.labels), labels=self.labels)

    def target(self, row: Row) -> int:
        """Return the label's number."""
        return known_label(row.label(self.columns["label"]), self.labels, row)

    def measures(self, answers: Sequence[torch.Tensor], data: Data) -> list[measures.Measure]:
        """Accuracy and macro F1."""
        found = [int(logits.argmax()) for logits in answers]
        return measures.classification(found, [self.target(row) for row in data], len(self.labels))

    def worded(self, reply: torch.Tensor, row: Row) -> Label:
        """Return the most probable label."""
        return chosen_label(reply, self.labels)


@dataclass(frozen=True)
class MultiLabelClassification(TextTask):
    """Any number of labels for each text: a list, or a text with ``|`` between labels."""

    name: ClassVar[str] = "multi-label-classification"
    heads: ClassVar[tuple[str, ...]] = ("multilabel_classification",)

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Collect the labels."""
        return cls(columns, learnt_labels([one for row in data for one in row.texts(columns["label"], "|")], data))

    def head(self) -> HeadConfig:
        """Return a multi-label head."""
        return MultiLabelHead(num_labels=len(self.labels), labels=self.labels)

    def target(self, row: Row) -> list[int]:
        """Return 0 or 1 for every label."""
        there = {known_label(one, self.labels, row) for one in row.texts(self.columns["label"], "|")}
        return [int(index in there) for index in range(len(self.labels))]

    def measures(self, answers: Sequence[torch.Tensor], data: Data) -> list[measures.Measure]:
        """Micro and macro F1, and whole matches; a label is said from a probability of one half."""
        found = (torch.stack(list(answers)) > 0).numpy().astype(np.int64)
        return measures.multi_label(found, np.asarray([self.target(row) for row in data], dtype=np.int64))

    def worded(self, reply: torch.Tensor, row: Row) -> Labels:
        """Return the labels that are more probable than not."""
        names = self.labels or tuple(str(index) for index in range(len(reply)))
        there = tuple(name for name, logit in zip(names, reply.tolist(), strict=True) if logit > 0)
        probabilities = map(rounded, reply.sigmoid().tolist())
        return Labels(there, dict(zip(names, probabilities, strict=True)), tuple(reply.tolist()))


@dataclass(frozen=True)
class TextRegression(TextTask):
    """A number for each text."""

    name: ClassVar[str] = "text-regression"

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Read the numbers."""
        for row in data:
            row.number(columns["label"])
        return cls(columns)

    def head(self) -> HeadConfig:
        """Return a head with one logit."""
        return ClassificationHead(num_labels=1)

    def target(self, row: Row) -> float:
        """Return the number."""
        return row.number(self.columns["label"])

    def measures(self, answers: Sequence[torch.Tensor], data: Data) -> list[measures.Measure]:
        """Correlations and squared error."""
        return measures.regression([float(one) for one in answers], [self.target(row) for row in data])

    def worded(self, reply: torch.Tensor, row: Row) -> Number:
        """Return the number."""
        return Number(float(reply))
