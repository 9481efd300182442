"""What an adapter answers, one class for each shape of answer: plain data for programs, rows of fields for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Rows = list[tuple[str, ...]]
"""Lines as people read them, each of fields; an empty one stands between two blocks."""


@dataclass(frozen=True)
class Said:
    """The answer to one row."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)

    def rows(self, asked: str) -> Rows:
        """Return what people are shown.

        Args:
            asked: The text that was answered, or what stands for it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Label(Said):
    """One label: of text-classification and image-classification."""

    label: str
    probability: float
    probabilities: Mapping[str, float]
    """Of every label, in the order of the logits."""
    logits: tuple[float, ...]

    def rows(self, asked: str) -> Rows:
        """Label, probability, text."""
        return [(self.label, f"{self.probability:.3f}", asked)]


@dataclass(frozen=True)
class Labels(Said):
    """Any number of labels, those whose probability is over one half: of multi-label-classification."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]
    """Of every label, each for itself."""
    logits: tuple[float, ...]

    def rows(self, asked: str) -> Rows:
        """Labels as data files write them, and the text."""
        return [("|".join(self.labels), asked)]


@dataclass(frozen=True)
class Number(Said):
    """A number: of text-regression."""

    value: float

    def rows(self, asked: str) -> Rows:
        """Number, text."""
        return [(f"{self.value:.4f}", asked)]


@dataclass(frozen=True)
class Tags(Said):
    """A tag for every word: of token-classification."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def rows(self, asked: str) -> Rows:
        """CoNLL: a word and its tag on a line, and an empty line behind the sentence."""
        return [*zip(self.words, self.tags, strict=True), ()]


@dataclass(frozen=True)
class Span(Said):
    """A part of the context: of question-answering. Empty: the context does not say."""

    answer: str

    def rows(self, asked: str) -> Rows:
        """Answer, question."""
        return [(self.answer, asked)]


@dataclass(frozen=True)
class Choice(Said):
    """One of the choices: of multiple-choice."""

    choice: str
    index: int
    """From 0."""
    probability: float
    probabilities: tuple[float, ...]
    """Of every choice."""

    def rows(self, asked: str) -> Rows:
        """Choice, probability, text."""
        return [(self.choice, f"{self.probability:.3f}", asked)]


@dataclass(frozen=True)
class Guess:
    """A token that may stand in the place of a mask."""

    token: str
    probability: float


@dataclass(frozen=True)
class Filled(Said):
    """Guesses for every mask of a text: of fill-mask."""

    text: str
    """With the best guess for each mask, as the tokenizer writes it."""
    masks: tuple[tuple[Guess, ...], ...]
    """In the order of the text, the best guess first."""

    def rows(self, asked: str) -> Rows:
        """For each mask a line: guesses with their probabilities, and the text."""
        guesses = [", ".join(f"{one.token} {one.probability:.3f}" for one in mask) for mask in self.masks]
        return [(one, asked) for one in guesses]


@dataclass(frozen=True)
class Written(Said):
    """What the model writes: of text-generation (behind the text) and of text2text-generation."""

    text: str

    def rows(self, asked: str) -> Rows:
        """What was written; of text-generation one reads it behind the text."""
        return [(self.text, asked)]


def rounded(value: float) -> float:
    """Return a probability with as many digits as mean something."""
    return round(float(value), 6)
