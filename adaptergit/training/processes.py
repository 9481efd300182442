"""One training in several processes: who writes, what is sharded, and what is put together again."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.errors import UsageError, installing, no_file
from adaptergit.splice.panel import Panel
from adaptergit.training.spec import TrainSpec


def gather(panel: Panel, name: str) -> None:
    """Put what was sharded together again, in every process, so that it can be written as always."""
    from adaptergit.training.trainer import reshard, whole

    reshard(panel.model)
    modules = [panel.module(name), *((panel.head_module(name),) if name in panel.heads else ())]
    for module in (inner for outer in modules for inner in outer.modules()):
        for key, parameter in list(module.named_parameters(recurse=False)):
            if (found := whole(parameter)) is not parameter:
                setattr(module, key, nn.Parameter(found.detach(), requires_grad=parameter.requires_grad))


def is_first() -> bool:
    """Tell whether this process writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Until all processes have come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def sharded_apart(model: Any) -> list[str]:
    """Return the classes of what is sharded apart: embeddings are no part of it, as accelerate shards them itself."""
    embeddings, names = model.get_input_embeddings(), set(model._no_split_modules or ())
    found = {type(module).__name__ for module in model.modules() if embeddings not in module.modules()}
    return sorted(found & names)


def check_sharing(spec: TrainSpec) -> None:
    """Refuse a sharing out that cannot be.

    Raises:
        UsageError, NotFoundError: No launcher, no DeepSpeed, or no configuration of it.
    """
    if spec.fsdp and spec.deepspeed is not None:
        raise UsageError("fsdp and deepspeed both share a model out", hint="give one of them")
    if spec.deepspeed is not None:
        _check_deepspeed(spec.deepspeed)
    option = "fsdp" if spec.fsdp else "deepspeed" if spec.deepspeed is not None else None
    if option is not None and "RANK" not in os.environ:
        hint = f"torchrun --nproc-per-node 2 -m adaptergit train … --{option}"
        raise UsageError(f"{option} shares a model out over the processes of a launcher, and there is none", hint=hint)


def _check_deepspeed(path: Path) -> None:
    try:
        if not isinstance(json.loads(path.read_text("utf-8")), dict):
            raise ValueError("it is no object")
    except FileNotFoundError as error:
        raise no_file(path) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"no configuration of DeepSpeed: {error}", where=str(path)) from error
    needs("deepspeed", installing("deepspeed"))


def needs(package: str, hint: str) -> None:
    """Refuse to go on without a package.

    Raises:
        UsageError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"training needs {package}", hint=hint)
