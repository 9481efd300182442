"""Hooks on modules, so that a compiled model notices them.

What ``torch.compile`` has compiled does not look again whether modules have hooks. It does look whether they have a
``forward`` of their own, so a module with hooks of ours gets one: its class's. Plans that were compiled already are
found again, and whoever compiles nothing pays nothing.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Undo = Callable[[], None]
_COUNT = "_adaptergit_hooks"
M = TypeVar("M", bound=nn.Module)


def before(module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = True, prepend: bool = False) -> Undo:
    """Run a hook before a module; return what takes it away.

    One that another thread takes away while the module runs may be called without keyword arguments: it does nothing.
    """
    return Hook(module, module.register_forward_pre_hook(hook, with_kwargs=with_kwargs, prepend=prepend))


def after(module: nn.Module, hook: Callable[..., Any], **options: bool) -> Undo:
    """Run a hook after a module; return what takes it away."""
    return Hook(module, module.register_forward_hook(hook, **options))


def with_first(output: Any, first: torch.Tensor) -> Any:
    """Return a module's output with another first tensor."""
    if isinstance(output, torch.Tensor):
        return first
    if isinstance(output, tuple | list):
        return type(output)((first, *output[1:]))
    output[next(iter(output))] = first  # a model output
    return output


def bare_copy(module: M) -> M:
    """Return a deep copy that nobody's hooks act on."""
    hooks = [(name, d) for part in module.modules() for name, d in vars(part).items() if isinstance(d, dict)]
    made = copy.deepcopy(module, {id(d): OrderedDict() for name, d in hooks if "forward" in name and "hooks" in name})
    for part in made.modules():
        if vars(part).pop(_COUNT, 0):
            vars(part).pop("forward", None)
    return made


class Hook:
    """An object, not a closure, so that a deep copy of a model gets one of its own."""

    def __init__(self, module: nn.Module, handle: RemovableHandle) -> None:
        self.module, self.handle = module, handle
        own = module.__dict__
        own[_COUNT] = own.get(_COUNT, 0) + 1
        own.setdefault("forward", MethodType(type(module).forward, module))

    def to_front(self) -> None:
        """Let the hook run first: without a moment at which it is not there, for other threads run the module."""
        self._hooks().move_to_end(self.handle.id, last=False)

    def surround(self) -> None:
        """Let the hook run before all others in front of the module, or after all others behind it."""
        hooks = self._hooks()
        hooks.move_to_end(self.handle.id, last=hooks is not self.module._forward_pre_hooks)

    def _hooks(self) -> OrderedDict[int, Any]:
        hooks: Any = self.handle.hooks_dict_ref()
        return hooks  # type: ignore[no-any-return]

    def __call__(self) -> None:
        """Take it away."""
        self.handle.remove()
        own = self.module.__dict__
        own[_COUNT] -= 1
        if not own[_COUNT]:
            del own[_COUNT]
            # What others put there, like accelerate, stays.
            if own.get("forward") == MethodType(type(self.module).forward, self.module):
                del own["forward"]
