"""From texts to rows: what the model reads, and where in the text each token is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from adaptergit.serve.service import Served

READ = ("input_ids", "attention_mask", "token_type_ids")
"""What a text model is called with, as far as its tokenizer gives it."""


@dataclass(frozen=True, eq=False)
class Row:
    """One text, or pair of texts, for one adapter."""

    served: Served
    text: str
    pair: str | None
    inputs: Mapping[str, Sequence[int]]
    """By the names of :data:`READ`, a number for each token."""
    offsets: Sequence[tuple[int, int]] = ()
    """First and last character of each token."""
    words: Sequence[int | None] = ()
    """The word that each token is of; None: a token of no text."""
    parts: Sequence[int | None] = ()
    """0 for tokens of the text, 1 for those of the pair."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.inputs["input_ids"])

    @property
    def lane(self) -> Hashable:
        """Rows of one lane may share a batch."""
        return id(self) if self.served.alone else self.served.lane


def encode(served: Served, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
    """Tokenize; texts longer than the adapter was trained for are cut. For one thread at a time.

    Args:
        served: Whose tokenizer and length count.
        texts: In any number.
        pairs: Second texts, one for each.
    """
    tokenizer = served.tokenizer
    # A fast tokenizer knows where its tokens are; nobody asks the others.
    encoded = tokenizer(
        list(texts), None if pairs is None else list(pairs), truncation=True, max_length=served.max_length
    )
    rows = []
    for index, text in enumerate(texts):
        found = encoded[index] if tokenizer.is_fast else None
        rows.append(
            Row(
                served,
                text,
                None if pairs is None else pairs[index],
                {name: encoded[name][index] for name in READ if name in encoded},
                found.offsets if found is not None else (),
                found.word_ids if found is not None else (),
                found.sequence_ids if found is not None else (),
            )
        )
    return rows


def padded(rows: Sequence[Row], device: torch.device) -> dict[str, torch.Tensor]:
    """Return what the model is called with for rows of one tokenizer, each (rows, seq).

    Padding is on the right, whatever the tokenizer prefers: there it moves no token to another position.
    """
    tokenizer = rows[0].served.tokenizer
    fill = {
        "input_ids": tokenizer.pad_token_id or 0,
        "attention_mask": 0,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
    }
    longest = max(row.length for row in rows)
    return {
        name: torch.tensor([[*row.inputs[name], *[fill[name]] * (longest - row.length)] for row in rows], device=device)
        for name in rows[0].inputs
    }


def most_tokens(model: Any, tokenizer: Any) -> int:
    """Return how many tokens a model has positions for."""
    limits = [int(tokenizer.model_max_length), getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its like begin behind the number of the padding token.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limit for limit in limits if isinstance(limit, int) and limit > 0)
