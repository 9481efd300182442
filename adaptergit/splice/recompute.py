"""Gradient checkpointing: a block that runs again for the backward pass does so as it ran before.

The backward pass may come when other adapters are active, when other batches went through the model, and in another
thread. Transformers runs checkpointed blocks through a function that their owner keeps; ours stands in front of it,
and gives what it runs the plan and the call of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.splice.hooks import Undo, before

if TYPE_CHECKING:
    from adaptergit.splice.calls import Call
    from adaptergit.splice.engine import Engine
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
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self.engine.forget()
        if module.training and (not compiling or any(_is_checkpointed(one) for one in module.modules())):
            self.watch(module)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch's own is not typed
    def watch(self, module: nn.Module) -> None:
        """Stand in front of the functions that run the blocks."""
        for part in module.modules():
            function = part.__dict__.get(_FUNCTION)
            if function is not None and not _is_watched(function, self.engine):
                part.__dict__[_FUNCTION] = _Checkpoint(self.engine, function)


def _is_checkpointed(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def _is_watched(function: Any, engine: Engine) -> bool:
    """Whether it is this engine's already; a part of the model may have a panel of its own."""
    return isinstance(function, _Checkpoint) and (function.engine is engine or _is_watched(function.checkpoint, engine))


def _without(function: Any, engine: Engine) -> Any:
    if not isinstance(function, _Checkpoint):
        return function
    inner = _without(function.checkpoint, engine)
    return inner if function.engine is engine else _Checkpoint(function.engine, inner)


@dataclass(frozen=True, eq=False)
class _Unwatch:
    base: nn.Module
    engine: Engine

    def __call__(self) -> None:
        for part in self.base.modules():
            function = part.__dict__.get(_FUNCTION)
            if _is_watched(function, self.engine):
                part.__dict__[_FUNCTION] = _without(function, self.engine)


@dataclass(frozen=True, eq=False)
class _Checkpoint:
    """The function that runs a block now, and again later."""

    engine: Engine
    checkpoint: Callable[..., Any]

    # The block is compiled by itself.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def __call__(self, block: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run a block so that it runs again as now."""
        return self.checkpoint(_AsNow(self.engine, self.engine.current(), self.engine.call, block), *args, **options)


@dataclass(frozen=True, eq=False)
class _AsNow:
    """A block with the plan and the call that it is first run with."""

    engine: Engine
    plan: Plan
    call: Call
    block: Callable[..., Any]
    used: dict[Any, Any] = field(default_factory=dict)
    """What changes from call to call, as it was when the block was first run."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        token = _USED.set(self.used)
        try:
            with self.engine.again(self.plan, self.call):
                return self.block(*args, **options)
        finally:
            _USED.reset(token)


_USED: ContextVar[dict[Any, Any] | None] = ContextVar("adaptergit_used", default=None)


@contextmanager
def once() -> Iterator[None]:
    """Let what changes from call to call change once, however often it runs within: once for each group of rows."""
    token = _USED.set({}) if _USED.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _USED.reset(token)


def recalled(owner: nn.Module, value: Any) -> tuple[bool, Any]:
    """Return whether a part has run in this call before, and the value that it had then; else, the one it has now."""
    if torch.compiler.is_compiling() or (used := _USED.get()) is None:
        return False, value
    again = owner in used
    return again, used.setdefault(owner, value)
