"""Gradient checkpointing: a block that runs again for the backward pass does so as it ran before.

The backward pass may come when other adapters are active, when other batches went through the model, and in another
thread. Transformers runs checkpointed blocks through a function that their owner keeps; ours stands in front of it,
and gives what it runs the plan and the call of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.splice.hooks import Undo, before

if TYPE_CHECKING:
    from adaptergit.splice.engine import Call, Engine
    from adaptergit.splice.plan import Plan

_FUNCTION = "_gradient_checkpointing_func"


def hook_recomputation(base: nn.Module, engine: Engine) -> list[Undo]:
    """Let blocks that run again use what they ran with first; return what undoes it.

    Checkpointing may be turned on at any time: whether it is on is looked up in each call of a model in training.
    """
    return [before(base, _Watch(engine), with_kwargs=False), _Unwatch(base, engine)]


@dataclass(frozen=True, eq=False)
class _Watch:
    engine: Engine

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        for part in module.modules():
            function = part.__dict__.get(_FUNCTION)
            if function is not None and not isinstance(function, _Checkpoint):
                part.__dict__[_FUNCTION] = _Checkpoint(self.engine, function)


@dataclass(frozen=True, eq=False)
class _Unwatch:
    base: nn.Module
    engine: Engine

    def __call__(self) -> None:
        for part in self.base.modules():
            function = part.__dict__.get(_FUNCTION)
            if isinstance(function, _Checkpoint) and function.engine is self.engine:
                part.__dict__[_FUNCTION] = function.checkpoint


@dataclass(frozen=True, eq=False)
class _Checkpoint:
    """The function that runs a block now, and again later."""

    engine: Engine
    checkpoint: Callable[..., Any]

    def __call__(self, block: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self.checkpoint(_AsNow(self.engine, self.engine.current(), self.engine.call, block), *args, **options)


@dataclass(frozen=True, eq=False)
class _AsNow:
    """A block with the plan and the call that it is first run with."""

    engine: Engine
    plan: Plan
    call: Call
    block: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self.engine.again(self.plan, self.call):
            return self.block(*args, **options)
