"""Answers to questions, as spans of a text (SQuAD: Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from adaptergit.errors import DataError, UsageError
from adaptergit.splice.heads import HeadConfig, QuestionAnsweringHead
from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import Collate, Feature, Generate, Run, Task, Tools, padding
from adaptergit.training.tasks.said import Span

_BEST, _LONGEST = 20, 30
"""Starts and ends that are looked at; tokens of an answer."""


@dataclass(frozen=True)
class _Piece:
    """A part of a text, with the question in front."""

    inputs: Feature
    index: int
    """Of its row."""
    spans: list[tuple[int, int] | None]
    """Where every token of the text is in it; None: no token of the text."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Extractive; a question without answers has the empty one."""

    name: ClassVar[str] = "question-answering"
    roles: ClassVar[Mapping[str, str | None]] = {"question": "question", "context": "context", "answers": "answers"}
    label_names: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    right: ClassVar[str | None] = "answers"
    asks: ClassVar[tuple[str, ...]] = ("question", "context")
    heads: ClassVar[tuple[str, ...]] = ("question_answering", "ForQuestionAnswering")

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Read the answers."""
        found = cls(columns)
        found.check(data)
        return found

    def check(self, data: Data) -> None:
        """Every answer must be where it says."""
        for row in data:
            for text, start in self._gold(row):
                if row.text(self.columns["context"])[start : start + len(text)] != text:
                    raise DataError(
                        f"the text at {start} is not the answer {text!r}",
                        where=row.where,
                        hint="answer_start counts the characters of the context from 0",
                    )

    def head(self) -> HeadConfig:
        """Return a question answering head."""
        return QuestionAnsweringHead(num_labels=2)

    def features(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise; a long text comes in pieces that overlap, and the first token stands for "not here"."""
        made = []
        for piece in self.encoded(data, tools):
            start = end = 0
            for text, begin in self._gold(data.rows[piece.index])[:1]:
                tokens = [
                    i for i, span in enumerate(piece.spans) if span and span[0] < begin + len(text) and span[1] > begin
                ]
                inside = [span for span in piece.spans if span]
                if tokens and inside[0][0] <= begin and begin + len(text) <= inside[-1][1]:
                    start, end = tokens[0], tokens[-1]
            made.append({**piece.inputs, "start_positions": start, "end_positions": end})
        return made

    def collate(self, tools: Tools) -> Collate:
        """Pad."""
        return padding(tools)

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[str]:
        """Return the best span of every text; empty where "not here" scores higher in all of its pieces."""
        pieces = self.encoded(data, tools)
        found = run(
            [piece.inputs for piece in pieces],
            padding(tools),
            lambda output, _: list(
                zip(output.start_logits.float().cpu(), output.end_logits.float().cpu(), strict=True)
            ),
        )
        best = [(float("-inf"), "")] * len(data)
        nowhere = [float("inf")] * len(data)
        for piece, (starts, ends) in zip(pieces, found, strict=True):
            context = data.rows[piece.index].text(self.columns["context"])
            nowhere[piece.index] = min(nowhere[piece.index], float(starts[0] + ends[0]))
            best[piece.index] = max(best[piece.index], _best_span(piece, starts, ends, context), key=lambda one: one[0])
        return [text if score >= none else "" for (score, text), none in zip(best, nowhere, strict=True)]

    def measures(self, answers: Sequence[str], data: Data) -> list[measures.Measure]:
        """Exact match and F1 of words, as SQuAD's own script defines them: against the nearest of the answers."""
        gold = [[text for text, _ in self._gold(row)] or [""] for row in data]
        pairs = list(zip(answers, gold, strict=True))
        return [
            measures.mean("f1", [max(_f1(said, one) for one in right) for said, right in pairs]),
            measures.mean("exact_match", [max(_words(said) == _words(one) for one in right) for said, right in pairs]),
        ]

    def worded(self, reply: str, row: Row) -> Span:
        """Return the span."""
        return Span(reply)

    def plain(self, answer: str) -> dict[str, Any]:
        """Return the text."""
        return {"answer": answer}

    def encoded(self, data: Data, tools: Tools) -> list[_Piece]:
        """Tokenise; a long text comes in pieces that overlap."""
        if not getattr(tools.tokenizer, "is_fast", False):
            raise UsageError(
                "this base model's tokenizer does not say where a token stands in its text",
                hint="a base model with a tokenizer.json has one that does",
            )
        questions = [row.text(self.columns["question"]).strip() for row in data]
        longest = max(len(ids) for ids in tools.tokenizer(questions)["input_ids"])
        room = tools.max_length - longest - tools.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 8:
            raise UsageError(
                f"max_length is {tools.max_length}, and a question has {longest} tokens",
                hint="shorten the question, or train with a larger --max-length",
            )
        found = tools.tokenizer(
            questions,
            [row.text(self.columns["context"]) for row in data],
            truncation="only_second",
            max_length=tools.max_length,
            stride=min(tools.max_length // 4, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = found.pop("overflow_to_sample_mapping"), found.pop("offset_mapping")
        return [
            _Piece(
                {key: found[key][index] for key in found},
                owner,
                [
                    tuple(span) if part == 1 else None
                    for span, part in zip(offsets[index], found.sequence_ids(index), strict=True)
                ],
            )
            for index, owner in enumerate(owners)
        ]

    def _gold(self, row: Row) -> list[tuple[str, int]]:
        """Return texts and starts; both of SQuAD's ways of writing them are read."""
        raw = row.value(self.columns["answers"])
        try:
            if isinstance(raw, Mapping):
                raw = [
                    {"text": text, "answer_start": start}
                    for text, start in zip(raw["text"], raw["answer_start"], strict=True)
                ]
            return [(str(one["text"]), int(one["answer_start"])) for one in raw]
        except (KeyError, TypeError, ValueError) as error:
            hint = '[{"text": "…", "answer_start": 17}]'
            raise DataError("answers: expected a list of text and answer_start", where=row.where, hint=hint) from error


def _best_span(piece: _Piece, starts: torch.Tensor, ends: torch.Tensor, context: str) -> tuple[float, str]:
    """Return the highest sum of a start's and an end's logit whose tokens are a short span of the text."""
    inside = [i for i, span in enumerate(piece.spans) if span is not None]
    first = sorted(inside, key=lambda i: float(starts[i]), reverse=True)[:_BEST]
    last = sorted(inside, key=lambda i: float(ends[i]), reverse=True)[:_BEST]
    best = (float("-inf"), "")
    for i in first:
        for j in last:
            begin, end = piece.spans[i], piece.spans[j]
            if i <= j < i + _LONGEST and begin is not None and end is not None:
                score = float(starts[i] + ends[j])
                if score > best[0]:
                    best = (score, context[begin[0] : end[1]])
    return best


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and English articles: what SQuAD compares."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _f1(said: str, right: str) -> float:
    left, other = _words(said), _words(right)
    if not left or not other:
        return float(left == other)
    both = sum((Counter(left) & Counter(other)).values())
    return 2 * both / (len(left) + len(other))
