"""The interpreter of compositions: one small recursion for every kind of place.

A *state* is what an adapter changes at a place, with what it may read there. It can be cut into rows and positions and
put together again, so that a leaf sees exactly what it sees when it is alone on those rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.composition import Average, Block, Composition, Fuse, Split, Stack

Rows = slice | torch.Tensor


@dataclass(frozen=True)
class Chain:
    """Nodes one after another."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Mean:
    """Weighted sum."""

    nodes: tuple[Node | None, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Spans:
    """Positions shared out."""

    nodes: tuple[Node | None, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Fused:
    """AdapterFusion over the last adapters of chains."""

    nodes: tuple[Node, ...]
    fusion: nn.Module


Node = nn.Module | Chain | Mean | Spans | Fused


def compile_at(
    tree: Composition | None, adapter: Callable[[str], nn.Module | None], fusion: Callable[[str], nn.Module | None]
) -> Node | None:
    """Compile a composition without row blocks for one place; None where nothing of it acts."""
    if tree is None:
        return None
    if not isinstance(tree, Block):
        return adapter(tree)
    nodes = tuple(compile_at(child, adapter, fusion) for child in tree.children)
    present = tuple(node for node in nodes if node is not None)
    if not present:
        return None
    if isinstance(tree, Stack):
        return present[0] if len(present) == 1 else Chain(present)
    if isinstance(tree, Average):
        return Mean(nodes, tree.factors)
    if isinstance(tree, Split):
        return Spans(nodes, tree.splits)
    if isinstance(tree, Fuse):
        weights = fusion(tree.key)
        if weights is None:
            raise UsageError(f"the fusion {tree.key!r} has no weights here", hint=f"panel.add_fusion({tree.key!r})")
        return Fused(present, weights)
    raise UsageError(f"{type(tree).__name__} cannot stand here")


S = TypeVar("S", bound="State")


def run(node: Node | None, state: S) -> S:
    """Run a compiled composition on a state."""
    if node is None:
        return state
    if isinstance(node, Chain):
        for one in node.nodes:
            state = run(one, state)
        return state
    if isinstance(node, Mean):
        return state.mean([run(child, state) for child in node.nodes], node.weights)
    if isinstance(node, Spans):
        if 1 < state.first.shape[1] < sum(node.sizes):  # one position: a pooler's, or the next token's
            raise UsageError(f"the splits cover {sum(node.sizes)} positions of a sequence of {state.first.shape[1]}")
        parts, start = [], 0
        for child, size in zip(node.nodes, node.sizes, strict=True):
            parts.append(run(child, state.span(start, start + size)))
            start += size
        return state.join(parts, 1, None)
    if isinstance(node, Fused):
        before = []
        for child in node.nodes:
            *first, last = child.nodes if isinstance(child, Chain) else (child,)
            reached = state
            for one in first:
                reached = run(one, reached)
            if not isinstance(last, nn.Module):
                raise UsageError("Fuse holds adapters and Stacks of adapters")
            before.append((reached, last))
        return state.fuse(node.fusion, before)
    return state.apply(node)


def run_rows(groups: Sequence[tuple[Rows, Node | None]], state: S) -> S:
    """Run every group of rows on its own and put the rows back where they were."""
    return state.join([run(node, state.rows(index)) for index, node in groups], 0, order_of([i for i, _ in groups]))


def order_of(indices: Sequence[Rows]) -> torch.Tensor | None:
    """Return what puts rows that were taken out with these indices, one after another, back where they were."""
    if all(isinstance(index, slice) for index in indices):
        return None
    return torch.argsort(torch.cat([torch.arange(i.start, i.stop) if isinstance(i, slice) else i for i in indices]))


class State(ABC):
    """What adapters change at one place. Dimension 0 is the batch, 1 the sequence; the first field has both."""

    __match_args__: ClassVar[tuple[str, ...]]

    @property
    def first(self) -> torch.Tensor:
        """The first field; older dynamos cannot look through vars()."""
        found: torch.Tensor = getattr(self, self.__match_args__[0])
        return found

    @abstractmethod
    def apply(self, leaf: Any) -> Self:
        """Run one adapter."""

    @abstractmethod
    def cut(self, part: Callable[[Any], Any]) -> Self:
        """Take the same part of every tensor, nothing done yet."""

    def rows(self, index: Rows) -> Self:
        """Return some rows of the batch."""
        return self.cut(lambda tensor: _rows(tensor, index))

    def span(self, start: int, stop: int) -> Self:
        """Return some positions of the sequence."""
        return self.cut(lambda tensor: None if tensor is None else tensor[:, start:stop])

    @abstractmethod
    def join(self, parts: Sequence[Self], dim: int, order: torch.Tensor | None) -> Self:
        """Put parts together along a dimension, then into ``order``."""

    @abstractmethod
    def mean(self, parts: Sequence[Self], weights: Sequence[float]) -> Self:
        """Return the weighted sum of whole results."""

    def fuse(self, leaf: Any, parts: Sequence[tuple[Self, Any]]) -> Self:
        """Run AdapterFusion over (state before, last adapter) of every child."""
        raise UsageError("AdapterFusion is defined for bottleneck adapters", hint="Average and Stack take others")


@dataclass(frozen=True)
class BranchState(State):
    """A residual branch ``h`` and the stream ``x`` it is added to, both (batch, seq, hidden)."""

    h: torch.Tensor
    x: torch.Tensor | None
    norm: nn.Module | None
    whole: bool = False
    """``h`` stands for the sum with ``x`` and its norm."""

    def apply(self, leaf: Any) -> BranchState:
        """Run one adapter."""
        return replace(self, h=leaf(self.h, self.x, self.norm), whole=leaf.replaces_sum)

    def cut(self, part: Callable[[Any], Any]) -> BranchState:
        """Take a part."""
        return replace(self, h=part(self.h), x=part(self.x))

    def join(self, parts: Sequence[BranchState], dim: int, order: torch.Tensor | None) -> BranchState:
        """Put parts together."""
        whole = any(part.whole for part in parts)
        return replace(self, h=_join([p.total() if whole else p.h for p in parts], dim, order, self.h), whole=whole)

    def mean(self, parts: Sequence[BranchState], weights: Sequence[float]) -> BranchState:
        """Return the weighted sum."""
        whole = any(part.whole for part in parts)
        return replace(self, h=_mean([p.total() if whole else p.h for p in parts], weights), whole=whole)

    def fuse(self, leaf: Any, parts: Sequence[tuple[BranchState, Any]]) -> BranchState:
        """Run AdapterFusion; the last child gives the query and the residual."""
        if not all(hasattr(last, "before_residual") for _, last in parts):
            return super().fuse(leaf, parts)
        found = [last.before_residual(state.h, state.x, state.norm) for state, last in parts]
        query, _, residual = found[-1]
        query = parts[-1][0].h if leaf.config.query_before_ln else query
        h = leaf(query, torch.stack([up for _, up, _ in found], dim=2), residual)
        return replace(self, h=h.to(self.h.dtype), whole=parts[-1][1].replaces_sum)

    def total(self) -> torch.Tensor:
        """Return the sum with the stream, after the norm."""
        if self.whole:
            return self.h
        if self.x is None:
            raise ModelError("the residual stream of this branch cannot be had")
        return self.h + self.x if self.norm is None else self.norm.forward(self.h + self.x)


@dataclass(frozen=True)
class ProjectionState(State):
    """Output ``y`` (batch, seq, out) of a linear layer for ``inputs`` (batch, seq, in)."""

    y: torch.Tensor
    inputs: torch.Tensor
    update: torch.Tensor | None = None
    """What the adapters so far made of the input."""
    last: Any = None
    changed: bool = False
    """``y`` is not the layer's own any more."""

    def apply(self, leaf: Any) -> ProjectionState:
        """Run one adapter: on the input, or on the update of the one before it.

        What scales the output and what adds to it have no update in common: the second acts on the first's result.
        """
        last = self.last
        if (last is not None or self.changed) and getattr(leaf, "replaces", False):
            raise UsageError(
                "in a Stack, what runs a layer anew (turned or scaled inputs, tuned parameters) comes once, and before "
                "what changes the layer's output",
                hint="put it first, or merge() the other one",
            )
        alike = last is None or (type(last), last.additive) == (type(leaf), leaf.additive)
        if not alike and not (last.additive and leaf.additive):
            return ProjectionState(self.result(), self.inputs, changed=True).apply(leaf)
        x = self.update
        if x is not None and leaf.additive and x.is_floating_point() and x.shape[-1] != leaf.target.inputs:
            raise UsageError(
                f"a Stack of LoRAs feeds one update into the next: {x.shape[-1]} outputs, {leaf.target.inputs} inputs",
                hint="for the sum of updates: Average(a, b, weights=[1, 1], normalize_weights=False)",
            )
        return replace(self, update=leaf.update(self.update, self.inputs), last=leaf)

    def cut(self, part: Callable[[Any], Any]) -> ProjectionState:
        """Take a part."""
        if self.last is None or not self.last.additive:
            return ProjectionState(part(self.result()), part(self.inputs), changed=self.last is not None)
        return ProjectionState(part(self.y), part(self.inputs), part(self.update), self.last, self.changed)

    def join(self, parts: Sequence[ProjectionState], dim: int, order: torch.Tensor | None) -> ProjectionState:
        """Put parts together."""
        if _additive(parts):
            update = _join([part.update for part in parts if part.update is not None], dim, order, self.y)
            return replace(self, update=update, last=parts[-1].last)
        return ProjectionState(_join([part.result() for part in parts], dim, order, self.y), self.inputs, changed=True)

    def mean(self, parts: Sequence[ProjectionState], weights: Sequence[float]) -> ProjectionState:
        """Add the weighted updates."""
        if _additive(parts):
            updates = [part.update for part in parts if part.update is not None]
            return replace(self, update=_mean(updates, weights), last=parts[-1].last)
        change = _mean([part.result() - self.y for part in parts], weights)
        return ProjectionState(self.y + change, self.inputs, changed=True)

    def result(self) -> torch.Tensor:
        """Return what takes the place of ``y``."""
        if self.last is None:
            return self.y
        out: torch.Tensor = self.last.combine(self.y, self.update)
        return out.to(self.y.dtype)


def _additive(parts: Sequence[ProjectionState]) -> bool:
    return len(parts) > 0 and all(p.last is not None and p.last.additive and not p.changed for p in parts)


@dataclass(frozen=True)
class HiddenState(State):
    """Hidden states (batch, seq, hidden) between modules, and the mask (batch, seq) of real tokens, if there is one."""

    hidden: torch.Tensor
    mask: torch.Tensor | None = None

    def apply(self, leaf: Any) -> HiddenState:
        """Run one adapter."""
        return replace(self, hidden=leaf(self.hidden, self.mask))

    def cut(self, part: Callable[[Any], Any]) -> HiddenState:
        """Take a part."""
        return HiddenState(part(self.hidden), part(self.mask))

    def join(self, parts: Sequence[HiddenState], dim: int, order: torch.Tensor | None) -> HiddenState:
        """Put parts together."""
        return replace(self, hidden=_join([part.hidden for part in parts], dim, order, self.hidden))

    def mean(self, parts: Sequence[HiddenState], weights: Sequence[float]) -> HiddenState:
        """Return the weighted sum."""
        return replace(self, hidden=_mean([part.hidden for part in parts], weights))


@dataclass(frozen=True)
class PrefixState(State):
    """Keys and values (batch, heads, length, size) in front of an attention's own, and which of them count."""

    hidden: torch.Tensor
    """Input of the attention module, (batch, seq, hidden)."""
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    """(batch, length), bool; None: all."""

    def apply(self, leaf: Any) -> PrefixState:
        """Put one adapter's prefix in front."""
        keys, values = leaf(self.hidden)
        if self.keys is None or self.values is None:
            return replace(self, keys=keys, values=values)
        return replace(self, keys=torch.cat([keys, self.keys], 2), values=torch.cat([values, self.values], 2))

    def cut(self, part: Callable[[Any], Any]) -> PrefixState:
        """Take some rows."""
        return PrefixState(part(self.hidden))

    def span(self, start: int, stop: int) -> PrefixState:
        """Refuse."""
        raise UsageError("prefix tuning acts on all positions: Split does not apply to it")

    def join(self, parts: Sequence[PrefixState], dim: int, order: torch.Tensor | None) -> PrefixState:
        """Put rows together; shorter prefixes are filled up with positions that do not count."""
        length = max(part.length for part in parts)
        some = next((part.keys for part in parts if part.keys is not None), None)
        if some is None:
            return self
        found: list[list[torch.Tensor]] = [[], [], []]
        for part in parts:
            missing = length - part.length
            empty = some.new_zeros(part.hidden.shape[0], some.shape[1], missing, some.shape[3])
            for listed, own in zip(found, (part.keys, part.values), strict=False):
                listed.append(empty if own is None else torch.cat([empty, own], 2))
            found[2].append((torch.arange(length, device=empty.device) >= missing).expand(len(empty), -1))
        keys, values, counts = (_join(listed, 0, order, None) for listed in found)
        return replace(self, keys=keys, values=values, counts=counts)

    def mean(self, parts: Sequence[PrefixState], weights: Sequence[float]) -> PrefixState:
        """Refuse."""
        raise UsageError("an Average of prefixes is not defined", hint="average their weights: panel.average(…)")

    @property
    def length(self) -> int:
        """Number of positions in front."""
        return 0 if self.keys is None else self.keys.shape[2]


def _rows(tensor: Any, index: Rows) -> Any:
    if tensor is None:
        return None
    return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index.to(tensor.device))


def _join(
    parts: Sequence[torch.Tensor], dim: int, order: torch.Tensor | None, like: torch.Tensor | None
) -> torch.Tensor:
    joined = torch.cat(list(parts), dim)
    if like is not None and joined.shape[dim] != like.shape[dim]:
        raise UsageError(f"the splits cover {joined.shape[dim]} positions of a sequence of {like.shape[dim]}")
    return joined if order is None else joined.index_select(dim, order.to(joined.device))


def _mean(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total + part * weight
    return total
