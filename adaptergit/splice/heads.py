"""Prediction heads that live beside the model, as adapters do.

They turn the base model's output into an answer, whatever class the model is. A :class:`StaticHead` is a second set of
weights for the head the model's own class has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils.generic import ModelOutput

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import base_of
from adaptergit.splice.hooks import bare_copy
from adaptergit.splice.inputs import CACHE, cache_of
from adaptergit.splice.layers import activation, is_number

Pooling = Literal["first", "last", "eos"]


@dataclass(frozen=True)
class HeadCall:
    """What a head may read of one call of the model."""

    output: Any
    """The base model's output; its first field is the last hidden state, (batch, seq, hidden)."""
    inputs: Mapping[str, Any]
    """``input_ids`` and ``attention_mask``, each (batch, seq), where given."""
    labels: Mapping[str, torch.Tensor]
    """What training gives: ``labels``, ``start_positions`` …"""
    pooling: Pooling
    config: Any
    """The base model's configuration."""
    without_prompt: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden
    """Take the positions of a prompt out of (batch, seq, …)."""
    unembed: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden
    """Undo an invertible adapter."""

    @property
    def hidden(self) -> torch.Tensor:
        """Last hidden state of the tokens, (batch, seq, hidden): without a prompt's positions."""
        return self.without_prompt(self.output[0])

    @property
    def scaled(self) -> torch.Tensor:
        """Last hidden state as language model heads see it: T5 with tied embeddings scales it."""
        if getattr(self.config, "model_type", "") in ("t5", "mt5") and getattr(
            self.config, "tie_word_embeddings", True
        ):
            scaled: torch.Tensor = self.hidden * float(self.config.d_model) ** -0.5
            return scaled
        return self.hidden

    def pooled(self, use_pooler: bool) -> torch.Tensor:
        """Return one position of every row, (batch, hidden).

        Raises:
            ModelError: The model has no pooler.
        """
        if use_pooler:
            found: torch.Tensor | None = getattr(self.output, "pooler_output", None)
            if found is None:
                raise ModelError(
                    "the head reads the pooler, but this model has none", hint="make it with use_pooler=False"
                )
            return found
        if self.pooling == "first":
            first: torch.Tensor = self.output[0][:, 0]  # a prompt's, if one stands there: in the peers, too
            return first
        hidden = self.hidden
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        ids = self.inputs.get("input_ids")
        if self.pooling == "eos" and isinstance(ids, torch.Tensor):
            if ids.shape[1] > hidden.shape[1]:
                raise ModelError(
                    f"the head reads the decoder where input_ids end, and it was given {hidden.shape[1]} positions",
                    hint="pass decoder_input_ids as long as input_ids: the same tokens, shifted right",
                )
            end = getattr(self.config, "eos_token_id", None)
            if end is None:
                raise ModelError(
                    "the head reads the decoder where input_ids end, and the configuration does not say with what",
                    hint="model.config.eos_token_id = tokenizer.sep_token_id, or what else ends a text",
                )
            marks = ids.eq(end).long()
            positions = torch.arange(ids.shape[1], device=ids.device)
            return hidden[rows, (marks * positions).argmax(dim=1)]
        pad = getattr(self.config, "pad_token_id", None)
        return hidden[rows, last_position(hidden, self.inputs, pad)]

    @property
    def handed_on(self) -> dict[str, Any]:
        """What every answer takes over from the base's output."""
        return {name: getattr(self.output, name, None) for name in ("hidden_states", "attentions")}


@dataclass(frozen=True)
class HeadConfig:
    """Base of head configurations."""

    type: ClassVar[str]

    labels: tuple[str, ...] = field(default=(), kw_only=True)
    """Names in the order of the logits."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain data."""
        return asdict(self)

    def build(self, hidden_size: int, config: Any) -> HeadModule:
        """Make the head's weights, with initial values."""
        raise NotImplementedError


class HeadModule(nn.Module):
    """The weights of a head beside the model."""

    def answer(self, call: HeadCall) -> ModelOutput:
        """Turn the base model's output into the model's answer."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """N(0, 0.02) and zero biases, as BERT's own heads."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


HEADS: dict[str, type[HeadConfig]] = {}
H = TypeVar("H", bound=type[HeadConfig])


def register_head(cls: H) -> H:
    """Register a head's configuration class under its ``type``, so that cards can name it."""
    HEADS[cls.type] = cls
    return cls


def _check_counts(config: HeadConfig, least: int = 1, **limits: int) -> None:
    for name, limit in limits.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
            raise UsageError(f"{name} must be between {least} and {limit:,}, not {value!r}")


def _check_dropout(share: float | None) -> None:
    if share is not None and (not is_number(share) or not 0 <= share < 1):
        raise UsageError(f"dropout_prob must be in [0, 1), not {share!r}")


def _check_width(hidden: torch.Tensor, width: Any) -> None:
    if hidden.shape[-1] != width:
        raise ModelError(
            f"the head reads hidden states that are {width} wide, and was given {tuple(hidden.shape)}",
            hint="load the model without its own head: AutoModel.from_pretrained(…)",
        )


@dataclass(frozen=True)
class LayersHead(HeadConfig):
    """``layers`` times (dropout, linear), activations between. As in ``adapters``."""

    num_labels: int = 2
    """1 means regression, where that means something."""
    layers: int = 2
    activation_function: str | None = "tanh"
    """Between layers: a transformers activation, or None."""
    bias: bool = True
    """The last layer has a bias."""
    dropout_prob: float | None = None
    """None: the model's own dropout."""
    use_pooler: bool = False
    """Read the model's pooler output instead of a position."""

    def __post_init__(self) -> None:
        _check_counts(self, num_labels=10**6, layers=100)
        if self.labels and len(self.labels) != self.num_labels:
            raise UsageError(
                f"{len(self.labels)} labels for {self.num_labels} logits", hint=f"num_labels={len(self.labels)}"
            )
        _check_dropout(self.dropout_prob)
        if self.activation_function is not None:
            activation(self.activation_function)

    @property
    def outputs(self) -> int:
        """Size of the last layer."""
        return self.num_labels

    def build(self, hidden_size: int, config: Any) -> HeadModule:
        """Make the layers."""
        dropout = self.dropout_prob
        for name in ("classifier_dropout", "hidden_dropout_prob", "resid_pdrop"):
            found = getattr(config, name, None)
            dropout = float(found) if dropout is None and isinstance(found, int | float) else dropout
        return LayersModule(self, hidden_size, dropout or 0.0)

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Turn the base model's output into the model's answer."""
        raise NotImplementedError


class LayersModule(HeadModule):
    """The weights of a :class:`LayersHead`."""

    def __init__(self, config: LayersHead, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        sizes = [hidden_size] * config.layers + [config.outputs]
        last = len(sizes) - 2
        self.linears = nn.ModuleList(
            nn.Linear(a, b, bias=config.bias or i < last) for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.activation = activation(config.activation_function) if config.activation_function else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (…, hidden) to (…, outputs)."""
        _check_width(hidden, self.linears[0].in_features)
        out = hidden.to(next(self.parameters()).dtype)
        for index, linear in enumerate(self.linears):
            if index:
                out = self.activation(out)
            out = linear(self.dropout(out))
        return out

    def answer(self, call: HeadCall) -> ModelOutput:
        """As the configuration says."""
        return self.config.answer(self, call)


@register_head
@dataclass(frozen=True)
class ClassificationHead(LayersHead):
    """One class for each row; with one logit, a regression."""

    type: ClassVar[str] = "classification"

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Return logits (batch, labels)."""
        logits = layers(call.pooled(self.use_pooler))
        labels = call.labels.get("labels")
        loss = None
        if labels is not None and self.num_labels == 1:
            loss = F.mse_loss(logits.view(-1), labels.view(-1).to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        return SequenceClassifierOutput(loss=loss, logits=logits, **call.handed_on)


@register_head
@dataclass(frozen=True)
class MultiLabelHead(LayersHead):
    """Any number of classes for each row."""

    type: ClassVar[str] = "multilabel_classification"

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Return logits (batch, labels)."""
        logits = layers(call.pooled(self.use_pooler))
        labels = call.labels.get("labels")
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return SequenceClassifierOutput(loss=loss, logits=logits, **call.handed_on)


@register_head
@dataclass(frozen=True)
class ImageClassificationHead(LayersHead):
    """Classes of an image."""

    type: ClassVar[str] = "image_classification"

    multilabel: bool = False

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Return logits (batch, labels)."""
        return (MultiLabelHead if self.multilabel else ClassificationHead).answer(self, layers, call)  # type: ignore[arg-type]


@register_head
@dataclass(frozen=True)
class TaggingHead(LayersHead):
    """One class for each token."""

    type: ClassVar[str] = "tagging"

    layers: int = 1

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Return logits (batch, seq, labels)."""
        logits = layers(call.hidden)
        labels, mask, loss = call.labels.get("labels"), call.inputs.get("attention_mask"), None
        if labels is not None:
            kept = labels if mask is None else labels.masked_fill(mask != 1, -100)
            loss = F.cross_entropy(logits.view(-1, self.num_labels), kept.view(-1))
        return TokenClassifierOutput(loss=loss, logits=logits, **call.handed_on)


@register_head
@dataclass(frozen=True)
class QuestionAnsweringHead(LayersHead):
    """First and last token of an answer."""

    type: ClassVar[str] = "question_answering"

    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels != 2:
            raise UsageError(f"an answer has a first and a last token: num_labels is 2, not {self.num_labels}")

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Return logits of first and last positions, each (batch, seq)."""
        logits = layers(call.scaled)
        first, last = logits[..., 0], logits[..., 1]
        loss = None
        if {"start_positions", "end_positions"} <= call.labels.keys():
            length = first.shape[1]
            losses = [
                F.cross_entropy(scores, call.labels[name].view(-1).clamp(0, length), ignore_index=length)
                for scores, name in ((first, "start_positions"), (last, "end_positions"))
            ]
            loss = (losses[0] + losses[1]) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=first, end_logits=last, **call.handed_on)


@register_head
@dataclass(frozen=True)
class MultipleChoiceHead(LayersHead):
    """One of several choices; inputs are (batch, choices, seq), or flattened to (batch · choices, seq)."""

    type: ClassVar[str] = "multiple_choice"

    num_choices: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, num_choices=10**6)

    @property
    def outputs(self) -> int:
        """One score for each choice."""
        return 1

    def answer(self, layers: LayersModule, call: HeadCall) -> ModelOutput:
        """Return logits (batch, choices)."""
        scores = layers(call.pooled(self.use_pooler))
        if len(scores) % self.num_choices:
            raise UsageError(
                f"{len(scores)} rows are no questions with {self.num_choices} choices each",
                hint="call the model with (batch, choices, seq), or with all choices of every question",
            )
        logits = scores.view(-1, self.num_choices)
        labels = call.labels.get("labels")
        loss = None if labels is None else F.cross_entropy(logits, labels.view(-1))
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **call.handed_on)


@dataclass(frozen=True)
class LanguageModelHead(HeadConfig):
    """(linear, activation, norm) ``layers - 1`` times, then the output embedding. As in ``adapters``."""

    vocab_size: int = 0
    """0: the model's."""
    embedding_size: int | None = None
    """Input size of the output embedding; None: the hidden size."""
    layers: int = 1
    activation_function: str | None = None
    layer_norm: bool = False
    bias: bool = False
    shift_labels: bool = True
    """Every position is compared with the label of the next."""

    def __post_init__(self) -> None:
        _check_counts(self, layers=100)
        _check_counts(self, least=0, vocab_size=10**8)
        if self.embedding_size is not None:
            _check_counts(self, embedding_size=10**6)
        if self.activation_function is not None:
            activation(self.activation_function)

    def build(self, hidden_size: int, config: Any) -> HeadModule:
        """Make the layers."""
        eps = getattr(config, "layer_norm_eps", 1e-12)
        return LanguageModelModule(self, hidden_size, self.vocab_size or int(config.vocab_size), float(eps))


@register_head
@dataclass(frozen=True)
class CausalLMHead(LanguageModelHead):
    """The next token."""

    type: ClassVar[str] = "causal_lm"


@register_head
@dataclass(frozen=True)
class Seq2SeqLMHead(LanguageModelHead):
    """The next token of a decoder; labels are shifted by the model."""

    type: ClassVar[str] = "seq2seq_lm"

    shift_labels: bool = False


@register_head
@dataclass(frozen=True)
class MaskedLMHead(LanguageModelHead):
    """The tokens behind masks."""

    type: ClassVar[str] = "masked_lm"

    layers: int = 2
    activation_function: str | None = "gelu"
    layer_norm: bool = True
    bias: bool = True
    shift_labels: bool = False


class LanguageModelModule(HeadModule):
    """The weights of a :class:`LanguageModelHead`."""

    def __init__(self, config: LanguageModelHead, hidden_size: int, vocabulary: int, eps: float) -> None:
        super().__init__()
        self.config = config
        size = config.embedding_size or hidden_size
        steps: list[nn.Module] = []
        for index in range(config.layers - 1):
            steps.append(nn.Linear(size if index else hidden_size, size))
            if config.activation_function:
                steps.append(activation(config.activation_function))
            if config.layer_norm:
                steps.append(nn.LayerNorm(size, eps=eps))
        self.transform = nn.Sequential(*steps)
        self.decoder = nn.Linear(size, vocabulary, bias=config.bias)
        self.reset_parameters()

    def answer(self, call: HeadCall) -> ModelOutput:
        """Return logits (batch, seq, vocabulary)."""
        hidden = call.scaled.to(self.decoder.weight.dtype)
        _check_width(hidden, (*self.transform, self.decoder)[0].in_features)
        logits = self.decoder(call.unembed(self.transform(hidden)))
        labels, loss = call.labels.get("labels"), None
        if labels is not None:
            scores, wanted = (logits[:, :-1], labels[:, 1:]) if self.config.shift_labels else (logits, labels)
            loss = F.cross_entropy(scores.reshape(-1, logits.shape[-1]), wanted.reshape(-1))
        if self.config.type == "masked_lm":
            return MaskedLMOutput(loss=loss, logits=logits, **call.handed_on)
        if self.config.type == "seq2seq_lm":
            return Seq2SeqLMOutput(
                loss=loss,
                logits=logits,
                **{CACHE: cache_of(call.output)},
                encoder_last_hidden_state=getattr(call.output, "encoder_last_hidden_state", None),
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache_of(call.output)}, **call.handed_on)


@dataclass
class DependencyParsingOutput(ModelOutput):
    """Scores of arcs (batch, seq, seq + 1) and of relations (batch, seq, seq + 1, labels).

    The first rows and columns are the words', as many as there are; 0 of the columns is the root.
    """

    loss: torch.Tensor | None = None
    rel_preds: torch.Tensor | None = None
    arc_preds: torch.Tensor | None = None
    hidden_states: Any = None
    attentions: Any = None


@register_head
@dataclass(frozen=True)
class DependencyParsingHead(HeadConfig):
    """A biaffine parser (Dozat & Manning 2017, arXiv:1611.01734; Glavaš & Vulić 2021, arXiv:2008.06788).

    Calls give ``word_starts`` (batch, words + 1): the first token of every word, and where the last one ends; padded.
    To train, ``labels_arcs`` and ``labels_rels`` (batch, words): the head of every word, 0 the root, and its relation.
    """

    type: ClassVar[str] = "dependency_parsing"

    num_labels: int = 2
    dropout_prob: float | None = None

    def __post_init__(self) -> None:
        _check_counts(self, num_labels=10**6)
        _check_dropout(self.dropout_prob)

    def build(self, hidden_size: int, config: Any) -> HeadModule:
        """Make the biaffine maps."""
        dropout = self.dropout_prob if self.dropout_prob is not None else getattr(config, "hidden_dropout_prob", 0.0)
        return ParserModule(self, hidden_size, float(dropout or 0.0))


class ParserModule(HeadModule):
    """``biaffine_arcs.weight`` (1, hidden + 1, hidden), ``biaffine_rels.weight`` (labels, hidden + 1, hidden + 1)."""

    def __init__(self, config: DependencyParsingHead, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.biaffine_arcs = _Biaffine(1, hidden_size + 1, hidden_size)
        self.biaffine_rels = _Biaffine(config.num_labels, hidden_size + 1, hidden_size + 1)
        self.dropout = nn.Dropout(dropout)

    def answer(self, call: HeadCall) -> ModelOutput:
        """Score every word as the head of every other; 0 is the root."""
        starts = call.labels.get("word_starts")
        if starts is None:
            raise UsageError(
                "a dependency parsing head needs word_starts",
                hint="model(…, word_starts=…): each word's first token, and where the last one ends",
            )
        hidden = self.dropout(call.hidden).to(self.biaffine_arcs.weight.dtype)
        _check_width(hidden, self.biaffine_arcs.weight.shape[2])
        pad = getattr(call.config, "pad_token_id", None)
        words = _words(hidden, starts, pad)
        heads = torch.cat([hidden[:, :1], words], dim=1)
        arcs = self.biaffine_arcs(words, heads).squeeze(1)
        relations = self.biaffine_rels(words, heads).permute(0, 2, 3, 1)
        loss = None
        wanted_arcs, wanted = call.labels.get("labels_arcs"), call.labels.get("labels_rels")
        if wanted_arcs is not None and wanted is not None:
            real = wanted_arcs.ne(-100 if pad is None else pad)
            chosen = wanted_arcs[real]
            count = wanted_arcs.shape[1]  # words, or as many as tokens
            arcs_of, relations_of = arcs[:, :count][real], relations[:, :count][real]
            scores = relations_of[torch.arange(len(chosen), device=chosen.device), chosen]
            loss = F.cross_entropy(arcs_of, chosen) + F.cross_entropy(scores, wanted[real])
        return DependencyParsingOutput(loss=loss, rel_preds=relations, arc_preds=arcs, **call.handed_on)


class _Biaffine(nn.Module):
    def __init__(self, outputs: int, left: int, right: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, left, right))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Map (batch, words, hidden) and (batch, heads, hidden) to (batch, outputs, words, heads)."""
        x, y = (
            torch.cat([t, torch.ones_like(t[..., :1])], -1) if t.shape[-1] < size else t
            for t, size in zip((x, y), self.weight.shape[1:], strict=True)
        )
        return torch.einsum("bxi,oij,byj->boxy", x, self.weight, y)


def _words(hidden: torch.Tensor, starts: torch.Tensor, pad: int | None) -> torch.Tensor:
    """Average the tokens of every word: (batch, seq, hidden), zeros behind the last word."""
    out = hidden.new_zeros(hidden.shape)
    for row, given in enumerate(starts):
        bounds = [int(start) for start in given if pad is None or int(start) != pad]
        for word, (first, last) in enumerate(pairwise(bounds)):
            if last <= 0:
                break
            out[row, word] = hidden[row, first:last].mean(dim=0)
    return out


@register_head
@dataclass(frozen=True)
class StaticHead(HeadConfig):
    """The head of the model's own class, for example ``BertForSequenceClassification``'s classifier."""

    type: ClassVar[str] = "static"

    model_class: str = ""
    num_labels: int | None = None
    """Of the model's configuration; None where it means nothing."""


def head_from_dict(kind: str, raw: Mapping[str, Any], labels: tuple[str, ...]) -> HeadConfig:
    """Build a head configuration from a card.

    Raises:
        UsageError: An unknown head type, field or value.
    """
    if kind not in HEADS:
        raise UsageError(
            f"unknown head type {kind!r}", hint=f"known: {', '.join(sorted(HEADS))}; is adaptergit up to date?"
        )
    try:
        return HEADS[kind](**{**raw, "labels": labels})
    except TypeError as error:
        raise UsageError(f"{kind} head: {error}") from error


class StaticModule(nn.Module):
    """Copies of the modules that the model's class puts on top of its base."""

    def __init__(self, config: StaticHead, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.paths = static_paths(model)
        if not self.paths:
            raise ModelError(
                f"{type(model).__name__} has no head of its own",
                hint="load a class that has one: AutoModelForSequenceClassification …",
            )
        self.copies = nn.ModuleDict({path: bare_copy(model.get_submodule(path)) for path in self.paths})

    def reset_parameters(self) -> None:
        """Keep the values copied from the model."""


def static_head_of(model: nn.Module) -> StaticHead:
    """Describe the head of the model's own class."""
    config = getattr(model, "config", None)
    names = getattr(config, "id2label", None) or {}
    labelled = "num_labels" in inspect.signature(type(model).forward).parameters or hasattr(model, "num_labels")
    count = int(getattr(config, "num_labels", 0)) if labelled else None
    labels = tuple(str(names[i]) for i in sorted(names)) if labelled and len(set(names.values())) == count else ()
    return StaticHead(type(model).__name__, count, labels=labels)


def static_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the children of ``model`` outside its base that have parameters of their own.

    What scores tokens is no head of a task, tied to the embedding or not.
    """
    base = base_of(model)
    if base is model or type(model).__name__ in MODEL_MAPPING_NAMES.values():  # DINOv3's base has a base
        return ()
    tied = {id(p) for p in base.parameters()}
    scoring = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(scoring, nn.Module):
        tied |= {id(p) for p in scoring.parameters()}
    return tuple(
        name
        for name, child in model.named_children()
        if child is not base
        and name != "adaptergit"
        and any(True for _ in child.parameters())
        and not any(id(p) in tied for p in child.parameters())
    )


def build_head(config: HeadConfig, model: nn.Module, hidden_size: int) -> nn.Module:
    """Make a head's modules, with initial values.

    Raises:
        ModelError: It does not fit the model's class.
    """
    if not isinstance(config, HeadConfig):
        raise UsageError(f"{config!r} is not a head's configuration", hint="ClassificationHead(num_labels=2), …")
    if not isinstance(config, StaticHead):
        whole = getattr(model, "config", None)
        return config.build(hidden_size, whole if hasattr(whole, "vocab_size") else getattr(whole, "decoder", whole))
    if config.model_class and config.model_class != type(model).__name__:
        raise ModelError(
            f"the head belongs to {config.model_class}, the model is a {type(model).__name__}",
            hint=f"load the model as {config.model_class}, or load with head=False",
        )
    return StaticModule(config, model)


def last_position(hidden: torch.Tensor, inputs: Mapping[str, Any], pad_id: int | None) -> torch.Tensor:
    """Index of the last token that is no padding, (batch,)."""
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        positions = torch.arange(mask.shape[1], device=mask.device)
        return (mask.to(torch.long) * positions).argmax(dim=1)
    if isinstance(ids, torch.Tensor) and pad_id is not None:
        return (ids.ne(pad_id).sum(dim=1) - 1).clamp(min=0)
    return torch.full((hidden.shape[0],), hidden.shape[1] - 1, device=hidden.device)
