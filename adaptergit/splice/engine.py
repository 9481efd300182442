"""The hooks: an active composition compiled to a plan, and the plan run inside the host's own forward.

Hooks are installed only on modules that a plan needs, so an inactive model runs at its own speed. What one forward call
must remember between two hooks (the residual stream) is kept per thread and taken out where it is used; nothing of a
call stays on a module, so threads, re-entrant calls and recomputation under gradient checkpointing see only their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from adaptergit.errors import ModelError
from adaptergit.splice.anatomy import Site


class SiteModule(Protocol):
    """What a method puts at a site."""

    replaces_sum: bool

    def __call__(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """Return what takes the place of ``h``; all (batch, seq, hidden)."""
        ...


@dataclass(frozen=True)
class Plan:
    """What happens at every site, in order. Compiled once per activation; the forward only looks up and calls."""

    steps: Mapping[Site, tuple[SiteModule, ...]]
    head: bool = True
    """Whether the active head answers."""


EMPTY = Plan({})
_RESIDUAL, _SUM = "x of ", "sum of "
_OVERRIDES: ContextVar[Mapping[int, Plan]] = ContextVar("adaptergit_overrides", default={})  # noqa: B039 - never mutated


class Engine:
    """Runs plans inside one model."""

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._plan = EMPTY
        self._overriding: list[Plan] = []
        self._handles: dict[Site, list[RemovableHandle]] = {}
        self._lock = threading.RLock()
        self._local = threading.local()

    @property
    def plan(self) -> Plan:
        """The plan of calls outside any override."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        with self._lock:
            self._plan = plan
            self._install()

    @contextmanager
    def override(self, plan: Plan) -> Iterator[None]:
        """Use another plan in this thread or task only."""
        with self._lock:
            self._overriding.append(plan)
            self._install()
        token = _OVERRIDES.set({**_OVERRIDES.get(), id(self): plan})
        try:
            yield
        finally:
            _OVERRIDES.reset(token)
            with self._lock:
                self._overriding.remove(plan)
                self._install()

    def _current(self) -> Plan:
        # Reading a context variable breaks a torch.compile graph; without overrides nobody needs to.
        if self._overriding and not torch.compiler.is_compiling():
            return _OVERRIDES.get().get(id(self), self._plan)
        return self._plan

    def _install(self) -> None:
        """Make the installed hooks exactly those that some plan needs."""
        needed = {site for plan in (self._plan, *self._overriding) for site in plan.steps}
        for site in [site for site in self._handles if site not in needed]:
            for handle in self._handles.pop(site):
                handle.remove()
        for site in needed:
            if site not in self._handles:
                self._handles[site] = self._hook(site)

    def _hook(self, site: Site) -> list[RemovableHandle]:
        norm = self._base.get_submodule(site.norm) if site.norm is not None else None
        handles = [
            self._base.get_submodule(site.residual).register_forward_pre_hook(_Remember(self, site), with_kwargs=True),
            self._base.get_submodule(site.output).register_forward_hook(_Splice(self, site, norm)),
        ]
        if norm is not None:
            handles.append(norm.register_forward_hook(_ReplaceSum(self, site)))
        return handles

    def steps(self, site: Site) -> tuple[SiteModule, ...] | None:
        """Return what this call does at a site."""
        return self._current().steps.get(site)

    def answers_with_head(self) -> bool:
        """Tell whether this call is answered by the active head."""
        return self._current().head

    def put(self, key: str, value: torch.Tensor) -> None:
        """Remember a tensor of this thread's running call."""
        self._memory()[key] = value

    def take(self, key: str) -> torch.Tensor | None:
        """Return what was remembered, and forget it."""
        return self._memory().pop(key, None)

    def _memory(self) -> dict[str, torch.Tensor]:
        local = self._local
        if not hasattr(local, "memory"):
            local.memory = {}
        memory: dict[str, torch.Tensor] = local.memory
        return memory

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no lock and no running call; overrides end with their ``with`` block."""
        return {"_base": self._base, "_plan": self._plan, "_handles": self._handles}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._overriding, self._lock, self._local = [], threading.RLock(), threading.local()


# Hooks are objects, not closures, so that a deep copy of a model gets hooks of its own.
@dataclass(frozen=True, eq=False)
class _Remember:
    engine: Engine
    site: Site

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.engine.steps(self.site) is not None:
            self.engine.put(_RESIDUAL + self.site.key, args[0] if args else kwargs["hidden_states"])


@dataclass(frozen=True, eq=False)
class _Splice:
    engine: Engine
    site: Site
    norm: nn.Module | None

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        steps = self.engine.steps(self.site)
        if steps is None:
            return None
        h, x = _first(output), self.engine.take(_RESIDUAL + self.site.key)
        if x is None:
            raise ModelError("the residual stream was not seen before the branch ran", where=self.site.output)
        for step in steps:
            h = step(h, x, self.norm)
        if steps[-1].replaces_sum:
            if self.norm is not None:
                self.engine.put(_SUM + self.site.key, h)
                return None
            h = h - x  # the host is about to add x
        return _with_first(output, h)


@dataclass(frozen=True, eq=False)
class _ReplaceSum:
    engine: Engine
    site: Site

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return self.engine.take(_SUM + self.site.key)


def _first(output: Any) -> torch.Tensor:
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, torch.Tensor)
    return first


def _with_first(output: Any, h: torch.Tensor) -> Any:
    return (h, *output[1:]) if isinstance(output, tuple) else h
