"""A plan: an active composition, compiled for every place. Compiled once per activation; the forward only looks up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.splice.composition import (
    BatchSplit,
    Composition,
    MultiTask,
    Parallel,
    copies_of,
    ends_of,
    for_row,
    holds,
    partitions_rows,
)
from adaptergit.splice.each import together
from adaptergit.splice.embeddings import Embeddings
from adaptergit.splice.interpret import Chain, Node, Rows, compile_at
from adaptergit.splice.places import BlockOutput, Place, Prompt


@dataclass(frozen=True)
class Answer:
    """The heads that answer for the model."""

    heads: Mapping[str, nn.Module]
    own: bool = False
    """Every row is answered by the head of the last adapter that acts on it, which has that adapter's name."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens at every place, and which heads answer.

    ``leaves`` and ``fusions`` hold the modules by place and name. ``tasks`` are the rows' task ids for MultiTask.
    """

    tree: Composition | None = None
    leaves: Mapping[Place, Mapping[str, nn.Module]] = field(default_factory=dict)
    fusions: Mapping[Place, Mapping[str, nn.Module]] = field(default_factory=dict)
    tasks: Sequence[int] | None = None
    answer: Answer | None = None
    """None: the model answers as its own class does."""
    embeddings: Embeddings | None = None
    """Added embeddings that stand in for the model's own."""
    repeated: bool = False
    """The rows are repeated for Parallel already."""
    nodes: dict[Place, Node] = field(default_factory=dict, init=False)
    """Where all rows are treated alike."""
    _groups: dict[tuple[Place, int, bool], list[tuple[Rows, Node | None]]] = field(default_factory=dict, init=False)
    _answers: dict[int, list[tuple[Any, Rows | None]]] = field(default_factory=dict, init=False)
    prefixes: list[Place] = field(init=False)
    """Attentions with a prefix that takes positions."""
    by_row: bool = field(init=False)
    gated: bool = field(init=False)
    """Something is gated by the mean over a row's positions."""
    copies: int = field(init=False)
    """How often the model's input is to be repeated."""

    def __post_init__(self) -> None:
        taking = [place for place, leaves in self.leaves.items() if any(map(_positions, leaves.values()))]
        object.__setattr__(self, "prefixes", taking)
        object.__setattr__(self, "by_row", partitions_rows(self.tree))
        leaves = [leaf for own in self.leaves.values() for leaf in own.values()]
        object.__setattr__(self, "gated", any(getattr(leaf, "gate", None) is not None for leaf in leaves))
        object.__setattr__(self, "copies", 1 if self.repeated else copies_of(self.tree))
        if not self.by_row:
            for place in self.leaves:
                node = self._compile(place, self.tree)
                if node is not None:
                    self.nodes[place] = node

    @property
    def places(self) -> set[Place]:
        """Places where something may act."""
        return set(self.leaves) if self.by_row else set(self.nodes)

    @property
    def chooses_tasks(self) -> bool:
        """Whether a call may name the tasks of its rows."""
        return holds(self.tree, MultiTask)

    @property
    def needs_call(self) -> bool:
        """Whether the plan must know the arguments of the base model's call."""
        return (
            self.by_row
            or self.gated
            or bool(self.prefixes)
            or any(isinstance(p, BlockOutput | Prompt) for p in self.places)
        )

    def positions(self, rows: int) -> list[int]:
        """Return how many positions prefixes take in front of every row of a batch."""
        if not self.by_row:
            return [max(_positions(self.node(place)) for place in self.prefixes)] * rows
        taken = [0] * rows
        for place in self.prefixes:
            for index, node in self.groups(place, rows):
                for row in range(rows)[index] if isinstance(index, slice) else index.tolist():
                    taken[row] = max(taken[row], _positions(node))
        return taken

    def prompt_start(self, place: Prompt) -> int:
        """Return how many tokens stand in front of the prompt.

        Raises:
            UsageError: Adapters differ.
        """
        leaves: Mapping[str, Any] = self.leaves[place]
        starts: set[int] = {leaf.start for leaf in leaves.values()}
        if len(starts) > 1:
            raise UsageError("prompts in front of the first token and behind it cannot act in one call")
        return starts.pop()

    def for_tasks(self, ids: Sequence[int] | torch.Tensor) -> Plan:
        """Return the same plan for a batch whose rows have these tasks."""
        return replace(self, tasks=task_list(ids))

    def _seen_by(self, row: int, rows: int) -> Composition | None:
        """Return what one row sees. Where ``generate`` repeats rows, those of one task are next to each other."""
        tasks, each = self.tasks, rows // copies_of(self.tree)
        if tasks and self.repeated and each % len(tasks) == 0:
            tasks = [task for task in tasks for _ in range(each // len(tasks))]
        return for_row(self.tree, row, rows, tasks)

    def node(self, place: Place) -> Node | None:
        """Return what acts at a place on all rows."""
        return self.nodes.get(place)

    def groups(self, place: Place, rows: int, *, at_once: bool = False) -> list[tuple[Rows, Node | None]]:
        """Return what acts at a place on which rows, for a batch of a size.

        Args:
            place: Where.
            rows: Of the batch.
            at_once: Many adapters that are alike become one; without gradients.

        Raises:
            UsageError: The composition does not fit the size.
        """
        key = place, rows, at_once
        if key not in self._groups:
            found = self._group(place, rows)
            self._groups[key] = [(_rows(listed), node) for listed, node in (together(found) if at_once else found)]
        return self._groups[key]

    def _group(self, place: Place, rows: int) -> list[tuple[list[int], Node | None]]:
        trees = [self._seen_by(row, rows) for row in range(rows)]
        nodes = {tree: self._compile(place, tree) for tree in dict.fromkeys(trees)}
        # Rows whose trees come to the same here go together.
        members: dict[int, list[int]] = {}
        by_id: dict[int, Node | None] = {}
        for row, tree in enumerate(trees):
            node = nodes[tree]
            key = 0 if node is None else id(node)  # torch.compile knows no id of None before torch 2.13
            members.setdefault(key, []).append(row)
            by_id[key] = node
        return [(listed, by_id[key]) for key, listed in members.items()]

    def answers(self, rows: int) -> list[tuple[Any, Rows | None]]:
        """Return the heads that answer for a batch of a size, with their rows; None: all rows.

        Heads that are as many as the children of a Parallel or a BatchSplit answer for their child's rows.
        """
        found = self._answers.get(rows)
        if found is None:
            found = self._answers[rows] = self._answer(rows)
        return found

    def _answer(self, rows: int) -> list[tuple[Any, Rows | None]]:
        assert self.answer is not None
        heads, tree = self.answer.heads, self.tree
        if len(heads) > 1 and self.answer.own:
            ends = [ends_of(self._seen_by(row, rows))[0] for row in range(rows)]
        elif len(heads) > 1 and isinstance(tree, Parallel | BatchSplit) and len(tree.children) == len(heads):
            shares = tree.batch_sizes if isinstance(tree, BatchSplit) else (1,) * len(heads)
            ends = [name for name, share in zip(heads, shares, strict=True) for _ in range(share * rows // sum(shares))]
        else:
            return [(head, None) for head in heads.values()]
        members: dict[str | None, list[int]] = {}
        for row, name in enumerate(ends):
            members.setdefault(name, []).append(row)
        return [(heads[str(name)], _rows(listed)) for name, listed in members.items()]

    def _compile(self, place: Place, tree: Composition | None) -> Node | None:
        leaves, fusions = self.leaves.get(place, {}), self.fusions.get(place, {})
        return compile_at(tree, leaves.get, fusions.get)


def _positions(node: Node | None) -> int:
    if isinstance(node, Chain):
        return sum(map(_positions, node.nodes))
    leaf: Any = node
    return int(leaf.length) if getattr(leaf, "length", 0) and leaf.config.positions == "before" else 0


def task_list(ids: Any) -> list[Any]:
    """Return task ids as a list.

    Raises:
        UsageError: They are no list.
    """
    found = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    if not isinstance(found, list | tuple):
        raise UsageError(f"task_ids must be a list of numbers, one for each row, not {ids!r}")
    return list(found)


def _rows(listed: list[int]) -> Rows:
    first, last = listed[0], listed[-1]
    if last - first + 1 == len(listed):
        return slice(first, last + 1)
    with torch.inference_mode(False):  # kept, and used again in training
        return torch.tensor(listed)
