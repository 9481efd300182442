"""The model without any adapter library: what overheads are measured against."""

from __future__ import annotations

from typing import Any

import torch

from contenders.common import Action, bert, calling, flops, step_memory, tokens, training, versions

__all__ = ["forward", "train_memory", "train_step", "versions"]


def forward(
    batch: int, length: int, size: str = "base", device: str = "cpu", dtype: str = "float32", compiled: bool = False,
    mode: str | None = None,
) -> Action:  # fmt: skip
    """Run the model as it is."""
    model = bert(size, device=device, dtype=dtype)
    action = calling(torch.compile(model, mode=mode) if compiled else model, batch, length)
    if not compiled:
        action.facts["flops"] = flops(lambda: model(**tokens(batch, length, device)))
    return action


def train_step(batch: int, length: int, size: str = "base", **where: Any) -> Action:
    """Train every weight of the model."""
    return training(bert(size, head=True, share=False, **where), batch, length)


def train_memory(batch: int, length: int, size: str = "base", **where: Any) -> dict[str, Any]:
    """See :func:`contenders.common.step_memory`."""
    return step_memory(train_step(batch, length, size, **where))
