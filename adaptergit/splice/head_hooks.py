"""Hooks that let a head beside the model answer for it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.composition import BatchSplit, Parallel
from adaptergit.splice.engine import Engine
from adaptergit.splice.heads import HeadCall, HeadModule, Pooling, StaticModule
from adaptergit.splice.hooks import Undo, after, before

_KEPT = ("input_ids", "attention_mask")
_LABELS = ("labels", "start_positions", "end_positions", "word_starts", "labels_arcs", "labels_rels")


@dataclass
class MultiHeadOutput(ModelOutput):
    """Answers of several heads, in the order they were activated."""

    loss: torch.Tensor | None = None
    """Sum of the heads' losses."""
    head_outputs: Any = None


def hook_head(
    model: nn.Module,
    base: nn.Module,
    heads: Sequence[nn.Module],
    pooling: Pooling,
    engine: Engine,
) -> list[Undo]:
    """Install heads; return what gives the model its own answer back.

    Raises:
        UsageError: A head of the model's own class together with others.
    """
    if len(heads) == 1 and isinstance(heads[0], StaticModule):
        undo = [
            after(model.get_submodule(path), _Instead(copy, engine), with_kwargs=True)
            for path, copy in heads[0].copies.items()
        ]
        unembed = getattr(model, "get_output_embeddings", lambda: None)()
        for path, copy in heads[0].copies.items():
            for inner, module in model.get_submodule(path).named_modules():
                if module is unembed:
                    undo.append(before(copy.get_submodule(inner), _Unembed(engine), with_kwargs=False))
        return undo
    if not all(isinstance(head, HeadModule) for head in heads):
        raise UsageError("the head of the model's own class cannot answer together with others")
    parameters = list(inspect.signature(base.forward).parameters)
    hooks = _Answer(base, tuple(heads), pooling, tuple(parameters), engine)  # type: ignore[arg-type]
    return [before(model, hooks.before), after(base, hooks.watch), after(model, hooks.after, with_kwargs=True)]


@dataclass(frozen=True, eq=False)
class _Instead:
    """Answer with a copy of a module that holds other weights."""

    copy: nn.Module
    engine: Engine

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
        return self.copy(*args, **kwargs) if self.engine.answers_with_head() else None


@dataclass(frozen=True, eq=False)
class _Unembed:
    """Undo an invertible adapter in front of a copy of the output embedding."""

    engine: Engine

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (self.engine.unembed(args[0], own=True), *args[1:])


class _Calls(threading.local):
    """What one thread's running call must remember."""

    def __init__(self) -> None:
        self.labels: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.base_output: Any = None
        self.as_tuple = False

    def __reduce__(self) -> Any:
        return (_Calls, ())


@dataclass(frozen=True, eq=False)
class _Answer:
    """Take the labels away from the model, watch its base, and answer with the heads' outputs."""

    base: nn.Module
    heads: tuple[HeadModule, ...]
    pooling: Pooling
    parameters: tuple[str, ...]
    engine: Engine
    call: _Calls = field(default_factory=_Calls)

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not self.engine.answers_with_head():
            return args, kwargs
        kwargs = {name: _flat(value) for name, value in kwargs.items()}
        args = tuple(_flat(value) for value in args)
        named = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        self.call.inputs = {name: named[name] for name in _KEPT if named.get(name) is not None}
        self.call.labels = {name: kwargs[name] for name in _LABELS if kwargs.get(name) is not None}
        self.call.as_tuple = kwargs.get("return_dict") is False
        kept = {k: v for k, v in kwargs.items() if k not in (*_LABELS, "return_dict")}
        config = getattr(self.base, "config", None)
        if getattr(config, "is_encoder_decoder", False) and named.get("decoder_input_ids") is None:
            self._give_decoder(named, kept)
        return args, kept

    def _give_decoder(self, named: dict[str, Any], kept: dict[str, Any]) -> None:
        """Make up the decoder's input, as models with heads of their own do."""
        given = (
            self.call.labels.get("labels")
            if any(getattr(h.config, "type", "") == "seq2seq_lm" for h in self.heads)
            else None
        )
        source = named.get("input_ids") if given is None else given
        if not isinstance(source, torch.Tensor) or named.get("decoder_inputs_embeds") is not None:
            return
        config: Any = self.base.config
        shifted = source.new_full(source.shape, int(config.decoder_start_token_id or config.pad_token_id or 0))
        shifted[:, 1:] = source[:, :-1]
        kept["decoder_input_ids"] = shifted.masked_fill(shifted == -100, config.pad_token_id or 0)

    def watch(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self.call.base_output = output

    def after(self, _module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], _output: Any) -> Any:
        if not self.engine.answers_with_head():
            return None
        call = self.call
        output, call.base_output = call.base_output, None
        inputs, call.inputs = call.inputs, {}
        labels, call.labels = call.labels, {}
        # When the model is its own base, its hooks run in the order they were added: watch() has run.
        if output is None or not isinstance(output[0], torch.Tensor):
            raise ModelError("the base model gave no hidden state for the head to read")
        answers = [
            head.answer(self._call(output, inputs, labels, rows))
            for head, rows in zip(self.heads, self._rows(output[0].shape[0]), strict=True)
        ]
        if len(answers) == 1:
            return answers[0].to_tuple() if call.as_tuple else answers[0]
        losses = [answer["loss"] for answer in answers if answer.get("loss") is not None]
        return MultiHeadOutput(loss=sum(losses) if losses else None, head_outputs=answers)

    def _rows(self, batch: int) -> list[slice]:
        """Say which rows each head answers for: its child's in Parallel and BatchSplit, else all."""
        tree, count = self.engine.current().tree, len(self.heads)
        if isinstance(tree, Parallel) and len(tree.children) == count:
            sizes: Sequence[int] = (batch // count,) * count
        elif isinstance(tree, BatchSplit) and len(tree.children) == count:
            sizes = tree.batch_sizes
        else:
            return [slice(None)] * count
        ends = list(accumulate(sizes))
        return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def _call(self, output: Any, inputs: dict[str, Any], labels: dict[str, Any], rows: slice) -> HeadCall:
        batch, copies = output[0].shape[0], self.engine.current().copies

        def cut(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.dim():
                return value
            if copies > 1 and value.shape[0] * copies == batch:
                value = value.repeat(copies, *[1] * (value.dim() - 1))
            return value[rows] if value.shape[0] == batch else value

        if rows != slice(None):
            output = type(output)({k: cut(v) if isinstance(v, torch.Tensor) else v for k, v in output.items()})
        given = inputs.get("input_ids")
        prompt = output[0].shape[1] - given.shape[1] if self.engine.prompted and given is not None else 0
        return HeadCall(
            output,
            {k: cut(v) for k, v in inputs.items()},
            {k: cut(v) for k, v in labels.items()},
            self.pooling,
            getattr(self.base, "config", None),
            prompt,
            lambda hidden: self.engine.unembed(hidden, rows),
        )


def _flat(value: Any) -> Any:
    """Flatten the choices of (batch, choices, seq) inputs of tokens into rows."""
    if isinstance(value, torch.Tensor) and value.dim() == 3 and not value.is_floating_point():
        return value.view(-1, value.shape[-1])
    return value
