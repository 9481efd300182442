"""Words of sentences: one tag for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from adaptergit.errors import DataError, UsageError
from adaptergit.splice.heads import HeadConfig, TaggingHead
from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import (
    Collate,
    Feature,
    Generate,
    Run,
    Task,
    Tools,
    known_label,
    learnt_labels,
    padding,
)
from adaptergit.training.tasks.said import Tags

_IGNORED = -100


@dataclass(frozen=True)
class TokenClassification(Task):
    """Named entities, parts of speech. A word's tag is read at its first token."""

    name: ClassVar[str] = "token-classification"
    roles: ClassVar[Mapping[str, str | None]] = {"text": "tokens", "label": "tags"}
    heads: ClassVar[tuple[str, ...]] = ("tagging", "ForTokenClassification")
    by_word: ClassVar[bool] = True

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Collect the tags."""
        return cls(columns, learnt_labels([tag for row in data for tag in _tags(row, columns)], data))

    def check(self, data: Data) -> None:
        """Every tag must be known."""
        for row in data:
            self._targets(row)

    def head(self) -> HeadConfig:
        """Return a tagging head."""
        return TaggingHead(num_labels=len(self.labels), labels=self.labels)

    def features(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise; a sentence that is too long comes in pieces."""
        made = []
        for piece, index, words in self.encoded(data, tools):
            wanted = self._targets(data.rows[index])
            made.append({**piece, "labels": [_IGNORED if word is None else wanted[word] for word in words]})
        return made

    def collate(self, tools: Tools) -> Collate:
        """Pad tokens and tags."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tools.tokenizer)

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[list[str]]:
        """Return a tag for every word."""
        pieces = list(self.encoded(data, tools))
        found = run(
            [piece for piece, _, _ in pieces],
            padding(tools),
            lambda output, _: output.logits.argmax(dim=-1).tolist(),
        )
        said: list[dict[int, str]] = [{} for _ in data]
        for (_, index, words), tags in zip(pieces, found, strict=True):
            said[index] |= {word: self.labels[tags[i]] for i, word in enumerate(words) if word is not None}
        return [[tags[word] for word in range(len(tags))] for tags in said]

    def measures(self, answers: Sequence[list[str]], data: Data) -> list[measures.Measure]:
        """F1 of entities where tags begin with B- or I-, and how many tags are right."""
        gold = [_tags(row, self.columns) for row in data]
        right = measures.per_token(
            [[self.labels.index(tag) for tag in tags] for tags in answers],
            [[self.labels.index(tag) for tag in tags] for tags in gold],
        )
        entities = any(label.startswith(("B-", "I-")) for label in self.labels)
        return [*measures.spans(answers, gold), right] if entities else [right]

    @classmethod
    def asked(cls, columns: Mapping[str, str], text: str | Sequence[str]) -> dict[str, Any]:
        """Return words: what stands between spaces."""
        return {columns["text"]: text.split() if isinstance(text, str) else list(text)}

    def shown(self, row: Row) -> str:
        """Return the words."""
        return " ".join(row.texts(self.columns["text"]))

    def worded(self, reply: list[str], row: Row) -> Tags:
        """Return words and tags."""
        return Tags(tuple(row.texts(self.columns["text"])), tuple(reply))

    def plain(self, answer: list[str]) -> dict[str, Any]:
        """Return the tags."""
        return {"tags": answer}

    def encoded(self, data: Data, tools: Tools) -> list[tuple[Feature, int, list[int | None]]]:
        """Return inputs, the index of the row they are of, and at every token the word it begins."""
        if not getattr(tools.tokenizer, "is_fast", False):
            raise UsageError(
                "this base model's tokenizer does not say which word a token is of",
                hint="a base model with a tokenizer.json has one that does",
            )
        found = tools.tokenizer(
            [row.texts(self.columns["text"]) for row in data],
            is_split_into_words=True,
            truncation=True,
            max_length=tools.max_length,
            return_overflowing_tokens=True,
        )
        owners = found.pop("overflow_to_sample_mapping")
        made, seen = [], set()
        for index, owner in enumerate(owners):
            firsts: list[int | None] = []
            for word in found.word_ids(index):
                first = word is not None and (owner, word) not in seen
                firsts.append(word if first else None)
                seen.add((owner, word))
            made.append(({key: found[key][index] for key in found}, owner, firsts))
        for number, row in enumerate(data):
            for word, text in enumerate(row.texts(self.columns["text"])):
                if (number, word) not in seen:
                    raise DataError(
                        f"the tokenizer makes nothing of word {word + 1}, {text!r}",
                        where=row.where,
                        hint="take it out of the sentence, and its tag",
                    )
        return made

    def _targets(self, row: Row) -> list[int]:
        return [known_label(tag, self.labels, row) for tag in _tags(row, self.columns)]


def _tags(row: Row, columns: Mapping[str, str]) -> list[str]:
    tags, words = row.texts(columns["label"]), row.texts(columns["text"])
    if len(tags) != len(words):
        raise DataError(f"{len(words)} words and {len(tags)} tags", where=row.where)
    if not words:
        raise DataError("a sentence without words", where=row.where)
    return tags
