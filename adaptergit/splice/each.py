"""Many adapters of one kind at once, each on a row of its own: batched operations where a loop would take turns.

S-LoRA (Sheng et al. 2023, arXiv:2311.03285) and Punica (Chen et al. 2023, arXiv:2310.18547) do this for LoRA, with
kernels of their own. Here weights are stacked, and what the adapter does is mapped over them, whatever that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from adaptergit.splice.interpret import Chain

FEWEST = 8
"""Fewer are as fast one after another (``benchmarks/mixed.py``)."""


class Each:
    """Adapters that are alike, one for each row, in the place of one of them. It has no gradients to give."""

    def __init__(self, leaves: Sequence[nn.Module]) -> None:
        self._leaf, self._call = leaves[0], _Call(leaves[0])
        modules = [dict(leaf.named_modules()) for leaf in leaves]
        # Where the parameters are held: loading may put others in their places.
        self._held = {
            f"leaf.{path}{'.' if path else ''}{key}": (key, [own[path]._parameters for own in modules])
            for path, module in modules[0].items()
            for key, parameter in module._parameters.items()
            if parameter is not None
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leaf, name)  # what they have in common

    def __call__(self, *args: Any) -> Any:
        """Return what the bottleneck adapters make of their rows."""
        return self._mapped("forward", args)

    def update(self, *args: Any) -> Any:
        """Return the updates of a linear layer."""
        return self._mapped("update", args)

    def _mapped(self, method: str, args: tuple[Any, ...]) -> Any:
        weights = {path: torch.stack([own[key] for own in held]) for path, (key, held) in self._held.items()}

        def one(weights: dict[str, torch.Tensor], rows: dict[int, torch.Tensor]) -> torch.Tensor:
            given = [rows[index][None] if index in rows else arg for index, arg in enumerate(args)]
            out: torch.Tensor = functional_call(self._call, weights, (method, *given))
            return out[0]

        tensors = {index: arg for index, arg in enumerate(args) if isinstance(arg, torch.Tensor)}
        return vmap(one, randomness="different")(weights, tensors)


class _Call(nn.Module):
    """Any method of an adapter as a ``forward``, which is what ``functional_call`` calls."""

    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.leaf = leaf

    def forward(self, method: str, *args: Any) -> Any:
        """Call it."""
        return getattr(self.leaf, method)(*args)


def together(groups: Sequence[tuple[list[int], Any]]) -> list[tuple[list[int], Any]]:
    """Put groups of rows together whose adapters, or Stacks of adapters, can run at once; in the order of the rows."""
    kinds: list[list[tuple[list[int], Any]]] = []
    for group in groups:
        kind = next((kind for kind in kinds if _alike(kind[0][1], group[1])), None)
        if kind is None:
            kinds.append(kind := [])
        kind.append(group)
    found: list[tuple[list[int], Any]] = []
    for kind in kinds:
        rows = {row: node for listed, node in kind for row in listed}
        found += kind if len(kind) < FEWEST else [(sorted(rows), _merged([rows[row] for row in sorted(rows)]))]
    return sorted(found, key=lambda group: group[0][0])


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Chain) and isinstance(other, Chain) and len(one.nodes) == len(other.nodes):
        return all(a is b or _alike(a, b) for a, b in zip(one.nodes, other.nodes, strict=True))
    if type(one) is not type(other) or not getattr(one, "rowwise", False) or one.training != other.training:
        return False
    a, b = next(one.parameters()), next(other.parameters())
    return (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape) and bool(one.config == other.config)


def _merged(nodes: Sequence[Any]) -> Any:
    if all(node is nodes[0] for node in nodes):
        return nodes[0]
    if isinstance(nodes[0], Chain):
        return Chain(tuple(_merged(column) for column in zip(*(node.nodes for node in nodes), strict=True)))
    return Each(nodes)
