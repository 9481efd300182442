"""Texts that become other texts: translation, summaries, whatever an encoder-decoder writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import Collate, Feature, Generate, Run, Task, Tools, Wishes, padding
from adaptergit.training.tasks.said import Written


@dataclass(frozen=True)
class TextToText(Task):
    """The model's own output embedding answers, greedily."""

    name: ClassVar[str] = "text2text-generation"
    roles: ClassVar[Mapping[str, str | None]] = {"text": "text", "label": "target"}
    model_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    wishes: ClassVar[tuple[str, ...]] = ("max_new_tokens",)

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Read the texts."""
        found = cls(columns)
        found.check(data)
        return found

    def check(self, data: Data) -> None:
        """Both texts must be there."""
        for row in data:
            row.text(self.columns["text"])
            row.label(self.columns["label"])

    def head(self) -> None:
        """None: the model's own class answers."""

    def features(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise both."""
        targets = [row.text(self.columns["label"]) for row in data]
        labels = tools.tokenizer(text_target=targets, truncation=True, max_length=tools.max_length)["input_ids"]
        return [{**one, "labels": wanted} for one, wanted in zip(self.encoded(data, tools), labels, strict=True)]

    def collate(self, tools: Tools) -> Collate:
        """Pad tokens, and labels with what does not count."""
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(tools.tokenizer)

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[str]:
        """Return the texts that the model writes."""
        return self._written(data, tools, generate, tools.max_length)

    def replies(self, data: Data, tools: Tools, run: Run, generate: Generate, wishes: Wishes) -> list[str]:
        """Return the texts that the model writes; by default as many tokens as when it is scored."""
        return self._written(data, tools, generate, wishes.max_new_tokens or tools.max_length)

    def worded(self, reply: str, row: Row) -> Written:
        """Return the text."""
        return Written(reply)

    def _written(self, data: Data, tools: Tools, generate: Generate, most: int) -> list[str]:
        found = generate(self.encoded(data, tools), padding(tools), max_new_tokens=most)
        return [text.strip() for text in tools.tokenizer.batch_decode(found, skip_special_tokens=True)]

    def measures(self, answers: Sequence[str], data: Data) -> list[measures.Measure]:
        """chrF and BLEU of the whole, and how many texts are right to the letter."""
        gold = [row.text(self.columns["label"]).strip() for row in data]
        hits = [said == right for said, right in zip(answers, gold, strict=True)]
        return [
            measures.of_corpus("chrf", answers, gold),
            measures.of_corpus("bleu", answers, gold),
            measures.mean("exact_match", hits),
        ]

    def plain(self, answer: str) -> dict[str, Any]:
        """Return the text."""
        return {"text": answer}

    def encoded(self, data: Data, tools: Tools) -> list[Feature]:
        """Tokenise what is read."""
        texts = [row.text(self.columns["text"]) for row in data]
        found = tools.tokenizer(texts, truncation=True, max_length=tools.max_length)
        return [{key: found[key][i] for key in found} for i in range(len(texts))]
