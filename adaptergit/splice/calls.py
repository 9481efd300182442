"""Hooks at a whole model's door: rows repeated for Parallel, tasks that a call names, tokens without a prompt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import base_of, called_of
from adaptergit.splice.composition import copies_of
from adaptergit.splice.heads import HeadModule, Pooling
from adaptergit.splice.hooks import Undo, after, before, with_first
from adaptergit.splice.trace import first_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptergit.splice.engine import Engine
    from adaptergit.splice.plan import Plan

_TASKS = "tasks of a call"


def hook_own(model: nn.Module, base: nn.Module, pooling: Pooling, engine: Engine) -> list[Undo]:
    """Fit rows and tokens to the head of the model's own class, which counts those that it was given.

    A head that reads the first position reads a prompt's, as it does in ``adapters`` and PEFT.
    """
    own = _Own(tuple(inspect.signature(model.forward).parameters), engine)
    undo = [before(model, own.repeat, prepend=True), after(model, own.end, always_call=True)]
    of_rows = type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice"))
    if getattr(model, "main_input_name", "") == "input_ids" and not (of_rows and pooling == "first"):
        undo.append(after(called_of(base), own.strip))
    return undo


def hook_tasks(model: nn.Module, engine: Engine) -> list[Undo]:
    """Let a call name the tasks of its rows, ``model(…, task_ids=[0, 1, …])``; to be hooked after all others."""
    undo: list[Undo] = []
    for module in {base_of(model): 0, model: 0}:  # also where the base is called by itself
        tasks = _Tasks(engine, f"{_TASKS} of {type(module).__name__}")
        undo += [before(module, tasks.begin, prepend=True), after(module, tasks.end, always_call=True)]
    return undo


@dataclass(frozen=True, eq=False)
class _Tasks:
    """Send the rows of a call to the children of a MultiTask that it names."""

    engine: Engine
    key: str

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("task_ids")
        if given is None:
            return None
        override = self.engine.override(self.engine.current().for_tasks(given))
        override.__enter__()
        self.engine.put(self.key, override)
        return args, {name: value for name, value in kwargs.items() if name != "task_ids"}

    def end(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        override = self.engine.take(self.key)
        if override is not None:
            override.__exit__(None, None, None)


@dataclass(frozen=True, eq=False)
class _Own:
    """Repeat what the model is called with for Parallel, labels too; show its head the tokens without a prompt."""

    parameters: tuple[str, ...]
    engine: Engine

    def repeat(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self.engine.current()
        self.engine.outer = plan.copies
        if plan.copies == 1:
            return None
        named = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        named = repeat_rows(named, rows_of(named, plan), plan.copies)
        total = named.get("num_items_in_batch")
        if total is not None and not heads_beside(plan):
            named["num_items_in_batch"] = total * plan.copies
        return (), named

    def strip(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not self.engine.outer or heads_beside(self.engine.current()) or not isinstance(output[0], torch.Tensor):
            return None
        hidden = self.engine.without_prompt(output[0])
        return None if hidden is output[0] else with_first(output, hidden)

    def end(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        self.engine.outer = 0


class Generate:
    """Stands before ``generate``, which goes on with as many rows as it was given: repeats them for Parallel."""

    def __init__(self, model: Any, engine: Engine) -> None:
        self.model, self.engine, self.own = model, engine, model.__dict__.get("generate")
        model.generate = self

    def undo(self) -> None:
        """Take it away."""
        del self.model.generate
        if self.own is not None:
            self.model.generate = self.own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate, a Parallel's rows as often as it has children; rows with ``task_ids`` for their tasks."""
        plan, own = self.engine.current(), self.own or MethodType(type(self.model).generate, self.model)
        if plan.chooses_tasks and (tasks := kwargs.pop("task_ids", None)) is not None:
            plan = plan.for_tasks(tasks)
        first = first_tensors(args, {n: v for n, v in kwargs.items() if isinstance(v, torch.Tensor) and v.dim() > 1})
        if plan.copies == 1:
            with self.engine.override(replace(plan, repeated=True)):
                return own(*args, **kwargs)
        if not first:
            raise UsageError("generate() of a Parallel needs inputs to repeat", hint="pass input_ids=")
        batch = first[0].shape[0]
        named = {name: repeat(value, batch, plan.copies) for name, value in kwargs.items()}
        with self.engine.override(replace(plan, repeated=True)):
            return own(*(repeat(value, batch, plan.copies) for value in args), **named)


def heads_beside(plan: Plan) -> list[HeadModule]:
    """Return the heads beside the model that answer for it."""
    return [] if plan.answer is None else [head for head in plan.answer.heads.values() if isinstance(head, HeadModule)]


def rows_of(named: Mapping[str, Any], plan: Plan) -> int:
    """Return how many rows a model is called with.

    Raises:
        ModelError: No tensors.
        UsageError: As many pictures as rows are needed to tell which adapter is whose.
    """
    tensors = [value for value in named.values() if isinstance(value, torch.Tensor) and value.dim()]
    if not tensors:
        raise ModelError("the base model was called without tensors")
    # Positions have no rows.
    rows = next((tensor for tensor in tensors if tensor.dim() > 1), tensors[0]).shape[0]
    pictures = named.get("pixel_values")
    if _is_pictures(pictures) and len(pictures) != rows > 1 and plan.by_row and copies_of(plan.tree) == 1:
        raise UsageError(
            f"{len(pictures)} pictures for {rows} rows: which adapter is whose cannot be told",
            hint="give every row one picture, or run the rows one adapter at a time",
        )
    return rows


def repeat_rows(named: dict[str, Any], rows: int, copies: int) -> dict[str, Any]:
    """Repeat all rows of what a model is called with, and all pictures, which may be as many as they like."""
    if copies == 1:
        return named
    found = {name: repeat(value, rows, copies) for name, value in named.items()}
    pictures = named.get("pixel_values")
    if _is_pictures(pictures):
        found["pixel_values"] = repeat(pictures, len(pictures), copies)
    return found


def repeat(value: Any, rows: int, copies: int) -> Any:
    """Repeat a tensor that has these rows."""
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == rows:
        return value.repeat(copies, *[1] * (value.dim() - 1))
    return value


def _is_pictures(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.dim() == 4
