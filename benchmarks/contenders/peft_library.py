"""PEFT 0.21: LoRA, since it has no bottleneck adapters."""

from __future__ import annotations

import itertools
import re
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch

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
    return versions_of("peft")


def plain_forward(**options: Any) -> Action:
    """Run the plain model of this transformers version."""
    return plain.forward(**options)


def lora(method: str, **extra: Any) -> Any:
    """Return the configuration for ``lora`` or ``lora[r=24]``: queries and values."""
    found = re.fullmatch(r"lora(?:\[r=(\d+)\])?", method)
    if found is None:
        raise ValueError(f"PEFT has no {method}")
    rank = int(found[1] or 8)
    return peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"], **extra)


def made(
    methods: list[str], *, size: str = "base", head: bool = False, share: bool = True, device: str = "cpu", **dtype: str
) -> Any:
    """Return a model with adapters a0, a1 … of these methods; the first is active."""
    extra = {"task_type": "SEQ_CLS"} if head else {}
    model = bert(size, head=head, share=share, device=device, **dtype)
    model = peft.get_peft_model(model, lora(methods[0], **extra), adapter_name="a0", autocast_adapter_dtype=False)
    for number, method in enumerate(methods[1:], 1):
        model.add_adapter(f"a{number}", lora(method, **extra))
    return model.eval()


def forward(
    batch: int, length: int, method: str = "lora", size: str = "base", active: bool = True, compiled: bool = False,
    mode: str | None = None, **where: Any,
) -> Action:  # fmt: skip
    """Run the model with one LoRA, active or disabled."""
    model = made([method], size=size, **where)
    if not active:
        model.base_model.disable_adapter_layers()
    action = calling(torch.compile(model, mode=mode) if compiled else model, batch, length)
    if not compiled:
        action.facts["flops"] = flops(lambda: model(**tokens(batch, length, where.get("device", "cpu"))))
    return action


def first_load(method: str, size: str = "base") -> Action:
    """Load an adapter from a folder into a plain model."""
    folder = _saved(method, size)
    state: dict[str, Any] = {}

    def before() -> None:
        state["model"] = bert(size)

    return Action(
        lambda: peft.PeftModel.from_pretrained(state["model"], folder), before, facts={"bytes": folder_bytes(folder)}
    )


def load(method: str, size: str = "base") -> Action:
    """Load an adapter from a folder into a model that has one."""
    folder = _saved(method, size)
    model = made([method], size=size)

    def run() -> None:
        model.load_adapter(folder, "x")
        model.set_adapter("x")

    return Action(run, after=lambda: model.delete_adapter("x"), facts={"bytes": folder_bytes(folder)})


def switch(loaded: int, method: str = "lora", size: str = "base") -> Action:
    """Make another adapter the active one, of so many."""
    model = made([method] * loaded, size=size)
    names = itertools.cycle([f"a{i}" for i in range(loaded)])
    return Action(lambda: model.set_adapter(next(names)))


def add(loaded: int, method: str = "lora", size: str = "base") -> Action:
    """Add a fresh adapter where there are so many."""
    model, config = made([method] * max(1, loaded), size=size), lora(method)
    return Action(lambda: model.add_adapter("x", config), after=lambda: model.delete_adapter("x"))


def mixed(
    rows: int, length: int, method: str = "lora", size: str = "base", one: bool = False, routed: bool = False,
    **where: Any,
) -> Action:  # fmt: skip
    """Run a batch whose rows go through an adapter of their own each, or all through one. Routing is an argument."""
    model = made([method] * rows, size=size, **where)
    names = {} if one else {"adapter_names": [f"a{i}" for i in range(rows)]}
    return calling(model, rows, length, **names)


def train_step(batch: int, length: int, method: str = "lora", size: str = "base", **where: Any) -> Action:
    """Train one LoRA and the head."""
    return training(made([method], size=size, head=True, share=False, **where), batch, length)


def train_memory(**options: Any) -> dict[str, Any]:
    """See :func:`contenders.common.step_memory`."""
    return step_memory(train_step(**options))


def merge(method: str = "lora", size: str = "base") -> Action:
    """Write a LoRA into the weights."""
    model = _lora(method, size)
    return Action(
        model.merge_adapter,
        after=model.unmerge_adapter,
        facts=unrestored(model, model.merge_adapter, model.unmerge_adapter),
    )


def unmerge(method: str = "lora", size: str = "base") -> Action:
    """Take a LoRA out of the weights."""
    model = _lora(method, size)
    return Action(model.unmerge_adapter, before=model.merge_adapter)


def publish(count: int, method: str, size: str) -> list[str]:
    """Write so many different adapters and return their folders."""
    folders = []
    for _ in range(count):
        model = made([method], size=size)
        noisy(model)
        folders.append(str(Path(tempfile.mkdtemp(prefix="peft-")) / "a0"))
        model.save_pretrained(str(Path(folders[-1]).parent))
    return folders


_held: dict[str, Any] = {}


def hold(size: str, folder: str) -> None:
    """Have a model that runs and has loaded an adapter, before others come."""
    _held["model"] = made(["lora[r=24]"], size=size)
    _use("a0")
    _held["model"].load_adapter(folder, "first")


def load_all(folders: list[str], use: bool) -> dict[str, int]:
    """Load adapters into the held model; use each once."""
    model = _held["model"]
    for number, folder in enumerate(folders):
        model.load_adapter(folder, f"x{number}")
        if use:
            _use(f"x{number}")
    weights = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".x" in n)
    return {"weights": weights, **memory()}


def many(count: int, step: str, method: str = "lora", size: str = "small", seconds: float = 600) -> Action:
    """Load, activate or delete one adapter of ``count`` on one model, which is filled up to that first."""
    if "many" not in _held:
        _held["many"], _held["count"], _held["saved"] = made([method], size=size), 1, _saved(method, size)
    model, folder, config = _held["many"], _held["saved"], lora(method)
    _held["count"] = fill(_held["count"], count, lambda i: model.add_adapter(f"a{i}", config), seconds)
    return coming_and_going(
        step, lambda: model.load_adapter(folder, "x"), lambda: model.delete_adapter("x"), model.set_adapter, count
    )


def compiling(method: str = "lora", count: int = 3, size: str = "small") -> dict[str, Any]:
    """See :func:`contenders.common.breaks`."""
    model = made([method] * count, size=size)
    return breaks(model, model.set_adapter, [f"a{i}" for i in range(count)])


def _use(name: str) -> None:
    _held["model"].set_adapter(name)
    with torch.no_grad():
        _held["model"](**tokens(1, 8))


def _lora(method: str, size: str) -> Any:
    model = made([method], size=size, share=False)
    noisy(model)
    return model


def _saved(method: str, size: str) -> str:
    (folder,) = publish(1, method, size)
    return folder
