"""Compositions: how several adapters act together. Pure data, and the grammar of composition strings.

::

    composition := name | block "(" item ("," item)* ")"
    block := "Stack" | "Fuse" | "Split" | "BatchSplit" | "Parallel" | "Average" | "MultiTask" | "Route"
    item := composition | "None" | field "=" Python literal
    name := word of letters, digits, ".", "_" and "-", or any text in quotes

Pfeiffer et al. 2020 (arXiv:2005.00052) for stacking, 2021 (arXiv:2005.00247) for fusion, Rücklé et al. 2021
(arXiv:2010.11918) for parallel inference.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from adaptergit.errors import UsageError, did_you_mean

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VALUE = re.compile(r"""\[[^\]]*\]|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,()\s]+""")


@dataclass(frozen=True, init=False)
class Block:
    """A way of composing; children are names and other blocks."""

    children: tuple[Composition | None, ...]
    named: ClassVar[tuple[str, ...]] = ()
    """Fields that are written with their name."""

    def __init__(self, *children: Composition | None) -> None:
        object.__setattr__(self, "children", tuple(children))
        kind = type(self).__name__
        if not children:
            raise UsageError(f"an empty {kind} means nothing", hint="set active to None to switch adapters off")
        for child in children:
            if not isinstance(child, str | Block) and not (child is None and isinstance(self, Route)):
                raise UsageError(f"a {kind} holds adapter names and blocks, not {child!r}")

    def names(self) -> Iterator[str]:
        """Yield the adapters in order; one may come more than once."""
        for child in self.children:
            if isinstance(child, Block):
                yield from child.names()
            elif child is not None:
                yield child

    def __str__(self) -> str:
        items = [composition_text(child) for child in self.children]
        for field in self.named:
            value = getattr(self, field)
            if value != next(f.default for f in fields(self) if f.name == field):
                items.append(f"{field}={list(value) if isinstance(value, tuple) else value!r}")
        return f"{type(self).__name__}({', '.join(items)})"

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)


Composition = str | Block


@dataclass(frozen=True, init=False)
class Stack(Block):
    """One after another, first to last.

    Examples:
        >>> str(Stack("de", "qa"))
        'Stack(de, qa)'
    """

    def __str__(self) -> str:
        return super().__str__() if len(self.children) > 1 else composition_text(self.children[0])


@dataclass(frozen=True, init=False)
class Fuse(Block):
    """AdapterFusion: attention over the outputs of bottleneck adapters, with weights of its own."""

    name: str | None = None
    """Of the fusion's weights; default: the children's names joined with commas."""
    named: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(self, *children: Composition, name: str | None = None) -> None:
        super().__init__(*children)
        self._set(name=name)

    @property
    def key(self) -> str:
        """Name of the fusion's weights."""
        return self.name or ",".join(c if isinstance(c, str) else ",".join(c.names()) for c in self.children if c)


@dataclass(frozen=True, init=False)
class Split(Block):
    """Positions of the sequence are shared out: the first ``splits[0]`` go to the first child, and so on."""

    splits: tuple[int, ...] = ()
    """Positions for each child."""
    named: ClassVar[tuple[str, ...]] = ("splits",)

    def __init__(self, *children: Composition, splits: Sequence[int] | int = ()) -> None:
        super().__init__(*children)
        sizes = (splits,) * len(children) if isinstance(splits, int) else tuple(splits)
        _check_sizes("Split", "splits", sizes, len(children))
        self._set(splits=sizes)


@dataclass(frozen=True, init=False)
class BatchSplit(Block):
    """Rows of the batch are shared out: the first ``batch_sizes[0]`` go to the first child, and so on.

    A batch that is a multiple of the sizes is shared out alike: beam search repeats every row.
    """

    batch_sizes: tuple[int, ...] = ()
    """Rows for each child."""
    named: ClassVar[tuple[str, ...]] = ("batch_sizes",)

    def __init__(self, *children: Composition, batch_sizes: Sequence[int] | int = ()) -> None:
        super().__init__(*children)
        sizes = (batch_sizes,) * len(children) if isinstance(batch_sizes, int) else tuple(batch_sizes)
        _check_sizes("BatchSplit", "batch_sizes", sizes, len(children))
        self._set(batch_sizes=sizes)


@dataclass(frozen=True, init=False)
class Parallel(Block):
    """Every child sees the whole batch: the output has its rows once per child, one child after the other."""


@dataclass(frozen=True, init=False)
class Average(Block):
    """The weighted sum of the children's outputs, ``Σ w_i o_i``."""

    weights: tuple[float, ...] | None = None
    """Default: equal."""
    normalize_weights: bool = True
    """Divide the weights by their sum."""
    named: ClassVar[tuple[str, ...]] = ("weights", "normalize_weights")

    def __init__(
        self, *children: Composition, weights: Sequence[float] | None = None, normalize_weights: bool = True
    ) -> None:
        super().__init__(*children)
        if weights is not None and not all(isinstance(w, int | float) and math.isfinite(w) for w in weights):
            raise UsageError(f"the weights of an Average must be numbers, not {weights!r}")
        if not isinstance(normalize_weights, bool):
            raise UsageError(f"normalize_weights must be True or False, not {normalize_weights!r}")
        if weights is not None and len(weights) != len(children):
            raise UsageError(f"Average has {len(children)} children and {len(weights)} weights")
        if weights is not None and normalize_weights and not sum(weights):
            raise UsageError("the weights of an Average sum to zero", hint="set normalize_weights=False")
        self._set(weights=None if weights is None else tuple(weights), normalize_weights=normalize_weights)

    @property
    def factors(self) -> tuple[float, ...]:
        """The weights that are applied."""
        weights = self.weights or (1.0,) * len(self.children)
        return tuple(w / sum(weights) for w in weights) if self.normalize_weights else weights


@dataclass(frozen=True, init=False)
class MultiTask(Block):
    """The row's task id, given on activation, is the number of its child."""


@dataclass(frozen=True, init=False)
class Route(Block):
    """One child for each row of the batch; None leaves a row to the base model."""


BLOCKS: Mapping[str, Any] = {
    cls.__name__: cls for cls in (Stack, Fuse, Split, BatchSplit, Parallel, Average, MultiTask, Route)
}


def parse_composition(value: Composition) -> Composition:
    """Parse a composition string, or return a composition as it is.

    Raises:
        UsageError: Pointing into the string.

    >>> parse_composition("Stack(de, Fuse(a, b))")
    Stack(children=('de', Fuse(children=('a', 'b'), name=None)))
    """
    if isinstance(value, Block):
        return value
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a composition", hint='write "qa" or "Stack(de, qa)"')
    try:
        return _Parser(value).parse()
    except RecursionError as error:
        raise UsageError(f"{value[:60]!r} … is nested too deeply") from error


def composition_text(tree: Composition | None) -> str:
    """Write what :func:`parse_composition` reads."""
    if tree is None or isinstance(tree, Block):
        return str(tree)
    return tree if _WORD.fullmatch(tree) and tree != "None" else repr(tree)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def parse(self) -> Composition:
        found = self.composition()
        self.space()
        if self.at < len(self.text):
            raise self.error("expected the end of the composition")
        if found is None:
            raise self.error("None is no composition")
        return found

    def composition(self) -> Composition | None:
        self.space()
        if self.peek() in "'\"" and self.peek():
            return str(self.literal())
        match = _WORD.match(self.text, self.at)
        if match is None:
            raise self.error("expected an adapter name or a block")
        start, self.at = self.at, match.end()
        self.space()
        if self.peek() != "(":
            return None if match[0] == "None" else match[0]
        if match[0] not in BLOCKS:
            self.at = start
            raise self.error(f"there is no block {match[0]!r}", did_you_mean(match[0], BLOCKS) or ", ".join(BLOCKS))
        return self.block(match[0], start)

    def block(self, kind: str, start: int) -> Block:
        children: list[Composition | None] = []
        options: dict[str, Any] = {}
        while self.peek() in "(,":
            self.at += 1
            self.space()
            field = re.compile(r"([a-z_]+)\s*=").match(self.text, self.at)
            if field is None:
                children.append(self.composition())
            elif field[1] not in BLOCKS[kind].named:
                raise self.error(f"{kind} has no field {field[1]!r}", did_you_mean(field[1], BLOCKS[kind].named))
            else:
                self.at = field.end()
                if field[1] in options:
                    raise self.error(f"the field {field[1]!r} appears twice")
                options[field[1]] = self.literal()
            self.space()
            if self.at >= len(self.text):
                raise self.error("a bracket is not closed")
        if self.peek() != ")":
            raise self.error("expected ',' or ')'")
        self.at += 1
        try:
            made: Block = BLOCKS[kind](*children, **options)
            return made
        except UsageError as error:
            self.at = start
            raise self.error(error.what, error.hint or "one value for each: Split(a, b, splits=[3, 5])") from error
        except TypeError as error:
            self.at = start
            raise self.error(f"a field of {kind} has a value of the wrong type") from error

    def literal(self) -> Any:
        self.space()
        match = _VALUE.match(self.text, self.at)
        try:
            value = ast.literal_eval(match[0]) if match else None
        except (ValueError, SyntaxError):
            match = None
        if match is None:
            raise self.error("expected a value")
        self.at = match.end()
        return value

    def space(self) -> None:
        while self.peek().isspace():
            self.at += 1

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def error(self, what: str, hint: str | None = 'write "qa" or "Stack(de, Fuse(a, \'b c\'))"') -> UsageError:
        return UsageError(f"{what}\n  {self.text}\n  {' ' * self.at}^", hint=hint)


_SHARING = (BatchSplit, Parallel, MultiTask, Route)


def holds(tree: Composition | None, kind: type | tuple[type, ...]) -> bool:
    """Tell whether there is a block of a kind in a composition."""
    return isinstance(tree, Block) and (isinstance(tree, kind) or any(holds(child, kind) for child in tree.children))


def partitions_rows(tree: Composition | None) -> bool:
    """Tell whether rows of one batch may be treated differently."""
    return holds(tree, _SHARING)


def on_every_row(tree: Composition | None, name: str) -> bool:
    """Tell whether an adapter acts on every row, however the rows are shared out."""
    if not isinstance(tree, Block):
        return tree == name
    return (all if isinstance(tree, _SHARING) else any)(on_every_row(child, name) for child in tree.children)


def ends_of(tree: Composition | None) -> tuple[str | None, ...]:
    """Return the last adapter that acts on each share of the rows; None where none acts."""
    if not isinstance(tree, Block):
        return (tree,)
    if isinstance(tree, _SHARING):
        return tuple(dict.fromkeys(end for child in tree.children for end in ends_of(child)))
    found: list[str | None] = []
    for child in reversed(tree.children):
        ends = ends_of(child)
        found += [end for end in ends if end is not None]
        if None not in ends:
            return tuple(found)
    return (*found, None)


def without(tree: Composition | None, name: str) -> Composition | None:
    """Return what is left of a composition when one adapter acts otherwise.

    Raises:
        UsageError: It is part of something else than a Stack.
    """
    if not isinstance(tree, Block):
        return None if tree == name else tree
    if name not in tree.names():
        return tree
    if not isinstance(tree, Stack):
        raise UsageError(f"{name!r} is active in {tree}", hint="switch it off first: panel.active = None")
    left = [rest for child in tree.children if (rest := without(child, name)) is not None]
    return Stack(*left) if len(left) > 1 else left[0] if left else None


def copies_of(tree: Composition | None) -> int:
    """Return how often the input is repeated.

    Raises:
        UsageError: A Parallel inside a block that it does not make sense in.
    """
    if not isinstance(tree, Block):
        return 1
    counts = [copies_of(child) for child in tree.children]
    if isinstance(tree, Parallel):
        if any(count > 1 for count in counts):
            raise UsageError("a Parallel inside a Parallel: list all its children in the outer one")
        return len(tree.children)
    if max(counts) > 1 and not isinstance(tree, Stack):
        raise UsageError(f"a Parallel cannot stand inside {type(tree).__name__}", hint="put the Parallel around it")
    if sum(count > 1 for count in counts) > 1:
        raise UsageError("two Parallels in one Stack", hint="write Parallel(Stack(a, c), Stack(b, d))")
    return max(counts)


def for_row(tree: Composition | None, row: int, rows: int, tasks: Sequence[int] | None) -> Composition | None:
    """Return what one row of the batch sees: the same tree without blocks that share out rows.

    Raises:
        UsageError: Sizes or task ids do not fit the batch.
    """
    if not isinstance(tree, Block):
        return tree
    children = tree.children
    if isinstance(tree, Parallel):
        if rows % len(children):
            raise UsageError(f"{rows} rows cannot be {len(children)} copies of one batch")
        each = rows // len(children)
        return for_row(children[row // each], row % each, each, None if tasks is None else tasks[:each])
    if isinstance(tree, BatchSplit):
        times, rest = divmod(rows, sum(tree.batch_sizes))
        if rest or not times:
            raise UsageError(
                f"batch_sizes {list(tree.batch_sizes)} sum to {sum(tree.batch_sizes)}, the batch has {rows} rows"
            )
        start = 0
        for child, own in zip(children, tree.batch_sizes, strict=True):
            size = own * times  # beams are next to each other
            if row < start + size:
                part = None if tasks is None else tasks[start : start + size]
                return for_row(child, row - start, size, part)
            start += size
    if isinstance(tree, MultiTask):
        if tasks is None:
            raise UsageError(
                "MultiTask needs task_ids", hint="model(…, task_ids=[0, 1, …]), or panel.activate(…, task_ids=…)"
            )
        if len(tasks) != rows or type(tasks[row]) is not int or not 0 <= tasks[row] < len(children):
            raise UsageError(f"task_ids must be {rows} numbers from 0 to {len(children) - 1}, one for each row")
        return for_row(children[tasks[row]], row, rows, tasks)
    if isinstance(tree, Route):
        if rows % len(children):
            raise UsageError(f"a route of {len(children)} rows for a batch of {rows}")
        return for_row(children[row // (rows // len(children))], row, rows, tasks)  # beams are next to each other
    if not partitions_rows(tree):
        return tree
    resolved = tuple(for_row(child, row, rows, tasks) for child in children)
    copy = object.__new__(type(tree))
    for field in fields(tree):
        object.__setattr__(copy, field.name, resolved if field.name == "children" else getattr(tree, field.name))
    return copy


def _check_sizes(kind: str, field: str, sizes: Sequence[Any], children: int) -> None:
    if len(sizes) != children or not all(type(size) is int and size > 0 for size in sizes):
        raise UsageError(f"{kind} needs {field}: {children} positive numbers, one for each child")
