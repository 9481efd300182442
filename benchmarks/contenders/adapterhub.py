"""AdapterHub's `adapters` 1.3.0, on the transformers it pins."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import adapters
import torch
from adapters.composition import BatchSplit

from contenders import plain
from contenders.common import (
    Action,
    bert,
    breaks,
    calling,
    coming_and_going,
    fill,
    flops,
    folder_bytes,
    memory,
    noisy,
    step_memory,
    tokens,
    training,
    unrestored,
)
from contenders.common import versions as versions_of


def versions() -> dict[str, str]:
    """Return what it runs on."""
    return versions_of("adapters")


def plain_forward(**options: Any) -> Action:
    """Run the plain model of this transformers version."""
    return plain.forward(**options)


def made(
    methods: list[str], *, size: str = "base", head: bool = False, share: bool = True, device: str = "cpu", **dtype: str
) -> Any:
    """Return a model with adapters a0, a1 … of these methods, none active."""
    model = bert(size, head=head, share=share, device=device, **dtype)
    adapters.init(model)
    for number, method in enumerate(methods):
        model.add_adapter(f"a{number}", config=method)
    model.to(device)
    return model.eval()


def forward(
    batch: int, length: int, method: str = "seq_bn", size: str = "base", active: bool = True, compiled: bool = False
) -> Action:
    """Run the model with one adapter, active or only there."""
    model = made([method], size=size)
    model.set_active_adapters("a0" if active else None)
    action = calling(torch.compile(model) if compiled else model, batch, length)
    if not compiled:
        action.facts["flops"] = flops(lambda: model(**tokens(batch, length)))
    return action


def first_load(method: str, size: str = "base") -> Action:
    """Load an adapter from a folder into a plain model: the library's part is put in first."""
    folder = _saved(method, size)
    state: dict[str, Any] = {}

    def before() -> None:
        state["model"] = bert(size)

    def run() -> None:
        adapters.init(state["model"])
        state["model"].load_adapter(folder, set_active=True, use_safetensors=True)

    return Action(run, before, facts={"bytes": folder_bytes(folder)})


def load(method: str, size: str = "base") -> Action:
    """Load an adapter from a folder into a model that the library's part is in."""
    folder = _saved(method, size)
    model = made([], size=size)

    def run() -> None:
        model.load_adapter(folder, load_as="x", set_active=True, use_safetensors=True)

    return Action(run, after=lambda: model.delete_adapter("x"), facts={"bytes": folder_bytes(folder)})


def switch(loaded: int, method: str = "seq_bn", size: str = "base") -> Action:
    """Make another adapter the active one, of so many."""
    model = made([method] * loaded, size=size)
    names = itertools.cycle([f"a{i}" for i in range(loaded)])
    return Action(lambda: model.set_active_adapters(next(names)))


def add(loaded: int, method: str = "seq_bn", size: str = "base") -> Action:
    """Add a fresh adapter where there are so many."""
    model = made([method] * loaded, size=size)
    return Action(lambda: model.add_adapter("x", config=method), after=lambda: model.delete_adapter("x"))


def mixed(
    rows: int, length: int, method: str = "seq_bn", size: str = "base", one: bool = False, routed: bool = False
) -> Action:
    """Run a batch whose rows go through an adapter of their own each, or all through one."""
    model = made([method] * rows, size=size)
    split = BatchSplit(*(f"a{i}" for i in range(rows)), batch_sizes=[1] * rows)
    model.set_active_adapters("a0" if one else split)
    action = calling(model, rows, length)
    if routed:
        forward_only = action.run

        def run() -> None:
            model.set_active_adapters(split)
            forward_only()

        action.run = run
    return action


def train_step(
    batch: int, length: int, method: str = "seq_bn", skip: int = 0, size: str = "base", **where: Any
) -> Action:
    """Train one adapter and the head; with AdapterDrop, in the blocks from ``skip``."""
    model = made([method], size=size, head=True, share=False, **where)
    model.train_adapter("a0")
    if skip:
        model.set_active_adapters("a0", skip_layers=list(range(skip)))
    return training(model, batch, length)


def train_memory(**options: Any) -> dict[str, Any]:
    """See :func:`contenders.common.step_memory`."""
    return step_memory(train_step(**options))


def merge(method: str = "lora", size: str = "base") -> Action:
    """Write a LoRA into the weights."""
    model = _lora(method, size)
    return Action(
        lambda: model.merge_adapter("a0"),
        after=model.reset_adapter,
        facts=unrestored(model, lambda: model.merge_adapter("a0"), model.reset_adapter),
    )


def unmerge(method: str = "lora", size: str = "base") -> Action:
    """Take a LoRA out of the weights."""
    model = _lora(method, size)
    return Action(model.reset_adapter, before=lambda: model.merge_adapter("a0"))


def publish(count: int, method: str, size: str) -> list[str]:
    """Write so many different adapters and return their folders."""
    model, folders = made([], size=size), []
    for number in range(count):
        model.add_adapter(f"a{number}", config=method)
        folders.append(tempfile.mkdtemp(prefix="adapterhub-"))
        model.save_adapter(folders[-1], f"a{number}", use_safetensors=True)
        model.delete_adapter(f"a{number}")
    return folders


_held: dict[str, Any] = {}


def hold(size: str, folder: str) -> None:
    """Have a model that runs and has loaded an adapter, before others come."""
    _held["model"] = made(["seq_bn"], size=size)
    _use("a0")
    _held["model"].load_adapter(folder, load_as="first", use_safetensors=True)


def load_all(folders: list[str], use: bool) -> dict[str, int]:
    """Load adapters into the held model; use each once."""
    model = _held["model"]
    for number, folder in enumerate(folders):
        model.load_adapter(folder, load_as=f"x{number}", use_safetensors=True)
        if use:
            _use(f"x{number}")
    weights = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".x" in n)
    return {"weights": weights, **memory()}


def many(count: int, step: str, method: str = "seq_bn", size: str = "small", seconds: float = 600) -> Action:
    """Load, activate or delete one adapter of ``count`` on one model, which is filled up to that first."""
    if "many" not in _held:
        _held["many"], _held["count"], _held["saved"] = made([], size=size), 0, _saved(method, size)
    model, folder = _held["many"], _held["saved"]
    _held["count"] = fill(_held["count"], count, lambda i: model.add_adapter(f"a{i}", config=method), seconds)
    return coming_and_going(
        step,
        lambda: model.load_adapter(folder, load_as="x", use_safetensors=True),
        lambda: model.delete_adapter("x"),
        model.set_active_adapters,
        count,
    )


def compiling(method: str = "seq_bn", count: int = 3, size: str = "small") -> dict[str, Any]:
    """See :func:`contenders.common.breaks`."""
    model = made([method] * count, size=size)
    return breaks(model, model.set_active_adapters, [f"a{i}" for i in range(count)])


def _use(name: str) -> None:
    _held["model"].set_active_adapters(name)
    with torch.no_grad():
        _held["model"](**tokens(1, 8))


def _lora(method: str, size: str) -> Any:
    model = made([method], size=size, share=False)
    noisy(model)
    return model


def _saved(method: str, size: str) -> str:
    (folder,) = publish(1, method, size)
    return folder
