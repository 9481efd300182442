"""Hooks on modules, so that a compiled model notices them.

What ``torch.compile`` has compiled does not look again whether modules have hooks. It does look whether they have a
``forward`` of their own, so a module with hooks of ours gets one: its class's. Plans that were compiled already are
found again, and whoever compiles nothing pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Undo = Callable[[], None]
_COUNT = "_adaptergit_hooks"


def before(module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = True, prepend: bool = False) -> Undo:
    """Run a hook before a module; return what takes it away."""
    return _Undo(module, module.register_forward_pre_hook(hook, with_kwargs=with_kwargs, prepend=prepend))


def after(module: nn.Module, hook: Callable[..., Any], **options: bool) -> Undo:
    """Run a hook after a module; return what takes it away."""
    return _Undo(module, module.register_forward_hook(hook, **options))


class _Undo:
    """An object, not a closure, so that a deep copy of a model gets one of its own."""

    def __init__(self, module: nn.Module, handle: RemovableHandle) -> None:
        self.module, self.handle = module, handle
        own = module.__dict__
        own[_COUNT] = own.get(_COUNT, 0) + 1
        own.setdefault("forward", MethodType(type(module).forward, module))

    def __call__(self) -> None:
        self.handle.remove()
        own = self.module.__dict__
        own[_COUNT] -= 1
        if not own[_COUNT]:
            del own[_COUNT]
            # What others put there, like accelerate, stays.
            if own.get("forward") == MethodType(type(self.module).forward, self.module):
                del own["forward"]
