"""adaptergit."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

import adaptergit
from adaptergit.splice import BatchSplit, Panel, adapters
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

__all__ = ["memory"]


def versions() -> dict[str, str]:
    """Return what it runs on."""
    return {**versions_of(), "adaptergit": adaptergit.__version__}


def plain_forward(**options: Any) -> Action:
    """Run the plain model of this transformers version."""
    return plain.forward(**options)


def made(methods: list[str], *, size: str = "base", head: bool = False, share: bool = True, **where: str) -> Panel:
    """Return the panel of a model with adapters a0, a1 … of these methods, none active."""
    panel = adapters(bert(size, head=head, share=share, **where))
    for number, method in enumerate(methods):
        panel.add(f"a{number}", method)
    return panel


def forward(
    batch: int, length: int, method: str = "seq_bn", size: str = "base", active: bool = True, compiled: bool = False,
    mode: str | None = None, **where: Any,
) -> Action:  # fmt: skip
    """Run the model with one adapter, active or only there."""
    panel = made([method], size=size, **where)
    panel.active = "a0" if active else None
    action = calling(torch.compile(panel.model, mode=mode) if compiled else panel.model, batch, length)
    if not compiled:
        action.facts["flops"] = flops(lambda: panel.model(**tokens(batch, length, where.get("device", "cpu"))))
    return action


def first_load(method: str, size: str = "base") -> Action:
    """Load a signed release from the store into a plain model; signature and checksums are verified."""
    reference, folder = _published(method, size)
    state: dict[str, Any] = {}

    def before() -> None:
        state["model"] = bert(size)

    return Action(lambda: adaptergit.load(reference, state["model"]), before, facts={"bytes": folder_bytes(folder)})


def load(method: str, size: str = "base") -> Action:
    """Load a signed release from the store into a model that has a panel."""
    reference, folder = _published(method, size)
    panel = made([], size=size)
    return Action(
        lambda: adaptergit.load(reference, panel.model, name="x"),
        after=lambda: panel.remove("x"),
        facts={"bytes": folder_bytes(folder)},
    )


def load_unverified(method: str, size: str = "base") -> Action:
    """Load the same files from a folder as nobody's: checksums of the manifest, no signature."""
    _, folder = _published(method, size)
    panel = made([], size=size)
    return Action(lambda: adaptergit.load(folder, panel.model, name="x"), after=lambda: panel.remove("x"))


def verify(method: str, size: str = "base") -> Action:
    """Only find the release in the store and verify it."""
    reference, _ = _published(method, size)
    return Action(lambda: adaptergit.fetch(reference))


def hash_once(method: str, size: str = "base") -> Action:
    """Read the weights and hash them once: the least that verifying needs."""
    _, folder = _published(method, size)
    path = Path(folder) / "adapter.safetensors"
    return Action(lambda: hashlib.sha256(path.read_bytes()).hexdigest())


def switch(loaded: int, method: str = "seq_bn", size: str = "base") -> Action:
    """Make another adapter the active one, of so many."""
    panel = made([method] * loaded, size=size)
    names = itertools.cycle([f"a{i}" for i in range(loaded)])
    return Action(lambda: panel.activate(next(names)))


def switch_for_a_call(loaded: int, method: str = "seq_bn", size: str = "base") -> Action:
    """Enter and leave a with block that uses another adapter, without a forward."""
    panel = made([method] * loaded, size=size)
    names = itertools.cycle([f"a{i}" for i in range(loaded)])
    panel.active = "a0"

    def run() -> None:
        with panel.using(next(names)):
            pass

    return Action(run)


def add(loaded: int, method: str = "seq_bn", size: str = "base") -> Action:
    """Add a fresh adapter where there are so many."""
    panel = made([method] * loaded, size=size)
    return Action(lambda: panel.add("x", method), after=lambda: panel.remove("x"))


def draw(method: str = "seq_bn", size: str = "base") -> Action:
    """Only draw the values that a fresh adapter begins with: the least that adding one needs."""
    panel = made([method], size=size)
    matrices = [torch.empty_like(p) for p in panel.module("a0").parameters() if p.dim() == 2]

    def run() -> None:
        for matrix in matrices:
            torch.nn.init.normal_(matrix, std=0.02)

    return Action(run)


def mixed(
    rows: int, length: int, method: str = "seq_bn", size: str = "base", one: bool = False, routed: bool = False,
    split: bool = False, **where: Any,
) -> Action:  # fmt: skip
    """Run a batch whose rows go through an adapter of their own each, or all through one.

    With ``routed``, choosing who goes where is part of it. With ``split``, it is said as ``adapters`` says it.
    """
    panel = made([method] * rows, size=size, **where)
    names = [f"a{i}" for i in range(rows)]
    if one:
        panel.active = "a0"
    elif split:
        panel.active = BatchSplit(*names, batch_sizes=[1] * rows)
    else:
        panel.route(names)
    action = calling(panel.model, rows, length)
    if routed:
        forward_only = action.run

        def run() -> None:
            panel.route(names)
            forward_only()

        action.run = run
    return action


def train_step(
    batch: int, length: int, method: str = "seq_bn", skip: int = 0, size: str = "base", **where: Any
) -> Action:
    """Train one adapter and the head; with AdapterDrop, in the blocks from ``skip``."""
    panel = made([method], size=size, head=True, share=False, **where)
    panel.train("a0")
    if skip:
        panel.activate("a0", skip_layers=range(skip))
    return training(panel.model, batch, length)


def train_memory(**options: Any) -> dict[str, Any]:
    """See :func:`contenders.common.step_memory`."""
    return step_memory(train_step(**options))


def merge(method: str = "lora", size: str = "base") -> Action:
    """Write a LoRA into the weights."""
    panel = _lora(method, size)
    facts = unrestored(panel.model, lambda: panel.merge("a0"), lambda: panel.unmerge("a0"))
    return Action(lambda: panel.merge("a0"), after=lambda: panel.unmerge("a0"), facts=facts)


def unmerge(method: str = "lora", size: str = "base") -> Action:
    """Take a LoRA out of the weights."""
    panel = _lora(method, size)
    return Action(lambda: panel.unmerge("a0"), before=lambda: panel.merge("a0"))


def publish(count: int, method: str, size: str) -> list[str]:
    """Publish so many different adapters, signed, fetch them into the store, and return references to them.

    The server is gone when this returns: what loads them touches no network.
    """
    from adaptergit.git import GitServer
    from adaptergit.pins import pin_key
    from adaptergit.publish import publish_all
    from adaptergit.trust import generate_key

    panel, root = made([], size=size), Path(tempfile.mkdtemp(prefix="published-"))
    key = generate_key(root / "key")
    (root / "server").mkdir()
    with GitServer(root / "server") as server:
        url = server.create(f"acme/{root.name}")
        subprocess.run(["git", "clone", "-q", url, str(root / "clone")], check=True, capture_output=True)
        for start in range(0, count, 20):
            folders = [root / f"a{number}" for number in range(start, min(start + 20, count))]
            for folder in folders:
                panel.add(folder.name, method)
                panel.save(folder.name, folder, version="1.0.0", license="CC0-1.0")
                panel.remove(folder.name)
            publish_all(folders, clone=root / "clone", key=key.path)
        pin_key(f"127.0.0.1/acme/{root.name}", key.public.line)
        references = [f"{url}@a{number}==1.0.0" for number in range(count)]
        for reference in references:
            adaptergit.fetch(reference)
    return references


_held: dict[str, Any] = {}


def hold(size: str, folder: str) -> None:
    """Have a model that runs and has loaded an adapter, before others come."""
    _held["panel"] = made(["seq_bn"], size=size)
    _use("a0")
    adaptergit.load(folder, _held["panel"].model, name="first", activate=False)


def load_all(folders: list[str], use: bool) -> dict[str, int]:
    """Load adapters into the held model; use each once."""
    panel = _held["panel"]
    for number, reference in enumerate(folders):
        adaptergit.load(reference, panel.model, name=f"x{number}", activate=False)
        if use:
            _use(f"x{number}")
    kept = [p for number in range(len(folders)) for p in panel.module(f"x{number}").parameters()]
    return {"weights": sum(p.numel() * p.element_size() for p in kept), **memory()}


def many(count: int, step: str, method: str = "seq_bn", size: str = "small", seconds: float = 600) -> Action:
    """Load, activate or delete one adapter of ``count`` on one model, which is filled up to that first."""
    if "many" not in _held:
        _held["many"], _held["count"], _held["saved"] = made([], size=size), 0, _published(method, size)[0]
    panel, reference = _held["many"], _held["saved"]
    _held["count"] = fill(_held["count"], count, lambda i: panel.add(f"a{i}", method), seconds)
    return coming_and_going(
        step,
        lambda: adaptergit.load(reference, panel.model, name="x", activate=False),
        lambda: panel.remove("x"),
        panel.activate,
        count,
    )


def compiling(method: str = "seq_bn", count: int = 3, size: str = "small") -> dict[str, Any]:
    """See :func:`contenders.common.breaks`."""
    panel = made([method] * count, size=size)
    return breaks(panel.model, panel.activate, [f"a{i}" for i in range(count)])


def _use(name: str) -> None:
    panel = _held["panel"]
    panel.active = name
    with torch.no_grad():
        panel.model(**tokens(1, 8))


def _lora(method: str, size: str) -> Panel:
    panel = made([method], size=size, share=False)
    noisy(panel.model)
    return panel


_releases: dict[tuple[str, str], str] = {}


def _published(method: str, size: str) -> tuple[str, str]:
    """Return a reference to a release in the store, and its folder."""
    if (method, size) not in _releases:
        (_releases[method, size],) = publish(1, method, size)
    reference = _releases[method, size]
    return reference, str(adaptergit.fetch(reference).path)
