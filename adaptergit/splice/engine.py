"""The hooks: a plan run inside the host's own forward.

Hooks are installed only on modules that a plan needs, so an inactive model runs at its own speed. What one forward call
must remember between two hooks (the residual stream) is kept per thread and taken out where it is used; nothing of a
call stays on a module, so threads, re-entrant calls and recomputation under gradient checkpointing see only their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import Projection, Site, base_of, called_of
from adaptergit.splice.attention import Binding, bind
from adaptergit.splice.calls import Call, Generate, clear_interrupted, hook_call, hook_tasks
from adaptergit.splice.embeddings import hook_embeddings
from adaptergit.splice.head_hooks import hook_copies, hook_heads
from adaptergit.splice.heads import Pooling
from adaptergit.splice.hooks import Hook, Undo, after, before, with_first
from adaptergit.splice.inputs import cache_in, mask_of_frames
from adaptergit.splice.interpret import (
    BranchState,
    Chain,
    HiddenState,
    PrefixState,
    ProjectionState,
    Rows,
    State,
    run,
    run_rows,
)
from adaptergit.splice.places import Attention, BlockOutput, Embedding, Linear, Place, Prompt, Tuned
from adaptergit.splice.plan import Plan
from adaptergit.splice.prompts import own_mask, prompt_length
from adaptergit.splice.recompute import hook_recomputation, once
from adaptergit.splice.trace import first_tensors

EMPTY = Plan()
_RESIDUAL, _SUM, _INPUT, _SEEN = "x of ", "sum of ", "input of ", "tokens before "
_WITHIN = (_RESIDUAL, _SUM, _INPUT, _SEEN)
_OVERRIDES: ContextVar[Mapping[int, Plan]] = ContextVar("adaptergit_overrides", default={})  # noqa: B039 - never mutated
S = TypeVar("S", bound="State")


class Engine:
    """Runs plans inside one model."""

    def __init__(self, model: nn.Module, pooling: Pooling = "first") -> None:
        self._model, self._base, self.pooling = model, base_of(model), pooling
        self._plan = EMPTY
        self._overriding: list[Plan] = []
        self._installed: dict[Any, list[Undo]] = {}
        self._lock = threading.RLock()
        self._local = threading.local()
        self._last: Call | None = None

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return self._base

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
        before = _OVERRIDES.get().get(id(self))
        _OVERRIDES.set({**_OVERRIDES.get(), id(self): plan})
        try:
            yield
        finally:  # perhaps in another context, where what an interrupted call left is cleared
            others = {key: value for key, value in _OVERRIDES.get().items() if key != id(self)}
            _OVERRIDES.set(others if before is None else {**others, id(self): before})
            with self._lock:
                self._overriding.remove(plan)
                self._install()

    def current(self) -> Plan:
        """Return the plan of this call."""
        # Reading a context variable breaks a torch.compile graph; without overrides nobody needs to.
        if not self._overriding:
            return self._plan
        if torch.compiler.is_compiling():  # a compiled model has one plan for all threads
            return self._overriding[-1]
        plan = _OVERRIDES.get().get(id(self))
        # A task may outlive the with block that it was started in.
        return plan if plan is not None and plan in self._overriding else self._plan

    @property
    def overridden(self) -> bool:
        """Whether some thread uses another plan now."""
        clear_interrupted(self._model, self)
        return bool(self._overriding)

    def run(self, place: Place, state: S) -> S:
        """Run what acts at a place."""
        plan = self.current()
        if not plan.by_row:
            return run(plan.node(place), state)
        if torch.compiler.is_compiling():
            return run_rows(plan.groups(place, state.first.shape[0]), state)
        with once():
            return run_rows(plan.groups(place, state.first.shape[0], at_once=not torch.is_grad_enabled()), state)

    def acts(self, place: Place) -> bool:
        """Tell whether something may act at a place in this call."""
        plan = self.current()
        return place in plan.leaves if plan.by_row else place in plan.nodes

    def unfold(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give a tensor whose rows were flattened (tokens of a mixture of experts, windows) the batch's rows again."""
        plan = self.current()
        if not (plan.by_row or plan.gated) or not tensor.is_floating_point():
            return tensor
        batch = self.call.batch
        same = tensor.dim() > 2 and tensor.shape[0] == batch
        return tensor if same or tensor.shape[0] % batch else tensor.reshape(batch, -1, tensor.shape[-1])

    def unembed(self, hidden: torch.Tensor, rows: Rows | None = None, *, own: bool = False) -> torch.Tensor:
        """Undo what invertible adapters did to the embedding, in front of an output embedding.

        Args:
            hidden: (batch, seq, hidden).
            rows: Of the call's batch; default: all.
            own: The output embedding is the model's own class's.
        """
        plan = self.current()
        place = next((place for place in plan.places if isinstance(place, Embedding)), None)
        if place is None:
            return hidden
        if not plan.by_row:
            return _undo(plan.node(place), hidden, own)
        whole = torch.arange(self.call.batch)[slice(None) if rows is None else rows].tolist()
        out = hidden.clone()
        for index, node in plan.groups(place, self.call.batch):
            members = set(torch.arange(self.call.batch)[index].tolist())
            chosen = [i for i, row in enumerate(whole) if row in members]
            out[chosen] = _undo(node, hidden[chosen], own)
        return out

    @property
    def call(self) -> Call:
        """What the running call was called with. A backward pass in another thread recomputes the last one."""
        call = getattr(self._local, "call", None) or self._last
        return call if call is not None else Call(1)

    def begin(self, call: Call, *, running: bool = True) -> None:
        """Remember what this thread's call was called with."""
        self._local.call = self._last = call
        self._local.running = running

    @contextmanager
    def again(self, plan: Plan, call: Call) -> Iterator[None]:
        """Run a part of a call that was, with its plan."""
        now, self._local.call = getattr(self._local, "call", None), call
        try:
            with nullcontext() if self.current() is plan else self.override(plan):
                yield
        finally:
            self._local.call = now

    def end(self) -> None:
        """The base model has answered; heads may still ask for the call."""
        self._local.running = False

    @property
    def outer(self) -> int:
        """How often a running call of the model with its own head repeats the rows; 0: no such call runs."""
        return int(getattr(self._local, "outer", 0))

    @outer.setter
    def outer(self, copies: int) -> None:
        self._local.outer = copies

    @property
    def running(self) -> bool:
        """Whether the base model is running in this thread."""
        return bool(getattr(self._local, "running", False))

    def without_prompt(self, hidden: torch.Tensor) -> torch.Tensor:
        """Take the positions of this call's prompt out of what its tokens became, (batch, seq, …)."""
        place = next((place for place in self.current().places if isinstance(place, Prompt)), None)
        config = getattr(self._base, "config", None)
        if place is None or not self.call.prompted or getattr(config, "is_encoder_decoder", False):
            return hidden
        length, start = self.prompt_lengths(place, self.call.batch), self.current().prompt_start(place)
        return torch.cat([hidden[:, :start], hidden[:, start + length :]], dim=1)

    def prompt_lengths(self, place: Prompt, rows: int) -> int:
        """Return the number of positions that prompts add to every row.

        Raises:
            UsageError: Rows differ.
        """
        plan = self.current()
        nodes = [node for _, node in plan.groups(place, rows)] if plan.by_row else [plan.node(place)]
        lengths = {prompt_length(node) for node in nodes}
        if len(lengths) > 1:
            raise UsageError("prompts that act in one batch must have one length, and act on every row")
        return lengths.pop()

    def put(self, key: str, value: Any) -> None:
        """Remember something of this thread's running call."""
        self._memory()[key] = value

    def holds(self, key: str) -> bool:
        """Tell whether something is remembered."""
        return key in self._memory()

    def take(self, key: str) -> Any:
        """Return what was remembered, or None, and forget it."""
        return self._memory().pop(key, None)

    def forget(self) -> None:
        """Forget what blocks of a call left that did not come to its end; not what belongs to the heads around it."""
        self._local.memory = {key: value for key, value in self._memory().items() if not key.startswith(_WITHIN)}

    def _memory(self) -> dict[str, Any]:
        local = self._local
        if not hasattr(local, "memory"):
            local.memory = {}
        memory: dict[str, Any] = local.memory
        return memory

    def _install(self) -> None:
        """Make the installed hooks exactly those that some plan needs."""
        plans = (self._plan, *self._overriding)
        # The call's own hook comes first: the others read what it saw.
        needed: list[Any] = ["call"] if any(plan.needs_call for plan in plans) else []
        needed += ["recompute"] if any(plan.places for plan in plans) else []
        needed += ["embeddings"] if any(plan.embeddings is not None for plan in plans) else []
        heads = [head for plan in plans if plan.answer is not None for head in plan.answer.heads.values()]
        several = any(plan.copies > 1 or plan.chooses_tasks for plan in plans)
        needed += ["generate"] if several and hasattr(self._model, "generate") else []
        copied = dict.fromkeys(path for head in heads for path in getattr(head, "copies", ()))
        needed += [("copy", path) for path in copied] or (["answer"] if heads else [])
        needed += sorted(
            {place for plan in plans for place in plan.places}, key=lambda place: (isinstance(place, Tuned), place.key)
        )
        needed += ["tasks"] if any(plan.chooses_tasks for plan in plans) else []
        # Other threads may be in the middle of a call that needs what one thread no longer does.
        for key in [key for key in self._installed if key not in needed and not self._overriding]:
            for undo in self._installed.pop(key):
                undo()
        new = [key for key in needed if key not in self._installed]
        for key in new:
            self._installed[key] = self._hook(key)
        # Heads stand in front of the call's own hook, and what chooses tasks around all others.
        for key in ("answer", "tasks"):
            if new and key in self._installed:
                for hook in self._installed[key]:
                    if isinstance(hook, Hook):
                        hook.surround()
        # A module that runs with other parameters does so before anything is added to what it gives.
        changed = {place.path for place in new if isinstance(place, Projection | Linear)}
        for key in [key for key in self._installed if isinstance(key, Tuned) and key not in new]:
            if any(key.path == path or key.path.endswith(f".{path}") for path in changed):
                for hook in self._installed[key]:
                    if isinstance(hook, Hook):
                        hook.to_front()

    def _hook(self, place: Any) -> list[Undo]:
        base = self._base
        if place == "call":
            return hook_call(self._model, base, self.pooling, self)
        if place == "recompute":
            return hook_recomputation(called_of(base), self)
        if place == "embeddings":
            return hook_embeddings(self._model, self)
        if place == "tasks":
            return hook_tasks(self._model, self)
        if place == "generate":
            return [Generate(self._model, self).undo]
        if place == "answer":
            return hook_heads(self._model, self._base, self.pooling, self)
        if isinstance(place, tuple):
            return hook_copies(self._model, place[1], self)
        if isinstance(place, Site):
            return self._hook_site(place)
        if isinstance(place, Tuned):
            # In front of other hooks: what they make of this module's output comes after.
            module = self._model.get_submodule(place.path)
            return [after(module, _Project(self, place), prepend=True)]
        module = base.get_submodule(place.path) if place.path else base
        if isinstance(place, Projection | Linear):
            # In front of a prefix, which makes keys and values longer.
            return [after(module, _Project(self, place), prepend=True)]
        if isinstance(place, BlockOutput):
            return [after(module, _Leave(self, place))]
        if isinstance(place, Embedding):
            undo = [before(module, _Embed(self, place))]
            head = getattr(self._model, "get_output_embeddings", lambda: None)()
            if isinstance(head, nn.Module):
                undo.append(before(head, _Unembed(self, place), with_kwargs=False, prepend=True))
            return undo
        if isinstance(place, Prompt):
            return [before(module, own_mask), after(module, _Leave(self, place))] if place.path else []
        assert isinstance(place, Attention)
        relative = self._relative(place)
        remember: list[Any] = [_Remember(self, place, _INPUT + place.key)]
        remember += [_RememberCache(self, place)] if relative is not None else []
        return [*(before(module, hook) for hook in remember), bind(module, _Prefix(self, place, relative))]

    def _relative(self, place: Attention) -> nn.Module | None:
        """Return the attention that makes this one's relative position bias: itself, or the first of its stack."""
        if place.branch == "cross_attention":
            return None
        stack = place.path.split(".")[0]
        found: nn.Module
        for path, found in ((place.path, self._base.get_submodule(place.path)), *self._base.named_modules()):
            makes = getattr(found, "has_relative_attention_bias", False) and hasattr(found, "compute_bias")
            if makes and path.split(".")[0] == stack:
                return found
        return None

    def _hook_site(self, site: Site) -> list[Undo]:
        base = self._base
        norm = base.get_submodule(site.norm) if site.norm is not None else None
        undo: list[Undo] = []
        if site.residual is not None:
            reader, *added = site.residual.split("+")
            remember = _Remember(self, site, _RESIDUAL + site.key)
            undo.append(before(base.get_submodule(reader), remember))
            undo += [after(base.get_submodule(path), _Add(self, site)) for path in added]
        # In front of hooks that read this branch's output.
        undo.append(after(base.get_submodule(site.output), _Splice(self, site, norm), prepend=True))
        if norm is not None:
            undo.append(after(norm, _ReplaceSum(self, site)))
        return undo

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no lock and no running call; overrides end with their ``with`` block."""
        kept = ("_model", "_base", "pooling", "_plan", "_installed")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._overriding, self._lock, self._local, self._last = [], threading.RLock(), threading.local(), None


# Hooks are objects, not closures, so that a deep copy of a model gets hooks of its own.
@dataclass(frozen=True, eq=False)
class _Remember:
    engine: Engine
    place: Place
    key: str

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is not None and self.engine.acts(self.place):
            found = first_tensors(args, kwargs)
            if found:
                self.engine.put(self.key, found[0])


@dataclass(frozen=True, eq=False)
class _RememberCache:
    """How many tokens are in the cache before an attention adds its own: relative positions count from there."""

    engine: Engine
    place: Attention

    def __call__(self, module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        past = cache_in(kwargs or {})
        if past is not None and self.engine.acts(self.place):
            self.engine.put(_SEEN + self.place.key, int(past.get_seq_length(module.layer_idx)))


@dataclass(frozen=True, eq=False)
class _Add:
    """Add a branch that has run to the stream that was remembered."""

    engine: Engine
    site: Site

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        x = self.engine.take(_RESIDUAL + self.site.key)
        if x is not None:
            self.engine.put(_RESIDUAL + self.site.key, x + _first(output))


@dataclass(frozen=True, eq=False)
class _Splice:
    engine: Engine
    site: Site
    norm: nn.Module | None

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        engine, site = self.engine, self.site
        if not engine.acts(site):
            return None
        first = _first(output)
        x = None
        if site.residual is not None:
            x = engine.take(_RESIDUAL + site.key)
            if x is None:
                return None  # a module that serves several branches: this call is another's
            x = x if x.shape == first.shape else x.reshape(first.shape)
        if site.channels_first:
            first, x = first.movedim(1, -1), None if x is None else x.movedim(1, -1)
        h = engine.unfold(first)
        wide = None if x is None else x.reshape(h.shape)
        if site.swapped and wide is not None:
            state = engine.run(site, BranchState(wide, h, self.norm))
            state = state if state.whole else replace(state, h=state.h + h - wide)
        else:
            state = engine.run(site, BranchState(h, wide, self.norm))
        new = state.h.reshape(first.shape)
        if state.whole:
            if self.norm is not None:
                engine.put(_SUM + site.key, new)
                return None
            if x is None:
                raise ModelError("the residual stream of this branch cannot be had", where=site.output)
            new = new - x  # the host is about to add x
        return with_first(output, new.movedim(-1, 1) if site.channels_first else new)


@dataclass(frozen=True, eq=False)
class _ReplaceSum:
    engine: Engine
    site: Site

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return self.engine.take(_SUM + self.site.key) if self.engine.acts(self.site) else None


@dataclass(frozen=True, eq=False)
class _Project:
    engine: Engine
    place: Projection | Linear | Tuned

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        if not self.engine.acts(self.place):
            return None
        y, inputs = self.engine.unfold(output), self.engine.unfold(args[0])
        by_row = self.engine.current().by_row
        if by_row and y.shape[0] != self.engine.call.batch:
            raise UsageError(
                f"{self.place.path} is also called with what is not the batch's rows, like DeBERTa's positions",
                hint="what acts there acts on all rows, or on none: run the rows one adapter at a time",
            )
        if y.dim() == 2:  # a pooler's rows, or tokens of all rows
            y, inputs = (y[:, None], inputs[:, None]) if by_row else (y[None], inputs[None])
        state = ProjectionState(y, inputs)
        return self.engine.run(self.place, state).result().reshape(output.shape)


@dataclass(frozen=True, eq=False)
class _Leave:
    """Change what a module returns: the hidden states behind a block, or the embedding with a prompt in it."""

    engine: Engine
    place: BlockOutput | Prompt

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        call = self.engine.call
        if not self.engine.acts(self.place) or (isinstance(self.place, Prompt) and not call.prompted):
            return None
        in_decoder = isinstance(self.place, BlockOutput) and "decoder" in self.place.path.split(".")
        encoder_decoder = getattr(getattr(self.engine._base, "config", None), "is_encoder_decoder", False)
        mask = call.decoder_mask if in_decoder and encoder_decoder else call.mask
        hidden = _first(output)
        if mask is not None and mask.shape[0] == hidden.shape[0] and not in_decoder:
            mask = mask_of_frames(self.engine.base, mask, hidden.shape[1])
        if mask is not None and (mask.shape[0] != hidden.shape[0] or mask.shape[1] < hidden.shape[1]):
            mask = None
        if mask is None and call.seen and (in_decoder or not encoder_decoder):  # the tokens before are in the cache
            mask = hidden.new_ones(hidden.shape[0], call.seen + hidden.shape[1], dtype=torch.long)
        return with_first(output, self.engine.run(self.place, HiddenState(hidden, mask)).hidden)


@dataclass(frozen=True, eq=False)
class _Embed:
    engine: Engine
    place: Embedding

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or not self.engine.acts(self.place):
            return None
        hidden = first_tensors(args, kwargs)[0]
        new = self.engine.run(self.place, HiddenState(hidden)).hidden
        return tuple(new if a is hidden else a for a in args), {k: new if v is hidden else v for k, v in kwargs.items()}


@dataclass(frozen=True, eq=False)
class _Unembed:
    """Undo what was done to the embedding, in front of the output embedding."""

    engine: Engine
    place: Embedding

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (self.engine.unembed(args[0], own=True), *args[1:]) if self.engine.acts(self.place) else None


def _undo(node: Any, hidden: torch.Tensor, own: bool) -> torch.Tensor:
    if isinstance(node, Chain):
        for child in reversed(node.nodes):
            hidden = _undo(child, hidden, own)
        return hidden
    if node is None or (own and isinstance(node, nn.Module) and not node.config.inv_adapter_undo):  # type: ignore[union-attr]
        return hidden
    if not hasattr(node, "inverse"):
        raise UsageError("this composition of invertible adapters has no inverse", hint="compose them with Stack")
    out: torch.Tensor = node.inverse(hidden)
    return out


@dataclass(frozen=True, eq=False)
class _Prefix(Binding):
    engine: Engine
    place: Attention
    relative: Any

    @property
    def before(self) -> bool:  # type: ignore[override]
        """Whether the prefix takes the first positions."""
        return self.place in self.engine.current().prefixes

    @property
    def seen(self) -> int:  # type: ignore[override]
        """Tokens in the cache that come before this call's."""
        return int(self.engine.take(_SEEN + self.place.key) or 0)

    def __call__(self) -> PrefixState | None:
        """Return the prefix of this call's attention."""
        if not self.engine.acts(self.place):
            return None
        hidden = self.engine.take(_INPUT + self.place.key)
        if hidden is None:
            raise ModelError("attention is computed more than once: it takes no prefix", where=self.place.path)
        return self.engine.run(self.place, PrefixState(hidden))


def _first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
