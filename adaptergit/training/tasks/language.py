"""Text as such: language adapters. The model's own output embedding answers, and no head is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import DataError, UsageError
from adaptergit.training import measures
from adaptergit.training.rows import Data
from adaptergit.training.tasks.base import Collate, Feature, Generate, Run, Task, Tools


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Texts are put together and cut into blocks of ``max_length`` tokens."""

    roles: ClassVar[Mapping[str, str | None]] = {"text": "text"}

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Read the texts."""
        found = cls(columns)
        found.check(data)
        return found

    def check(self, data: Data) -> None:
        """The texts must be there."""
        for row in data:
            row.text(self.columns["text"])

    def head(self) -> None:
        """None: the model's own class answers."""

    def features(self, data: Data, tools: Tools) -> list[Feature]:
        """Return blocks."""
        found = tools.tokenizer([row.text(self.columns["text"]) for row in data], return_special_tokens_mask=True)
        joined = {key: [token for row in found[key] for token in row] for key in found}
        length, size = len(joined["input_ids"]), tools.max_length
        # A rest that is shorter than a block is left out, unless it is all there is.
        starts = range(0, max(length - length % size, min(length, size)), size)
        if length < 2:
            raise DataError("the file holds less than two tokens", where=str(data.path))
        return [{key: values[start : start + size] for key, values in joined.items()} for start in starts]

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[tuple[float, int]]:
        """Return the summed loss in nats of every block, and the number of tokens that were predicted."""
        return run(self._held_out(data, tools), _padded(tools), self._losses)

    def measures(self, answers: Sequence[tuple[float, int]], data: Data) -> list[measures.Measure]:
        """Perplexity and loss."""
        return measures.perplexity([loss for loss, _ in answers], [tokens for _, tokens in answers])

    def plain(self, answer: tuple[float, int]) -> dict[str, Any]:
        """Return loss and tokens."""
        return {"loss": answer[0], "tokens": answer[1]}

    def _held_out(self, data: Data, tools: Tools) -> list[Feature]:
        raise NotImplementedError

    def _losses(self, output: Any, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, int]]:
        raise NotImplementedError


@dataclass(frozen=True)
class FillMask(LanguageModelling):
    """Masked language modelling (Devlin et al. 2019): 15 % of the tokens are to be guessed."""

    name: ClassVar[str] = "fill-mask"
    model_class: ClassVar[str] = "AutoModelForMaskedLM"

    def collate(self, tools: Tools) -> Collate:
        """Mask at random."""
        from transformers import DataCollatorForLanguageModeling

        if getattr(tools.tokenizer, "mask_token", None) is None:
            raise UsageError("this base model's tokenizer has no mask", hint="--task text-generation")
        return DataCollatorForLanguageModeling(tools.tokenizer, mlm=True)

    def _held_out(self, data: Data, tools: Tools) -> list[Feature]:
        """Mask the same tokens every time."""
        mask, made = self.collate(tools), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for block in self.features(data, tools):
                batch = mask([block])
                made.append({key: value[0].tolist() for key, value in batch.items()})
        return made

    def _losses(self, output: Any, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, int]]:
        return _summed(output.logits, batch["labels"])


@dataclass(frozen=True)
class TextGeneration(LanguageModelling):
    """Causal language modelling: every next token is to be guessed."""

    name: ClassVar[str] = "text-generation"
    model_class: ClassVar[str] = "AutoModelForCausalLM"

    def collate(self, tools: Tools) -> Collate:
        """Pad; every token is a label."""
        from transformers import DataCollatorForLanguageModeling

        collator: Collate = DataCollatorForLanguageModeling(tools.tokenizer, mlm=False)
        return lambda features: {k: v for k, v in collator(features).items() if k != "special_tokens_mask"}

    def _held_out(self, data: Data, tools: Tools) -> list[Feature]:
        return [
            {**{k: v for k, v in block.items() if k != "special_tokens_mask"}, "labels": block["input_ids"]}
            for block in self.features(data, tools)
        ]

    def _losses(self, output: Any, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, int]]:
        return _summed(output.logits[:, :-1], batch["labels"][:, 1:])


def _padded(tools: Tools) -> Collate:
    """Pad tokens, and labels with what does not count."""
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tools.tokenizer)


def _summed(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, int]]:
    labels = labels.to(logits.device)
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(dim=1)
    counted = labels.ne(-100).sum(dim=1)
    return list(zip(losses.tolist(), counted.tolist(), strict=True))
