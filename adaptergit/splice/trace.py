"""Introspection: the residual branches of any transformer, found by watching one tiny forward.

Every operation of the forward becomes a node of a graph; module calls say which module made or read a tensor. A
*residual sum* is an addition with one operand, the stream ``x``, that all its other operands were computed from; each
of those others is a branch. What made the branch, who reads ``x``, and whether a norm takes over the sum is read off
the graph, so nothing depends on how a model names its parts. Names only tell feed-forward from mixing layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from adaptergit.splice.families import Branch

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
# What may lie between a branch's module and the sum: it changes neither positions nor channels.
_TRANSPARENT = {
    "dropout", "mul", "mul_", "__mul__", "__rmul__", "div", "__truediv__", "contiguous", "to", "type", "type_as",
    "float", "half", "bfloat16", "clone", "view", "reshape", "squeeze", "unsqueeze", "flatten", "__getitem__",
    "permute", "transpose", "where",
}  # fmt: skip
_ON_IMAGES = {"conv2d", "group_norm", "batch_norm", "avg_pool2d"}
_MIX_POSITIONS = {"permute", "transpose"}
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|inter_attention", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"mlp|ffn?\b|feed_?forward|fc_?\d|fc_out|lin\d|intermediate|experts?|moe|dense|wo\b|wi\b|channel_mix|block_sparse|_ff|\boutput\b",
    re.IGNORECASE,
)
_EXPERTS = re.compile(
    r"Experts|Router|TopK|SparseM|MoeBlock|MoE(?![A-Z]?[a-z]*MLP)\b|\bexperts?\b|block_sparse_moe|\brouter"
)
_MIXER = re.compile(
    r"attn|attention|mamba|ssm|mixer|conv|delta|fourier|pool|recurrent|rglru|lstm|modulat", re.IGNORECASE
)


@dataclass(eq=False)
class _Node:
    """One tensor value: a result of an operation, or something that came from outside."""

    index: int
    operation: str
    parents: tuple[_Node, ...]
    shape: tuple[int, ...]
    module: str
    """Innermost module that ran the operation."""
    makers: list[str] = field(default_factory=list)
    """Modules that returned this very tensor (or as first of a tuple), innermost first."""
    readers: list[str] = field(default_factory=list)
    """Modules called with this very tensor as first tensor argument, in order."""
    consumers: list[_Node] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """A residual branch, in the order of execution; paths start at the traced module."""

    branch: Branch
    output: str
    residual: str | None
    """None where the branch's module sees other positions than the stream (windows)."""
    norm: str | None
    hidden_size: int
    channels_first: bool = False
    """Tensors are (batch, channels, height, width): the hidden size is the second dimension."""


class _Recorder(TorchFunctionMode):
    """Builds the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[_Node] = []
        self.stack: list[str] = []
        self._by_id: dict[int, _Node] = {}
        self._alive: list[Any] = []
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and remember it."""
        parents = [self.node(t) for t in _tensors((args, kwargs or {})) if not isinstance(t, nn.Parameter)]
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not name.startswith("__get__"):
            for tensor in _tensors(result):
                if id(tensor) in self._by_id and self._by_id[id(tensor)] in parents and not name.endswith("_"):
                    continue  # returned as it was: dropout in evaluation, contiguous, to
                self._remember(tensor, name, tuple(dict.fromkeys(parents)))
        return result

    def tensor(self, node: _Node) -> torch.Tensor:
        tensor: torch.Tensor = self._alive[node.index]
        return tensor

    def node(self, tensor: torch.Tensor) -> _Node:
        return self._by_id.get(id(tensor)) or self._remember(tensor, "", ())

    def _remember(self, tensor: torch.Tensor, operation: str, parents: tuple[_Node, ...]) -> _Node:
        node = _Node(len(self.nodes), operation, parents, tuple(tensor.shape), self.stack[-1] if self.stack else "")
        for parent in parents:
            parent.consumers.append(node)
        self.nodes.append(node)
        self._alive.append(tensor)  # ids stay unique while the tensors live
        self._by_id[id(tensor)] = node
        return node

    def enter(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.stack.append(path)
        self.calls[path] += 1
        for tensor in first_tensors(args, kwargs):
            self.node(tensor).readers.append(path)

    def leave(self, path: str, output: Any) -> None:
        self.stack.pop()
        first = next(_tensors(output), None)
        if first is not None:
            self.node(first).makers.append(path)


def first_tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return what a module's hooks take for the stream: the first tensor argument."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return [value]
    return []


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> list[Found]:
    """Find the residual branches of a model.

    Args:
        model: Any module; runs twice (the second time to check what was found), in evaluation mode, without gradients.
        inputs: Keyword arguments of one small forward.

    Raises:
        Exception: Whatever the forward raises.
    """
    branches = [one.found for one in _record(model, inputs)]
    # A stream from outside the block is no residual stream.
    likely = [
        one
        for one, block in zip(branches, group_blocks(branches), strict=True)
        if one.residual is None or within(one.residual, block) is not None
    ]
    rehearsed = zip(likely, _rehearse(model, inputs, likely), strict=True)
    return [one if seen.summed else replace(one, norm=None) for one, seen in rehearsed if seen.fault(one) is None]


def faults(model: nn.Module, inputs: Mapping[str, Any], given: Sequence[Found]) -> list[str | None]:
    """Say what is wrong with branches that somebody names, or None: how they run, and what the model does with them.

    Raises:
        Exception: Whatever the forward raises.
    """
    recorded = _record(model, inputs)
    rehearsed = list(zip(given, _rehearse(model, inputs, given), strict=True))
    return [
        seen.fault(one) or _misplaced(one, seen, recorded) or _taken(one, seen, rehearsed[:index])
        for index, (one, seen) in enumerate(rehearsed)
    ]


def _taken(one: Found, seen: _Rehearsal, others: Sequence[tuple[Found, _Rehearsal]]) -> str | None:
    """Say that an output runs too seldom to be a branch of this site and of those before it."""
    fired = seen.fired + sum(record.fired for other, record in others if other.output == one.output)
    return f"{one.output} is the output of another site, and runs {seen.ran} times" if fired > seen.ran else None


def _misplaced(one: Found, seen: _Rehearsal, recorded: Sequence[_Branch]) -> str | None:
    sums = [branch for branch in recorded if one.output in branch.makers]
    if not sums:
        return f"nothing adds the output of {one.output} to a stream"
    if not any(one.residual in (None, *branch.readers) or seen.reads(branch) for branch in sums):
        return f"{one.residual} is not called with the stream that the output of {one.output} is added to"
    norms = {branch.found.norm for branch in sums}
    if one.norm not in norms:
        return f"what takes over the sum is {' or '.join(sorted(map(str, norms)))}, not {one.norm}"
    return None if seen.summed else f"{one.norm} is not given the sum of the branch and its stream as they are"


def _record(model: nn.Module, inputs: Mapping[str, Any]) -> list[_Branch]:
    """Watch one forward and return its residual branches."""
    recorder = _Recorder()
    with evaluating(model), _watched(model, recorder), torch.no_grad(), recorder:
        model(**inputs)
    modules = dict(model.named_modules())
    # A module that its parent calls twice (a shared dropout) cannot stand for one of the two places.
    once = {p for p, n in recorder.calls.items() if n == recorder.calls.get(p.rpartition(".")[0], n)}
    found: dict[tuple[str, str | None], _Branch] = {}
    for node in recorder.nodes:
        for one in _branches(node, modules, once, recorder):
            found.setdefault((one.found.output, one.found.residual), one)
    named = zip(found.values(), group_blocks([one.found for one in found.values()]), strict=True)
    branches = [one for one, block in named if block]
    named = zip(branches, group_blocks([one.found for one in branches]), strict=True)
    # A norm outside the block is the final norm of a pre-norm model.
    return [
        one
        if one.found.norm is None or within(one.found.norm, block) is not None
        else replace(one, found=replace(one.found, norm=None))
        for one, block in named
    ]


@dataclass
class _Rehearsal:
    """How a branch ran in one forward, read as it will be when something is spliced in."""

    read: int = 0
    ran: int = 0
    fired: int = 0
    """Of the times it ran, those after the stream was read."""
    width: int = 0
    misfit: str | None = None
    streams: list[torch.Tensor] = field(default_factory=list)
    summed: bool = True
    """The norm was given exactly the sum."""

    def fault(self, one: Found) -> str | None:
        """Say what is wrong: it must fire once after each reading of the stream, in its shape."""
        if not self.fired:
            early = "" if one.residual is None else f" after {one.residual}"
            return f"{one.output} does not run{early}"
        if one.residual is not None and self.fired != self.read:
            return f"{one.residual} runs {self.read} times, and {one.output} after it {self.fired} times"
        if self.misfit is None and one.hidden_size not in (0, self.width):
            return f"the output of {one.output} is {self.width} wide, not {one.hidden_size}"
        return self.misfit

    def reads(self, branch: _Branch) -> bool:
        """Tell whether what was read is a branch's stream."""
        return any(_close(x, branch.stream) for x in self.streams)


def _rehearse(model: nn.Module, inputs: Mapping[str, Any], found: Sequence[Found]) -> list[_Rehearsal]:
    seen = [_Rehearsal() for _ in found]
    pending: dict[int, torch.Tensor] = {}
    sums: dict[int, torch.Tensor] = {}

    def reads(index: int, _module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        seen[index].read += 1
        pending.update((index, x) for x in first_tensors(args, kwargs))

    def adds(index: int, _module: nn.Module, _args: Any, output: Any) -> None:
        if index in pending:
            pending[index] = pending[index] + next(_tensors(output))

    def gives(index: int, _module: nn.Module, _args: Any, output: Any) -> None:
        one, record, h = found[index], seen[index], next(_tensors(output))
        x = pending.pop(index, None)
        record.ran += 1
        if one.residual is not None and x is None:
            return
        record.fired += 1
        record.width = h.shape[1 if one.channels_first else -1]
        if x is not None and (x.numel() != h.numel() or x.shape[-1] != h.shape[-1]):
            record.misfit = f"{one.output} gives {tuple(h.shape)}, and its stream is {tuple(x.shape)}"
        elif x is not None:
            record.streams.append(x.clone())
            sums[index] = h + x.reshape(h.shape)

    def norms(index: int, _module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        total = sums.pop(index, None)
        if total is not None:
            seen[index].summed &= any(_close(total, given) for given in first_tensors(args, kwargs))

    handles = []
    try:
        for index, one in enumerate(found):
            reader, *added = (one.residual or "").split("+")
            for path, before in ((reader, reads), (one.norm, norms)):
                if path:
                    module = model.get_submodule(path)
                    handles.append(module.register_forward_pre_hook(partial(before, index), with_kwargs=True))
            for path, after in (*((path, adds) for path in added), (one.output, gives)):
                handles.append(model.get_submodule(path).register_forward_hook(partial(after, index)))
        with evaluating(model), torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.numel() == other.numel() and torch.allclose(
        one.float().reshape(-1), other.float().reshape(-1), rtol=1e-2, atol=1e-2 * float(one.abs().max())
    )


def within(path: str, block: str) -> str | None:
    """Return the path of a module inside a block, or None: it is not in there.

    >>> within("layer.0.attention.self", "layer.0"), within("attentions.0.q_lin", ".0")
    ('attention.self', 'attentions.q_lin')
    """
    if _inside(path, block):
        return path[len(block) :].removeprefix(".")
    parent, _, index = block.rpartition(".")
    listed = re.fullmatch(rf"{re.escape(parent)}\.?([^.]*)\.{index}(\..*)?", path)  # see group_blocks
    return listed[1] + (listed[2] or "") if listed else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, and give every module its own mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _watched(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []
    try:
        for path, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(
                    lambda _m, args, kwargs, path=path: recorder.enter(path, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda _m, _a, output, path=path: recorder.leave(path, output)),
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Branch:
    """One branch of one residual sum."""

    found: Found
    makers: Sequence[str]
    """Modules that stand for it: they gave it, the last of them is the largest."""
    readers: Sequence[str]
    """Modules that are called with its stream."""
    stream: torch.Tensor


def _branches(total: _Node, modules: Mapping[str, nn.Module], once: set[str], recorder: _Recorder) -> Iterator[_Branch]:
    """Yield the branches that a residual sum adds, if the node is one."""
    if total.operation not in _ADDITIONS or len(total.shape) < 2 or _is_part_of_sum(total):
        return
    addends = list(_addends(total))
    streams = [x for x in addends if all(h is x or _depends(h, _stream(x)) for h in addends)]
    if len(addends) < 2 or len(streams) != 1:
        return
    x = _stream(streams[0])
    for h in addends:
        if h is streams[0]:
            continue
        makers, aligned = _makers(h, x, total, once, len(addends) == 2)
        if not makers:
            continue
        output, between = makers[-1], _between(h, x)
        attention = next((n.module for n in between if _is_attention(n, modules)), None)
        kind = _kind(output, {node.module for node in between}, attention, modules)
        residual = _reader(x, total, output, once) if aligned else None
        first = len(x.shape) == 4 and any(node.operation in _ON_IMAGES and len(node.shape) == 4 for node in between)
        size = x.shape[1] if first else x.shape[-1]
        found = Found(kind, output, residual, _post_norm(total, modules), size, first)
        yield _Branch(found, makers, x.readers if aligned else [], recorder.tensor(x))


def _stream(node: _Node) -> _Node:
    """Walk back over factors and offsets that do not depend on the input: some models scale the stream itself."""
    while (
        not node.readers
        and node.operation in _TRANSPARENT | _ADDITIONS
        and len(node.parents) == 1
        and node.parents[0].shape == node.shape
    ):
        node = node.parents[0]
    return node


def _is_part_of_sum(node: _Node) -> bool:
    return len(node.consumers) == 1 and node.consumers[0].operation in _ADDITIONS and not node.makers


def _addends(total: _Node) -> Iterator[_Node]:
    """Flatten a sum: an addition that only another addition reads, maybe scaled, is part of it."""
    for parent in total.parents:
        if parent.shape != total.shape:
            continue
        source = parent
        while not source.makers and source.operation in _TRANSPARENT and len(source.consumers) == 1:
            inputs = [p for p in source.parents if p.shape == total.shape]
            if len(inputs) != 1:
                break
            source = inputs[0]
        summed = source.operation in _ADDITIONS and len(source.parents) > 1
        if summed and len(source.consumers) == 1 and not source.makers:
            yield from _addends(source)
        else:
            yield parent


def _depends(node: _Node, ancestor: _Node) -> bool:
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current is ancestor:
            return True
        if current.index > ancestor.index and current.index not in seen:
            seen.add(current.index)
            todo += current.parents
    return False


def _between(node: _Node, ancestor: _Node) -> list[_Node]:
    """Return the nodes that ``node`` was computed through since ``ancestor``."""
    seen, todo, nodes = set(), [node], []
    while todo:
        current = todo.pop()
        if current.index > ancestor.index and current.index not in seen:
            seen.add(current.index)
            nodes.append(current)
            todo += current.parents
    return sorted(nodes, key=lambda n: n.index)


def _makers(h: _Node, x: _Node, total: _Node, once: set[str], between: bool) -> tuple[list[str], bool]:
    """Return the modules that made the branch, and whether its positions are still those of the stream.

    ``between``: no other branch reads its stream between this one's reading and its output.
    """
    node: _Node | None = h
    aligned = True
    while node is not None and node is not x:
        # A module around the sum made the sum, not the branch.
        makers = [path for path in node.makers if path and not _inside(total.module, path)]
        # A module that is called for several branches (a shared dropout) serves each, if x is read just before.
        makers = [path for path in makers if path in once] or (makers if between else [])
        if makers and len(node.shape) >= 2:
            return (makers, aligned and _size(node) == _size(x)) if node.shape[-1] == x.shape[-1] else ([], False)
        if node.operation not in _TRANSPARENT and not (node.operation in _ADDITIONS and len(node.parents) == 1):
            return [], False
        aligned = aligned and node.operation not in _MIX_POSITIONS
        same = [p for p in node.parents if _size(p) == _size(x) or p.makers]
        node = max(same or node.parents, key=lambda p: p.index, default=None)
    return [], False


def _size(node: _Node) -> int:
    size = 1
    for n in node.shape:
        size *= n
    return size


def _reader(x: _Node, total: _Node, output: str, once: set[str]) -> str | None:
    """Return the module nearest to the branch that is called with the stream."""
    readers = [path for path in x.readers if path and path in once and not _inside(total.module, path)]
    if not readers:
        # Only the block itself is called with it. Its hooks do not run again under gradient checkpointing.
        readers = [path for path in x.readers if path and _inside(total.module, path)][-1:]
    return max(readers, key=lambda path: _shared(path, output), default=None)


def _shared(path: str, other: str) -> int:
    """Count the names two paths begin with together."""
    pairs = zip(path.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _post_norm(total: _Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the norm that takes over the sum: nothing else reads it."""
    readers = [path for path in total.readers if "norm" in type(modules[path]).__name__.lower()]
    if not readers:
        return None
    norm = readers[0]
    if any(not _inside(c.module, norm) for c in total.consumers):
        return None
    return norm


def _kind(output: str, touched: set[str], attention: str | None, modules: Mapping[str, nn.Module]) -> Branch:
    classes = " ".join(type(modules[path]).__name__ for path in touched if path in modules)
    own = _tails(touched)
    if attention is not None:
        names = " ".join(attention.split(".")[-2:]) + " " + " ".join(output.split(".")[-2:])
        return "cross_attention" if _CROSS.search(names) else "attention"
    tail = " ".join([*output.split(".")[-2:], *own])
    if _EXPERTS.search(classes) or _EXPERTS.search(tail):
        return "moe"
    mixes = re.search("attn|attention", output) or (_MIXER.search(tail) and not _FEED_FORWARD.search(tail))
    return "mixer" if mixes else "ffn"


def _tails(paths: set[str]) -> list[str]:
    """Return the last names of modules, without what all of them share."""
    split = [path.split(".") for path in paths if path]
    shared = 0
    while split and all(len(p) > shared + 1 for p in split) and len({p[shared] for p in split}) == 1:
        shared += 1
    return [".".join(p[shared:]) for p in split]


def _is_attention(node: _Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.operation == "scaled_dot_product_attention":
        return True
    # Scores are (batch, heads, queries, keys), or (batch · heads, queries, keys); a router's are (tokens, experts).
    name = f"{node.module} {type(modules.get(node.module)).__name__}"
    return (
        node.operation == "softmax" and len(node.shape) >= 3 and not re.search("rout|gate|expert", name, re.IGNORECASE)
    )


def _inside(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(f"{ancestor}.") or ancestor == ""


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def group_blocks(found: Sequence[Found]) -> list[str]:
    """Name the block of every branch: the innermost numbered module that holds two branches or more.

    Where none does (one branch to a block, or parts of a block in lists of their own, as in XLM), the list's parent and
    the number name it.
    """
    numbered = []
    for one in found:
        parts = one.output.split(".")
        numbered.append([".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdigit()])
    count = Counter(path for paths in numbered for path in paths)
    split = Counter(_parallel_lists(paths[-1]) for paths in numbered if paths and count[paths[-1]] == 1)
    names = []
    for paths in numbered:
        shared = [path for path in paths if count[path] > 1]
        merged = _parallel_lists(paths[-1]) if paths else ""
        names.append(shared[-1] if shared else merged if split[merged] > 1 else paths[-1] if paths else "")
    return names


def _parallel_lists(path: str) -> str:
    parent, _, index = path.rpartition(".")
    return f"{parent.rpartition('.')[0]}.{index}"
