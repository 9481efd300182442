"""Hooks at a whole model's door: rows repeated for Parallel, tasks that a call names, tokens without a prompt."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, replace
from types import FrameType, MethodType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import base_of, called_of
from adaptergit.splice.composition import copies_of
from adaptergit.splice.heads import HeadModule, Pooling
from adaptergit.splice.hooks import Undo, after, before, with_first
from adaptergit.splice.inputs import cache_in
from adaptergit.splice.places import Prompt
from adaptergit.splice.positions import shift_positions
from adaptergit.splice.prompts import make_room, mask_in, widen
from adaptergit.splice.trace import first_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptergit.splice.engine import Engine
    from adaptergit.splice.plan import Plan

_TASKS = "tasks of a call"
_COUNTED = ("input_ids", "inputs_embeds", "input_features", "input_values", "pixel_values", "attention_mask")
"""Arguments with a row for each row of the batch; others may have one for all."""


def _hook_own(model: nn.Module, base: nn.Module, pooling: Pooling, engine: Engine) -> list[Undo]:
    """Fit rows and tokens to the head of the model's own class, which counts those that it was given.

    A head that reads the first position reads a prompt's, as it does in ``adapters`` and PEFT.
    """
    own = _Own(tuple(inspect.signature(model.forward).parameters), engine)
    undo = [before(model, own.repeat, prepend=True), after(model, own.end, always_call=True)]
    of_rows = type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice"))
    if getattr(model, "main_input_name", "") == "input_ids" and not (of_rows and pooling == "first"):
        undo.append(after(called_of(base), own.strip))
    return undo


@dataclass(frozen=True)
class Call:
    """What the base model was called with."""

    batch: int
    mask: torch.Tensor | None = None
    """(batch, seq) of the first stack."""
    decoder_mask: torch.Tensor | None = None
    seen: int = 0
    """Tokens that are in the cache already."""
    prompted: bool = False
    """A prompt belongs in front of this call's tokens."""


def hook_tasks(model: nn.Module, engine: Engine) -> list[Undo]:
    """Let a call name the tasks of its rows, ``model(…, task_ids=[0, 1, …])``; to be hooked after all others."""
    undo: list[Undo] = []
    for module, key in _doors(model):  # also where the base is called by itself
        tasks = _Tasks(engine, model, key)
        undo += [before(module, tasks.begin, prepend=True), after(module, tasks.end, always_call=True)]
    return undo


def _doors(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(module, f"{_TASKS} of {type(module).__name__}") for module in {base_of(model): 0, model: 0}]


def clear_interrupted(model: nn.Module, engine: Engine) -> None:
    """Clear what a call of this thread has left that did not come to its end (Ctrl-C)."""
    for module, key in _doors(model):
        if engine.holds(key) and not is_running(module):
            engine.take(key).__exit__(None, None, None)
    if engine.outer and not is_running(model):
        engine.outer = 0


def hook_call(model: nn.Module, base: nn.Module, pooling: Pooling, engine: Engine) -> list[Undo]:
    """Look at the arguments of every call: of the base model, of its encoder alone, and of the model's own class."""
    called = called_of(base)
    begin = _Begin(engine, model, tuple(inspect.signature(called.forward).parameters))
    undo = [before(called, begin, prepend=True), after(called, _End(engine), always_call=True)]
    encoder = getattr(base, "encoder", None)
    if model is not base:
        undo += _hook_own(model, base, pooling, engine)
    if isinstance(encoder, nn.Module) and getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        names = tuple(inspect.signature(encoder.forward).parameters)
        undo.append(before(encoder, _BeginEncoder(engine, names)))
    return undo


@dataclass(frozen=True, eq=False)
class _Tasks:
    """Send the rows of a call to the children of a MultiTask that it names."""

    engine: Engine
    model: nn.Module
    key: str

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        clear_interrupted(self.model, self.engine)
        if kwargs is None or (given := kwargs.get("task_ids")) is None:
            return None
        override = self.engine.override(self.engine.current().for_tasks(given))
        override.__enter__()
        self.engine.put(self.key, override)
        return args, {name: value for name, value in kwargs.items() if name != "task_ids"}

    def end(self, *_: Any) -> None:
        override = self.engine.take(self.key)
        if override is not None:
            override.__exit__(None, None, None)


@dataclass(frozen=True, eq=False)
class _Own:
    """Repeat what the model is called with for Parallel, labels too; show its head the tokens without a prompt."""

    parameters: tuple[str, ...]
    engine: Engine

    def repeat(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        plan = self.engine.current()
        self.engine.outer = plan.copies
        if kwargs is None or plan.copies == 1:
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


def is_running(module: nn.Module) -> bool:
    """Tell whether this thread is inside a module's forward."""
    if torch.compiler.is_compiling():  # which is not interrupted
        return True
    code = inspect.unwrap(type(module).forward).__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back
    return False


def heads_beside(plan: Plan) -> list[HeadModule]:
    """Return the heads beside the model that answer for it."""
    return [] if plan.answer is None else [head for head in plan.answer.heads.values() if isinstance(head, HeadModule)]


def rows_of(named: Mapping[str, Any], plan: Plan) -> int:
    """Return how many rows a model is called with.

    Raises:
        ModelError: No tensors.
        UsageError: As many pictures as rows are needed to tell which adapter is whose.
    """
    ordered = {**{name: named[name] for name in _COUNTED if name in named}, **named}
    tensors = [value for value in ordered.values() if isinstance(value, torch.Tensor) and value.dim()]
    if not tensors:
        raise ModelError(
            "the base model was called without tensors", hint='give it what tokenizer(…, return_tensors="pt") makes'
        )
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


@dataclass(frozen=True, eq=False)
class _Begin:
    """Look at the base model's arguments; repeat them for Parallel, make room for a prompt."""

    engine: Engine
    model: nn.Module
    names: tuple[str, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None:
            return None
        if self.engine.outer:
            clear_interrupted(self.model, self.engine)
        plan = self.engine.current()
        named = {**dict(zip(self.names, args, strict=False)), **kwargs}
        copies = 1 if self.engine.outer else plan.copies
        rows = rows_of(named, plan)
        named = repeat_rows(named, rows, copies)
        past = cache_in(named)
        seen = 0 if past is None or not hasattr(past, "get_seq_length") else int(past.get_seq_length())
        ids = next((named[n] for n in ("input_ids", "inputs_embeds") if isinstance(named.get(n), torch.Tensor)), None)
        call = Call(
            rows * copies,
            mask_in(named.get("attention_mask"), None if ids is None else seen + ids.shape[1]),
            mask_in(named.get("decoder_attention_mask")),
            seen,
        )
        prompts = [place for place in plan.places if isinstance(place, Prompt)]
        if prompts:
            lengths = self.engine.prompt_lengths(prompts[0], call.batch)
            if named.get("encoder_outputs") is not None:  # the prompt is in what the encoder made
                if call.mask is not None:
                    named["attention_mask"] = widen(call.mask, lengths, 1)
            elif not seen:
                named = make_room(self.engine, module, self.names, prompts[0], named, lengths)
                call = replace(call, mask=mask_in(named.get("attention_mask")), prompted=True)
            else:  # later steps of a generation: the prompt is in the cache
                self._later(named, lengths)
        if plan.prefixes and "position_ids" in self.names:
            shift_positions(self.engine.base, named, plan, seen)
        self.engine.begin(call)
        return (), named

    @staticmethod
    def _later(named: dict[str, Any], length: int) -> None:
        mask, given = mask_in(named.get("attention_mask")), named.get("position_ids")
        if mask is not None:
            named["attention_mask"] = widen(mask, length, 1)
        if given is not None:
            named["position_ids"] = given + length
        if named.get("cache_position") is not None:  # transformers 4
            named["cache_position"] = named["cache_position"] + length


@dataclass(frozen=True, eq=False)
class _End:
    """The base model's call is over."""

    engine: Engine

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        self.engine.end()


@dataclass(frozen=True, eq=False)
class _BeginEncoder:
    """``generate`` calls an encoder by itself: there is no call of the base model to look at."""

    engine: Engine
    names: tuple[str, ...]

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        # A call that was interrupted (Ctrl-C) runs no more, whatever it has left.
        if kwargs is None or (self.engine.running and is_running(called_of(self.engine.base))):
            return None
        plan = self.engine.current()
        if plan.copies > 1:
            raise UsageError("Parallel repeats the rows of a whole model, and here its encoder runs alone")
        first = first_tensors(args, kwargs)
        call = Call(first[0].shape[0] if first else 1, mask_in(kwargs.get("attention_mask")))
        prompt = next((place for place in plan.places if isinstance(place, Prompt)), None)
        if prompt is None:
            self.engine.begin(call, running=False)
            return None
        named = {**dict(zip(self.names, args, strict=False)), **kwargs}
        length = self.engine.prompt_lengths(prompt, call.batch)
        named = make_room(self.engine, self.engine.base, self.names, prompt, named, length)
        self.engine.begin(replace(call, mask=mask_in(named.get("attention_mask")), prompted=True), running=False)
        return (), named
