"""From a head's scores to an answer in words: one way of phrasing for each kind of head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from adaptergit.serve.encoding import Row
from adaptergit.serve.messages import Answer, Labels, Span, Spans, Value, Word, Words
from adaptergit.serve.mixing import Scores
from adaptergit.splice.heads import HeadConfig, StaticHead

_LONGEST_ANSWER = 30
"""Tokens of an answer to a question."""


@dataclass(frozen=True)
class Phrasing:
    """How answers of one kind are asked for and put into words."""

    task: str
    fields: tuple[str, ...]
    """Of the head's output."""
    phrase: Callable[[Row, Scores, int | None], Answer]
    """Called with the most labels, or answers, that are wanted."""
    by_token: bool = False
    """The head scores every token; its answers need a tokenizer that knows where in the text each is."""
    pairs: bool | None = None
    """Whether every text needs a second one; None: it may have one."""
    ranked: bool = True
    """It means something to ask for the best few."""


def phrasing_of(head: HeadConfig) -> Phrasing | None:
    """Return how a head's answers are put into words, or None: they are not."""
    kind = head.type
    if isinstance(head, StaticHead):
        kind = next((kind for end, kind in _CLASSES.items() if head.model_class.endswith(end)), "")
    if kind == "classification" and getattr(head, "num_labels", None) == 1:
        kind = "regression"
    return _PHRASINGS.get(kind)


def label_names(head: HeadConfig) -> tuple[str, ...]:
    """Return the labels in the order of the logits; numbers, if the head has no names."""
    count = getattr(head, "num_labels", None) or 0
    return head.labels or tuple(str(number) for number in range(count))


def _classes(row: Row, scores: Scores, top_k: int | None) -> Labels:
    return _ranked(row, scores["logits"].softmax(dim=-1), top_k)


def _several(row: Row, scores: Scores, top_k: int | None) -> Labels:
    return _ranked(row, scores["logits"].sigmoid(), top_k)


def _ranked(row: Row, probabilities: torch.Tensor, top_k: int | None) -> Labels:
    best = probabilities.topk(min(top_k or len(probabilities), len(probabilities)))
    return Labels(
        labels=[row.served.labels[index] for index in best.indices.tolist()],
        scores=[round(score, 6) for score in best.values.tolist()],
    )


def _value(_row: Row, scores: Scores, _top_k: int | None) -> Value:
    return Value(value=round(float(scores["logits"][0]), 6))


def _words(row: Row, scores: Scores, _top_k: int | None) -> Words:
    probabilities = scores["logits"].softmax(dim=-1)
    found = []
    for first, start, end in _spelled(row):
        score, index = probabilities[first].max(dim=-1)
        label = row.served.labels[int(index)]
        found.append(Word(text=row.text[start:end], start=start, end=end, label=label, score=round(float(score), 6)))
    return Words(words=found)


def _spelled(row: Row) -> Iterator[tuple[int, int, int]]:
    """Yield first token, first and last character of every word of the text."""
    current: tuple[int, int, int] | None = None
    before: Any = None
    for token, ((start, end), word, part) in enumerate(zip(row.offsets, row.words, row.parts, strict=True)):
        start, end = _trimmed(row.text, start, end)
        if part != 0 or start >= end:
            continue
        # Some tokenizers take a whole text for one word: white space ends a word too.
        if current is None or word != before or row.text[current[2] : start].strip() != row.text[current[2] : start]:
            if current is not None:
                yield current
            current = token, start, end
        else:
            current = current[0], current[1], end
        before = word
    if current is not None:
        yield current


def _spans(row: Row, scores: Scores, top_k: int | None) -> Spans:
    """The best parts of the context, by the product of their ends' probabilities (Devlin et al. 2019, §4.2).

    The first token stands for "not here" (§4.3).
    """
    assert row.pair is not None
    context = [i for i, part in enumerate(row.parts) if part == 1]
    start, end = (scores[name][[0, *context]].softmax(dim=-1) for name in ("start_logits", "end_logits"))
    allowed = torch.ones(len(context), len(context), dtype=torch.bool).triu().tril(_LONGEST_ANSWER - 1)
    both = (start[1:, None] * end[None, 1:])[allowed]
    best = both.topk(min(top_k or 1, len(both)))
    ends = allowed.nonzero()[best.indices].tolist()
    answers = []
    for (i, j), score in zip(ends, best.values.tolist(), strict=True):
        a, b = _trimmed(row.pair, row.offsets[context[i]][0], row.offsets[context[j]][1])
        answers.append(Span(text=row.pair[a:b], start=a, end=b, score=round(score, 6)))
    return Spans(answers=answers, no_answer=round(float(start[0] * end[0]), 6))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out white space at both ends: some tokenizers count it to the word behind it."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


_PHRASINGS = {
    "classification": Phrasing("classification", ("logits",), _classes),
    "multilabel_classification": Phrasing("multilabel_classification", ("logits",), _several),
    "regression": Phrasing("regression", ("logits",), _value, ranked=False),
    "tagging": Phrasing("tagging", ("logits",), _words, by_token=True, ranked=False),
    "question_answering": Phrasing(
        "question_answering", ("start_logits", "end_logits"), _spans, by_token=True, pairs=True
    ),
}
_CLASSES = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tagging",
    "ForQuestionAnswering": "question_answering",
}
"""Ends of the names of transformers' classes, for heads that are copies of a class's own."""
