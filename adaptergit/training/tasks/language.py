"""Text as such: language adapters. The model's own output embedding answers, and no head is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import DataError, UsageError
from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import Collate, Feature, Generate, Run, Task, Tools, Wishes, padding
from adaptergit.training.tasks.said import Filled, Guess, Said, Written, rounded

_GUESSES, _WRITTEN = 5, 32
"""For a mask; tokens behind a text."""


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Texts are put together and cut into blocks of ``max_length`` tokens."""

    roles: ClassVar[Mapping[str, str | None]] = {"text": "text"}
    right: ClassVar[str | None] = None
    _share: ClassVar[str]
    """What of a text is to be guessed."""

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

    def encoded(self, data: Data, tools: Tools) -> list[Feature]:
        """Return blocks with the tokens that are to be guessed."""
        blocks = self._held_out(data, tools)
        if not any(map(self._guesses, blocks)):
            raise DataError(
                "no token of the texts is to be guessed", where=str(data.path), hint=f"give more text: {self._share}"
            )
        return blocks

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[tuple[float, int]]:
        """Return the summed loss in nats of every block, and the number of tokens that were predicted."""
        return run(self.encoded(data, tools), _padded(tools), self._losses)

    def measures(self, answers: Sequence[tuple[float, int]], data: Data) -> list[measures.Measure]:
        """Perplexity and loss."""
        return measures.perplexity([loss for loss, _ in answers], [tokens for _, tokens in answers])

    def worded(self, reply: Said, row: Row) -> Said:
        """Return what was guessed or written."""
        return reply

    def plain(self, answer: tuple[float, int]) -> dict[str, Any]:
        """Return loss and tokens."""
        return {"loss": answer[0], "tokens": answer[1]}

    def _held_out(self, data: Data, tools: Tools) -> list[Feature]:
        raise NotImplementedError

    def _guesses(self, block: Feature) -> int:
        """Return how many tokens of a block are to be guessed."""
        raise NotImplementedError

    def _losses(self, output: Any, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, int]]:
        raise NotImplementedError


@dataclass(frozen=True)
class FillMask(LanguageModelling):
    """Masked language modelling (Devlin et al. 2019): 15 % of the tokens are to be guessed."""

    name: ClassVar[str] = "fill-mask"
    model_class: ClassVar[str] = "AutoModelForMaskedLM"
    wishes: ClassVar[tuple[str, ...]] = ("top_k",)
    _share: ClassVar[str] = "15 % of the tokens are masked at random"

    def collate(self, tools: Tools) -> Collate:
        """Mask at random."""
        from transformers import DataCollatorForLanguageModeling

        if getattr(tools.tokenizer, "mask_token", None) is None:
            raise UsageError("this base model's tokenizer has no mask", hint="--task text-generation")
        return DataCollatorForLanguageModeling(tools.tokenizer, mlm=True)

    def replies(self, data: Data, tools: Tools, run: Run, generate: Generate, wishes: Wishes) -> list[Filled]:
        """Guess what stands where the texts have the tokenizer's mask, or ``[MASK]``."""
        tokenizer = tools.tokenizer
        mask = getattr(tokenizer, "mask_token_id", None)
        if mask is None:
            raise UsageError(
                "this base model's tokenizer has no mask",
                hint="name the base model that the adapter was trained in with --base",
            )
        features = []
        for row in data:
            text = row.text(self.columns["text"]).replace("[MASK]", tokenizer.mask_token)
            cut = dict(tokenizer(text, truncation=True, max_length=tools.max_length))
            if mask not in cut["input_ids"]:
                where = f"the first {tools.max_length} tokens of the text"
                raise DataError(
                    f"there is no mask in {where}", where=row.where, hint="write [MASK] for what is missing"
                )
            features.append(cut)

        def guesses(output: Any, batch: Mapping[str, torch.Tensor]) -> list[list[tuple[list[int], list[float]]]]:
            rows = []
            for ids, logits in zip(batch["input_ids"], output.logits, strict=True):
                best = logits[ids == mask].float().softmax(dim=-1)
                top = best.topk(min(wishes.top_k or _GUESSES, best.shape[-1]))
                rows.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
            return rows

        found = run(features, padding(tools), guesses)
        return [_filled(tokenizer, one["input_ids"], masks) for one, masks in zip(features, found, strict=True)]

    def _held_out(self, data: Data, tools: Tools) -> list[Feature]:
        """Mask the same tokens every time."""
        mask, made = self.collate(tools), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for block in self.features(data, tools):
                batch = mask([block])
                made.append({key: value[0].tolist() for key, value in batch.items()})
        return made

    def _guesses(self, block: Feature) -> int:
        return sum(label != -100 for label in block["labels"])

    def _losses(self, output: Any, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, int]]:
        return _summed(output.logits, batch["labels"])


@dataclass(frozen=True)
class TextGeneration(LanguageModelling):
    """Causal language modelling: every next token is to be guessed."""

    name: ClassVar[str] = "text-generation"
    model_class: ClassVar[str] = "AutoModelForCausalLM"
    wishes: ClassVar[tuple[str, ...]] = ("max_new_tokens",)
    _share: ClassVar[str] = "every token but the first of a block is guessed, and a block has max_length"

    def collate(self, tools: Tools) -> Collate:
        """Pad; every token is a label."""
        from transformers import DataCollatorForLanguageModeling

        collator: Collate = DataCollatorForLanguageModeling(tools.tokenizer, mlm=False)
        return lambda features: {k: v for k, v in collator(features).items() if k != "special_tokens_mask"}

    def replies(self, data: Data, tools: Tools, run: Run, generate: Generate, wishes: Wishes) -> list[Written]:
        """Go on with every text, greedily."""
        tokenizer, features = tools.tokenizer, []
        for row in data:
            features.append(dict(tokenizer(row.text(self.columns["text"]))))
            if not features[-1]["input_ids"]:
                raise DataError(
                    "the tokenizer makes nothing of the text",
                    where=row.where,
                    hint="write at least a word to go on from",
                )

        def pad(batch: list[Feature]) -> dict[str, torch.Tensor]:
            # New tokens come behind the text, so what fills up stands in front of it.
            padded: dict[str, torch.Tensor] = tokenizer.pad(batch, padding_side="left", return_tensors="pt")
            return padded

        made = generate(features, pad, max_new_tokens=wishes.max_new_tokens or _WRITTEN)
        return [Written(text) for text in tokenizer.batch_decode(made, skip_special_tokens=True)]

    def _held_out(self, data: Data, tools: Tools) -> list[Feature]:
        return [
            {**{k: v for k, v in block.items() if k != "special_tokens_mask"}, "labels": block["input_ids"]}
            for block in self.features(data, tools)
        ]

    def _guesses(self, block: Feature) -> int:
        return len(block["labels"]) - 1

    def _losses(self, output: Any, batch: Mapping[str, torch.Tensor]) -> list[tuple[float, int]]:
        return _summed(output.logits[:, :-1], batch["labels"][:, 1:])


def _filled(tokenizer: Any, ids: list[int], masks: list[tuple[list[int], list[float]]]) -> Filled:
    """Put the best guesses where the masks are."""
    best = iter(tokens[0] for tokens, _ in masks)
    text = tokenizer.decode(
        [next(best) if one == tokenizer.mask_token_id else one for one in ids], skip_special_tokens=True
    )
    guesses = (
        tuple(
            Guess(tokenizer.decode([token]).strip(), rounded(probability))
            for token, probability in zip(tokens, probabilities, strict=True)
        )
        for tokens, probabilities in masks
    )
    return Filled(text, tuple(guesses))


def _padded(tools: Tools) -> Collate:
    """Pad tokens, and labels with what does not count."""
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tools.tokenizer)


def _summed(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, int]]:
    labels = labels.to(logits.device)
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(dim=1)
    counted = labels.ne(-100).sum(dim=1)
    return list(zip(losses.tolist(), counted.tolist(), strict=True))
