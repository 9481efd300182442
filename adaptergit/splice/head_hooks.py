"""Hooks that let a head beside the model answer for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import base_of, called_of
from adaptergit.splice.calls import heads_beside, repeat
from adaptergit.splice.heads import HeadCall, HeadModule, Pooling, StaticModule
from adaptergit.splice.hooks import Undo, after, before
from adaptergit.splice.inputs import CACHE, cache_of, shifted_right
from adaptergit.splice.interpret import Rows, order_of

if TYPE_CHECKING:
    from adaptergit.splice.engine import Engine

_KEPT = ("input_ids", "attention_mask")
_LABELS = ("labels", "start_positions", "end_positions", "word_starts", "labels_arcs", "labels_rels")
_ACCEPTS = "accepts_loss_kwargs"
_CALL, _OUTPUT = "call of the heads", "output of the base"


@dataclass
class MultiHeadOutput(ModelOutput):
    """Answers of several heads, in the order they were activated."""

    loss: torch.Tensor | None = None
    """Sum of the heads' losses."""
    head_outputs: Any = None
    logits: torch.Tensor | None = None
    """Of all rows, where every head answers for rows of its own and their logits have one shape."""
    if CACHE == "cache":
        cache: Any = None
    else:
        past_key_values: Any = None


def hook_heads(model: nn.Module, base: nn.Module, pooling: Pooling, engine: Engine) -> list[Undo]:
    """Let the running plan's heads beside the model answer; return what gives the model its own answer back."""
    called = called_of(base)
    hooks = _Answer(base, pooling, tuple(inspect.signature(called.forward).parameters), engine)
    # In front of the base's own hook, which makes room for a prompt: the heads want the tokens as they were given.
    return [
        before(model, hooks.before, prepend=True),
        after(_read(model, base), hooks.watch),
        after(model, hooks.after, with_kwargs=True),
        _OwnMean(model),
    ]


def _read(model: nn.Module, base: nn.Module) -> nn.Module:
    """Return the module whose output the heads read.

    A model that is its own base may answer with logits (T5ForConditionalGeneration): its decoder has what they are of.
    """
    if base is model and getattr(model, "get_output_embeddings", lambda: None)() is not None:
        decoder = getattr(model, "get_decoder", lambda: None)()
        if isinstance(decoder, nn.Module) and decoder is not model:
            return base_of(decoder)
    return called_of(base)


class _OwnMean:
    """Tell transformers' Trainer that a head's loss is the mean of its batch, and not for it to count labels.

    It counts those that the model's own class would score.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.own = model, model.__dict__.get(_ACCEPTS)
        model.accepts_loss_kwargs = False

    def __call__(self) -> None:
        """Undo it."""
        del self.model.__dict__[_ACCEPTS]
        if self.own is not None:
            self.model.accepts_loss_kwargs = self.own


def hook_copies(model: nn.Module, path: str, engine: Engine) -> list[Undo]:
    """Let copies of one module of the model's own head answer for it; return what undoes it."""
    return [after(model.get_submodule(path), _Instead(path, engine), with_kwargs=True)]


@dataclass(frozen=True, eq=False)
class _Instead:
    """Answer with a copy of a module that holds other weights."""

    path: str
    engine: Engine

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any = None) -> Any:
        if output is None:  # taken away meanwhile
            return None
        plan = self.engine.current()
        found = [] if plan.answer is None else plan.answers(self.engine.call.batch)
        copies = [head.copies[self.path] for head, _ in found if isinstance(head, StaticModule)]
        if not copies:
            return None
        if len(copies) == 1:
            return copies[0](*args, **kwargs)
        indices = [rows for _, rows in found if rows is not None]
        answers = [
            own(*(_cut(value, rows) for value in args), **{name: _cut(value, rows) for name, value in kwargs.items()})
            for own, rows in zip(copies, indices, strict=True)
        ]
        return _in_order(answers, indices)


@dataclass(frozen=True)
class _Pending:
    """What a call gave that the heads read."""

    inputs: dict[str, Any]
    labels: dict[str, Any]
    as_tuple: bool
    total: Any = None
    """Labels of all batches whose gradients are added up (``num_items_in_batch`` of transformers' Trainer), or None."""


@dataclass(frozen=True, eq=False)
class _Answer:
    """Take the labels away from the model, watch its base, and answer with the heads' outputs."""

    base: nn.Module
    pooling: Pooling
    parameters: tuple[str, ...]
    engine: Engine

    def heads(self) -> list[HeadModule]:
        """Return the heads beside the model that answer this call."""
        return heads_beside(self.engine.current())

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        heads = self.heads()
        if kwargs is None or not heads:
            return None
        of_choices = type(module).__name__.endswith("ForMultipleChoice")
        counts = [_said(head, "num_choices") for head in heads if _said(head, "type") == "multiple_choice"]
        if of_choices or counts:
            given = list(zip_longest(self.parameters[: len(args)], args, fillvalue=""))
            _check_choices([*given, *kwargs.items()], counts)
            kwargs = {name: _flat(name, value) for name, value in kwargs.items()}
            args = tuple(_flat(name, value) for name, value in given)
        named = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        inputs = {name: named[name] for name in _KEPT if named.get(name) is not None}
        labels = {name: kwargs[name] for name in _LABELS if kwargs.get(name) is not None}
        total = kwargs.get("num_items_in_batch")
        config = getattr(self.base, "config", None)
        as_tuple = kwargs.get("return_dict", getattr(config, "return_dict", True)) is False
        self.engine.put(_CALL, _Pending(inputs, labels, as_tuple, total))
        kept = {k: v for k, v in kwargs.items() if k not in (*_LABELS, "return_dict", "num_items_in_batch")}
        if getattr(config, "return_dict", True) is False:
            kept["return_dict"] = True
        if getattr(config, "is_encoder_decoder", False) and named.get("decoder_input_ids") is None:
            generates = any(_said(head, "type") == "seq2seq_lm" for head in heads)
            self._give_decoder(named, labels.get("labels") if generates else None, kept)
        if of_choices:  # the class flattens too: every row is the only choice of a question
            return tuple(_apart(value) for value in args), {name: _apart(value) for name, value in kept.items()}
        return args, kept

    def _give_decoder(self, named: dict[str, Any], given: Any, kept: dict[str, Any]) -> None:
        """Make up the decoder's input, as models with heads of their own do."""
        source = named.get("input_ids") if given is None else given
        if not isinstance(source, torch.Tensor) or named.get("decoder_inputs_embeds") is not None:
            return
        kept["decoder_input_ids"] = shifted_right(source, self.base.config)

    def watch(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self.heads():
            self.engine.put(_OUTPUT, output)

    def after(self, *_: Any) -> Any:
        if not self.heads():
            return None
        # When the model is its own base, its hooks run in the order they were added: watch() has run.
        output, pending = self.engine.take(_OUTPUT), self.engine.take(_CALL)
        if output is None or not isinstance(output[0], torch.Tensor):
            raise ModelError("the base model gave no hidden state for the head to read")
        output = _with_hidden_state(output, type(self.base).__name__)
        heads = self.engine.current().answers(output[0].shape[0])
        # A head that answers for all rows sees them as often as Parallel repeats them.
        copies = self.engine.current().copies
        totals = [
            pending.total if rows is not None or pending.total is None else pending.total * copies for _, rows in heads
        ]
        answers = [
            self._answer(head, self._call(head, output, pending, rows), total)
            for (head, rows), total in zip(heads, totals, strict=True)
        ]
        if len(answers) == 1:
            wanted = pending.as_tuple and not isinstance(answers[0], tuple)
            return answers[0].to_tuple() if wanted else answers[0]
        for head, answer in zip(heads, answers, strict=True):
            _check_named(head[0], answer)
        losses = [answer["loss"] for answer in answers if answer.get("loss") is not None]
        made = MultiHeadOutput(
            loss=sum(losses) if losses else None,
            head_outputs=answers,
            logits=_joined([answer.get("logits") for answer in answers], [rows for _, rows in heads], len(output[0])),
            **{CACHE: cache_of(output)},
        )
        return made.to_tuple() if pending.as_tuple else made

    @staticmethod
    def _answer(head: HeadModule, call: HeadCall, total: Any) -> Any:
        """Let a head answer; with a total, its loss is this batch's part of the mean over all labels."""
        answer, labels = head.answer(call), call.labels.get("labels")
        if total is None or not isinstance(labels, torch.Tensor):
            return answer
        _check_named(head, answer)
        if answer.get("loss") is not None:
            scored = labels[..., 1:] if _said(head, "shift_labels") else labels
            answer["loss"] = answer["loss"] * scored.ne(-100).sum() / total
        return answer

    def _call(self, head: HeadModule, output: Any, pending: _Pending, rows: Rows | None) -> HeadCall:
        batch, copies = output[0].shape[0], self.engine.current().copies
        choices = int(_said(head, "num_choices") or 1)

        def cut(value: Any, each: int = 1) -> Any:
            """Cut out rows; ``each`` of the batch are one of the value."""
            if not isinstance(value, torch.Tensor) or not value.dim():
                return value
            value = repeat(value, batch // each // copies, copies)
            if value.shape[0] * each != batch:
                return value
            return _cut(value.repeat_interleave(each, 0), rows)[::each] if each > 1 else _cut(value, rows)

        if rows is not None:
            output = type(output)({k: cut(v) if isinstance(v, torch.Tensor) else v for k, v in output.items()})
        return HeadCall(
            output,
            {k: cut(v) for k, v in pending.inputs.items()},
            {k: cut(v, choices) for k, v in pending.labels.items()},
            self.pooling,
            getattr(self.base, "config", None),
            self.engine.without_prompt,
            lambda hidden: self.engine.unembed(hidden, rows),
        )


def _with_hidden_state(output: Any, name: str) -> Any:
    """Return a base's output with the last hidden state in front; refuse one that holds answers instead."""
    if not isinstance(output, ModelOutput):
        return output
    hidden = output.get("last_hidden_state")
    if hidden is None:
        raise ModelError(
            f"the head reads a hidden state, and {name} answers with {', '.join(output)}",
            hint="load the model without its own head: AutoModel.from_pretrained(…), or one of its towers "
            "(CLIPTextModel, CLIPVisionModel)",
        )
    if hidden is output[0]:
        return output
    rest = {name: output.get(name) for name in ("pooler_output", "hidden_states", "attentions")}
    return BaseModelOutputWithPooling(last_hidden_state=hidden, **rest)


def _check_named(head: HeadModule, answer: Any) -> None:
    if not isinstance(answer, Mapping):
        raise UsageError(
            f"{type(head).__name__} answers with a {type(answer).__name__}: which part is the loss cannot be told",
            hint="a head that answers together with others, or for a Trainer, returns a ModelOutput",
        )


def _check_choices(values: Iterable[tuple[str, Any]], counts: Iterable[int]) -> None:
    given = {value.shape[1] for name, value in values if _flat(name, value) is not value}
    for count in counts:
        if given - {count}:
            raise UsageError(
                f"the questions have {', '.join(map(str, sorted(given)))} choices, and the head knows {count}",
                hint="add the head with MultipleChoiceHead(num_choices=…)",
            )


def _said(head: HeadModule, field: str) -> Any:
    """Return what a head's configuration says, or None: people's own heads need have none."""
    return getattr(getattr(head, "config", None), field, None)


def _joined(logits: list[Any], indices: list[Rows | None], batch: int) -> torch.Tensor | None:
    """Put the logits of heads that answer for different rows into the rows' order, if they fit."""
    if any(rows is None for rows in indices) or not all(isinstance(one, torch.Tensor) and one.dim() for one in logits):
        return None
    total = sum(map(len, logits))
    if len({one.shape[1:] for one in logits}) > 1 or not total or batch % total:
        return None
    each = batch // total  # choices are several rows with one answer
    return _in_order(logits, [torch.arange(batch)[rows][::each] // each for rows in indices])


def _in_order(parts: list[torch.Tensor], indices: list[Rows]) -> torch.Tensor:
    """Put parts together whose rows were taken out with these indices."""
    order = order_of(indices)
    return torch.cat(parts) if order is None else torch.cat(parts)[order]


def _cut(value: Any, rows: Rows | None) -> Any:
    return value[rows] if isinstance(value, torch.Tensor) and rows is not None else value


def _flat(name: str, value: Any) -> Any:
    """Flatten the choices of (batch, choices, seq) tokens, or (batch, choices, seq, hidden) embeddings, into rows."""
    if not isinstance(value, torch.Tensor):
        return value
    chosen = value.dim() == 4 if name == "inputs_embeds" else value.dim() == 3 and not value.is_floating_point()
    return value.flatten(0, 1) if chosen else value


def _apart(value: Any) -> Any:
    """Put a dimension of one choice into (batch, seq) tokens and (batch, seq, hidden) embeddings."""
    if isinstance(value, torch.Tensor) and value.dim() == 2 + value.is_floating_point():
        return value[:, None]
    return value
