"""Prediction heads that live beside the model, as adapters do.

A :class:`ClassificationHead` turns the last hidden state into logits, whatever class the model is. A
:class:`StaticHead` is a second set of weights for the head the model's own class has.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom
from transformers.modeling_outputs import SequenceClassifierOutput

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import base_of
from adaptergit.splice.methods.bottleneck import activation


@dataclass(frozen=True)
class HeadConfig:
    """Base of head configurations."""

    type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class ClassificationHead(HeadConfig):
    """``layers`` times (dropout, linear), activations between; reads one position. As in ``adapters``."""

    type: ClassVar[str] = "classification"

    num_labels: int = 2
    """1 means regression."""
    layers: int = 2
    activation_function: str | None = "tanh"
    bias: bool = True
    dropout_prob: float | None = None
    """None: the model's own hidden dropout."""
    use_pooler: bool = False
    """Read the model's pooler output instead of a position."""
    labels: tuple[str, ...] = ()
    """Names in the order of the logits."""

    def __post_init__(self) -> None:
        for name in ("num_labels", "layers"):
            value = getattr(self, name)
            limit = 100 if name == "layers" else 10**6
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise UsageError(f"{name} must be between 1 and {limit:,}, not {value!r}")
        if self.labels and len(self.labels) != self.num_labels:
            raise UsageError(f"{len(self.labels)} labels for {self.num_labels} logits")
        if self.dropout_prob is not None and not 0 <= self.dropout_prob < 1:
            raise UsageError(f"dropout_prob must be in [0, 1), not {self.dropout_prob!r}")
        if self.activation_function is not None:
            activation(self.activation_function)


@dataclass(frozen=True)
class StaticHead(HeadConfig):
    """The head of the model's own class, for example ``BertForSequenceClassification``'s classifier."""

    type: ClassVar[str] = "static"

    model_class: str = ""
    num_labels: int | None = None
    """Of the model's configuration; None where it means nothing."""
    labels: tuple[str, ...] = ()


_TYPES: dict[str, type[HeadConfig]] = {c.type: c for c in (ClassificationHead, StaticHead)}


def head_from_dict(kind: str, raw: Mapping[str, Any], labels: tuple[str, ...]) -> HeadConfig:
    """Build a head configuration from a card.

    Raises:
        UsageError: An unknown head type, field or value.
    """
    if kind not in _TYPES:
        raise UsageError(
            f"unknown head type {kind!r}", hint=f"known: {', '.join(sorted(_TYPES))}; is adaptergit up to date?"
        )
    try:
        return _TYPES[kind](**{**raw, "labels": labels})
    except TypeError as error:
        raise UsageError(f"{kind} head: {error}") from error


class ClassificationModule(nn.Module):
    """The weights of a :class:`ClassificationHead`."""

    def __init__(self, config: ClassificationHead, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        sizes = [hidden_size] * config.layers + [config.num_labels]
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=config.bias) for a, b in pairwise(sizes))
        self.activation = activation(config.activation_function) if config.activation_function else nn.Identity()
        self.dropout = nn.Dropout(dropout if config.dropout_prob is None else config.dropout_prob)

    def reset_parameters(self) -> None:
        """N(0, 0.02) and zero biases, as BERT's own heads."""
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map (batch, hidden) to logits (batch, num_labels)."""
        out = pooled
        for index, linear in enumerate(self.linears):
            if index:
                out = self.activation(out)
            out = linear(self.dropout(out))
        return out

    def output(
        self,
        base_output: Any,
        pooling: Literal["first", "last"],
        inputs: Mapping[str, Any],
        pad_id: int | None,
        labels: torch.Tensor | None,
    ) -> SequenceClassifierOutput:
        """Turn the base model's output into logits and, with labels, a loss.

        Args:
            base_output: With ``last_hidden_state`` (batch, seq, hidden).
            pooling: Which position to read.
            inputs: The call's ``input_ids`` and ``attention_mask``, each (batch, seq), where given.
            pad_id: The padding token.
            labels: (batch,), classes or, with one logit, floats.
        """
        hidden = base_output[0]
        if self.config.use_pooler:
            pooled = getattr(base_output, "pooler_output", None)
            if pooled is None:
                raise ModelError("the head reads the pooler, but this model has none")
        elif pooling == "first":
            pooled = hidden[:, 0]
        else:
            pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), _last_position(hidden, inputs, pad_id)]
        logits = self(pooled.to(self.linears[0].weight.dtype))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits.view(-1), labels.view(-1).to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits.view(-1, self.config.num_labels), labels.view(-1))
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(base_output, "hidden_states", None),
            attentions=getattr(base_output, "attentions", None),
        )


class StaticModule(nn.Module):
    """Copies of the modules that the model's class puts on top of its base."""

    def __init__(self, config: StaticHead, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.paths = static_paths(model)
        if not self.paths:
            raise ModelError(f"{type(model).__name__} has no head of its own")
        self.copies = nn.ModuleDict({path: copy.deepcopy(model.get_submodule(path)) for path in self.paths})

    def reset_parameters(self) -> None:
        """Keep the values copied from the model."""


def static_head_of(model: nn.Module) -> StaticHead:
    """Describe the head of the model's own class."""
    config = getattr(model, "config", None)
    names = getattr(config, "id2label", None) or {}
    labelled = "num_labels" in inspect.signature(type(model).forward).parameters or hasattr(model, "num_labels")
    count = int(getattr(config, "num_labels", 0)) if labelled else None
    labels = tuple(str(names[i]) for i in sorted(names)) if labelled and len(set(names.values())) == count else ()
    return StaticHead(type(model).__name__, count, labels)


def static_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the children of ``model`` outside its base that have parameters of their own, not tied to the base's."""
    base = base_of(model)
    if base is model:
        return ()
    tied = {id(p) for p in base.parameters()}
    return tuple(
        name
        for name, child in model.named_children()
        if child is not base
        and name != "adaptergit"
        and any(True for _ in child.parameters())
        and not any(id(p) in tied for p in child.parameters())
    )


def build_head(config: HeadConfig, model: nn.Module, hidden_size: int) -> nn.Module:
    """Make a head's modules, with initial values."""
    if isinstance(config, ClassificationHead):
        model_config = getattr(model, "config", None)
        dropout = getattr(model_config, "hidden_dropout_prob", getattr(model_config, "resid_pdrop", 0.0))
        module: nn.Module = ClassificationModule(config, hidden_size, float(dropout))
        assert isinstance(module, ClassificationModule)
        module.reset_parameters()
        return module
    if isinstance(config, StaticHead):
        if config.model_class and config.model_class != type(model).__name__:
            raise ModelError(
                f"the head belongs to {config.model_class}, the model is a {type(model).__name__}",
                hint=f"load the model as {config.model_class}, or load with head=False",
            )
        return StaticModule(config, model)
    raise UsageError(f"{config!r} is not a head")


def _last_position(hidden: torch.Tensor, inputs: Mapping[str, Any], pad_id: int | None) -> torch.Tensor:
    """Index of the last token that is no padding, (batch,)."""
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        positions = torch.arange(mask.shape[1], device=mask.device)
        return (mask.to(torch.long) * positions).argmax(dim=1)
    if isinstance(ids, torch.Tensor) and pad_id is not None:
        return (ids.ne(pad_id).sum(dim=1) - 1).clamp(min=0)
    return torch.full((hidden.shape[0],), hidden.shape[1] - 1, device=hidden.device)
