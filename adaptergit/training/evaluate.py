"""Running a model with an active head over texts, and scoring what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaptergit.errors import ModelError


@dataclass(frozen=True)
class Metrics:
    """Scores of a classification."""

    accuracy: float
    f1_macro: float
    samples: int


def predict_logits(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> torch.Tensor:
    """Return the logits of every text, shape (texts, labels), float32, on the CPU.

    Args:
        model: Whose output has ``logits``.
        tokenizer: The base model's.
        texts: In any number.
        batch_size: Texts at once.
        max_length: Tokens; longer texts are cut.
        report: Called with (texts done, texts) after every batch.

    Raises:
        ModelError: The model has no active head.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    # Texts of similar length together: little padding, most of the time saved.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts: list[torch.Tensor] = []
    try:
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                [texts[i] for i in order[start : start + batch_size]],
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                output = model(**{key: value.to(device) for key, value in batch.items()})
            if not hasattr(output, "logits"):
                raise ModelError(
                    "the model gives no logits: no head is active",
                    hint="load an adapter that was published with its head",
                )
            parts.append(output.logits.float().cpu())
            report(min(start + batch_size, len(texts)), len(texts))
    finally:
        model.train(was_training)
    if not parts:
        return torch.empty(0, 0)
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)


def score(logits: torch.Tensor, gold: Sequence[int]) -> Metrics:
    """Score logits (samples, labels) against the indices of the right labels."""
    truth = torch.tensor(list(gold))
    found = logits.argmax(dim=1)
    classes = [int(c) for c in torch.unique(torch.cat([truth, found]))]
    f1s = []
    for c in classes:
        hit = int(((found == c) & (truth == c)).sum())
        f1s.append(2 * hit / (int((found == c).sum()) + int((truth == c).sum())))
    accuracy = float((found == truth).float().mean())
    return Metrics(accuracy=round(accuracy, 6), f1_macro=round(sum(f1s) / len(f1s), 6), samples=len(truth))
