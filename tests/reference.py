"""A slow reference for compositions: every leaf is run alone, on one row, at one place.

It shares nothing with the interpreter: no states, no groups, no plans. It knows the three kinds of place that change a
tensor in passing: branches, linear layers and what enters or leaves a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adaptergit.splice import Average, BatchSplit, Fuse, MultiTask, Parallel, Route, Split, Stack
from adaptergit.splice.anatomy import Projection, Site
from adaptergit.splice.places import BlockOutput, Embedding, Linear


class Reference:
    """Runs a composition in a model whose panel is inactive."""

    def __init__(self, panel: Any, tree: Any, tasks: Any = None, mask: torch.Tensor | None = None) -> None:
        self.panel, self.tree, self.tasks, self.mask = panel, tree, tasks, mask
        self.base = panel.host.base
        self.x: dict[Any, torch.Tensor] = {}

    def __enter__(self) -> Reference:
        places = {p for name in self.panel.names for p in self.panel.spliced(name).parts.places}
        self.handles = [handle for place in places for handle in self.hook(place)]
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def leaf(self, name: str, place: Any) -> Any:
        return self.panel.spliced(name).parts.places.get(place)

    def fusion(self, key: str, place: Any) -> Any:
        return self.panel.fused(key).modules[place]

    def hook(self, place: Any) -> list[Any]:
        if isinstance(place, Site):
            norm = self.base.get_submodule(place.norm) if place.norm else None

            def read(_m: Any, args: Any, kwargs: Any) -> None:
                self.x[place] = args[0] if args else kwargs["hidden_states"]

            def change(_m: Any, _a: Any, output: Any) -> Any:
                h = output[0] if isinstance(output, tuple) else output
                rows = [
                    self.branch(self.row(self.tree, r, len(h)), place, h[r : r + 1], self.x[place][r : r + 1], norm)
                    for r in range(len(h))
                ]
                new = torch.cat(rows)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            reader = self.base.get_submodule(place.residual)
            output = self.base.get_submodule(place.output)
            return [reader.register_forward_pre_hook(read, with_kwargs=True), output.register_forward_hook(change)]
        if isinstance(place, Projection | Linear):

            def project(_m: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
                return torch.cat(
                    [
                        self.linear(self.row(self.tree, r, len(y)), place, y[r : r + 1], args[0][r : r + 1])
                        for r in range(len(y))
                    ]
                )

            return [self.base.get_submodule(place.path).register_forward_hook(project)]
        if isinstance(place, Embedding):

            def enter(_m: Any, args: Any, kwargs: Any) -> Any:
                h = args[0] if args else kwargs["hidden_states"]
                new = torch.cat(
                    [self.hidden(self.row(self.tree, r, len(h)), place, h[r : r + 1], r) for r in range(len(h))]
                )
                return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

            return [self.base.get_submodule(place.path).register_forward_pre_hook(enter, with_kwargs=True)]
        if isinstance(place, BlockOutput):

            def leave(_m: Any, _a: Any, output: Any) -> Any:
                h = output[0] if isinstance(output, tuple) else output
                new = torch.cat(
                    [self.hidden(self.row(self.tree, r, len(h)), place, h[r : r + 1], r) for r in range(len(h))]
                )
                return (new, *output[1:]) if isinstance(output, tuple) else new

            return [self.base.get_submodule(place.path).register_forward_hook(leave)]
        raise NotImplementedError(place)

    def row(self, tree: Any, row: int, rows: int) -> Any:
        """What one row sees."""
        if tree is None or isinstance(tree, str):
            return tree
        if isinstance(tree, Parallel):
            each = rows // len(tree.children)
            return self.row(tree.children[row // each], row % each, each)
        if isinstance(tree, BatchSplit):
            for child, size in zip(tree.children, tree.batch_sizes, strict=True):
                if row < size:
                    return self.row(child, row, size)
                row -= size
        if isinstance(tree, MultiTask):
            return self.row(tree.children[self.tasks[row]], row, rows)
        if isinstance(tree, Route):
            return tree.children[row]
        children = [self.row(child, row, rows) for child in tree.children]
        if isinstance(tree, Stack):
            return Stack(*children)
        if isinstance(tree, Split):
            return Split(*children, splits=tree.splits)
        if isinstance(tree, Average):
            return Average(*children, weights=tree.weights, normalize_weights=tree.normalize_weights)
        return Fuse(*children, name=tree.key)

    def branch(self, tree: Any, place: Any, h: torch.Tensor, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        if tree is None:
            return h
        if isinstance(tree, str):
            leaf = self.leaf(tree, place)
            return h if leaf is None else leaf(h, x, norm)
        if isinstance(tree, Stack):
            for child in tree.children:
                h = self.branch(child, place, h, x, norm)
            return h
        if isinstance(tree, Split):
            parts, at = [], 0
            for child, size in zip(tree.children, tree.splits, strict=True):
                cut = slice(at, at + size)
                parts.append(self.branch(child, place, h[:, cut], x[:, cut], norm))
                at += size
            return torch.cat(parts, 1)
        if isinstance(tree, Average):
            weights = torch.tensor(tree.weights or [1.0] * len(tree.children), dtype=torch.float64)
            weights = weights / weights.sum() if tree.normalize_weights else weights
            outputs = torch.stack([self.branch(child, place, h, x, norm) for child in tree.children])
            return (outputs * weights.view(-1, 1, 1, 1).to(outputs.dtype)).sum(0)
        assert isinstance(tree, Fuse)
        if all(self.leaf(name, place) is None for name in tree.names()):
            return h
        found = []
        for child in tree.children:
            names = [child] if isinstance(child, str) else list(child.names())
            reached = h
            for name in names[:-1]:
                reached = self.branch(name, place, reached, x, norm)
            found.append((reached, self.leaf(names[-1], place).before_residual(reached, x, norm)))
        fusion = self.fusion(tree.key, place)
        query, _, residual = found[-1][1]
        query = found[-1][0] if fusion.config.query_before_ln else query
        return fusion(query, torch.stack([parts[1] for _, parts in found], 2), residual)

    def linear(self, tree: Any, place: Any, y: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        if tree is None:
            return y
        if isinstance(tree, str):
            leaf = self.leaf(tree, place)
            return y if leaf is None else leaf.combine(y, leaf.update(None, inputs))
        if isinstance(tree, Stack):
            acting = [
                c for c in tree.children if any(self.leaf(n, place) for n in ([c] if isinstance(c, str) else c.names()))
            ]
            if len(acting) == 1:
                return self.linear(acting[0], place, y, inputs)
            update, last = None, None
            for name in acting:  # a chain of updates
                leaf = self.leaf(name, place)
                alike = last is None or (type(last), last.additive) == (type(leaf), leaf.additive)
                if not alike and not (last.additive and leaf.additive):
                    y, update = last.combine(y, update), None  # what scales and what adds: one behind the other
                last, update = leaf, leaf.update(update, inputs)
            return y if last is None else last.combine(y, update)
        if isinstance(tree, Split):
            parts, at = [], 0
            for child, size in zip(tree.children, tree.splits, strict=True):
                parts.append(self.linear(child, place, y[:, at : at + size], inputs[:, at : at + size]))
                at += size
            return torch.cat(parts, 1)
        if isinstance(tree, Fuse):
            assert all(self.leaf(name, place) is None for name in tree.names())
            return y
        assert isinstance(tree, Average)
        weights = tree.weights or [1.0] * len(tree.children)
        total = sum(weights) if tree.normalize_weights else 1.0
        out = y
        for child, weight in zip(tree.children, weights, strict=True):
            out = out + (self.linear(child, place, y, inputs) - y) * (weight / total)
        return out

    def hidden(self, tree: Any, place: Any, h: torch.Tensor, row: int) -> torch.Tensor:
        names = [] if tree is None else [tree] if isinstance(tree, str) else list(tree.names())
        for name in names:
            leaf = self.leaf(name, place)
            h = h if leaf is None else leaf(h, None if self.mask is None else self.mask[row : row + 1])
        return h
