"""Hooks that let a head beside the model answer for it."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from adaptergit.errors import ModelError
from adaptergit.splice.engine import Engine
from adaptergit.splice.heads import ClassificationModule, StaticModule

_KEPT = ("input_ids", "attention_mask")


def hook_head(
    model: nn.Module, base: nn.Module, head: nn.Module, pooling: Literal["first", "last"], engine: Engine
) -> list[RemovableHandle]:
    """Install a head; removing the handles gives the model its own answer back."""
    if isinstance(head, StaticModule):
        return [
            model.get_submodule(path).register_forward_hook(_Instead(copy, engine), with_kwargs=True)
            for path, copy in head.copies.items()
        ]
    assert isinstance(head, ClassificationModule)
    parameters = list(inspect.signature(base.forward).parameters)
    hooks = _Answer(base, head, pooling, tuple(parameters), engine)
    return [
        model.register_forward_pre_hook(hooks.before, with_kwargs=True),
        base.register_forward_hook(hooks.watch),
        model.register_forward_hook(hooks.after, with_kwargs=True),
    ]


@dataclass(frozen=True, eq=False)
class _Instead:
    """Answer with a copy of a module that holds other weights."""

    copy: nn.Module
    engine: Engine

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
        return self.copy(*args, **kwargs) if self.engine.answers_with_head() else None


class _Calls(threading.local):
    """What one thread's running call must remember."""

    def __init__(self) -> None:
        self.labels: Any = None
        self.inputs: dict[str, Any] = {}
        self.base_output: Any = None
        self.as_tuple = False

    def __reduce__(self) -> Any:
        return (_Calls, ())


@dataclass(frozen=True, eq=False)
class _Answer:
    """Take the labels away from the model, watch its base, and answer with the head's logits."""

    base: nn.Module
    head: ClassificationModule
    pooling: Literal["first", "last"]
    parameters: tuple[str, ...]
    engine: Engine
    call: _Calls = field(default_factory=_Calls)

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not self.engine.answers_with_head():
            return args, kwargs
        named = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        self.call.inputs = {name: named[name] for name in _KEPT if named.get(name) is not None}
        self.call.labels = kwargs.get("labels")
        self.call.as_tuple = kwargs.get("return_dict") is False
        return args, {k: v for k, v in kwargs.items() if k not in ("labels", "return_dict")}

    def watch(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self.call.base_output = output

    def after(self, _module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], _output: Any) -> Any:
        if not self.engine.answers_with_head():
            return None
        call = self.call
        output, call.base_output = call.base_output, None
        inputs, call.inputs = call.inputs, {}
        labels, call.labels = call.labels, None
        # When the model is its own base, its hooks run in the order they were added: watch() has run.
        if output is None or not isinstance(output[0], torch.Tensor):
            raise ModelError("the base model gave no hidden state for the head to read")
        pad = getattr(getattr(self.base, "config", None), "pad_token_id", None)
        answer = self.head.output(output, self.pooling, inputs, pad, labels)
        return answer.to_tuple() if call.as_tuple else answer
