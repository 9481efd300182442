"""Added embeddings: another vocabulary in front of (and behind) the same blocks.

Artetxe et al. 2020 (arXiv:1910.11856) and MAD-X 2.0 (Pfeiffer et al. 2021, arXiv:2012.15562): a language the model's
vocabulary serves badly gets a tokenizer and an embedding matrix of its own, trained with its language adapter.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.hooks import Undo, after, before

if TYPE_CHECKING:
    from adaptergit.splice.engine import Engine

_INITIAL_STD = 0.02


@dataclass(frozen=True)
class EmbeddingsConfig:
    """Shape of added embeddings."""

    tokens: int
    """Size of the vocabulary."""
    size: int
    """Of one token's vector."""
    padding: int | None = None
    """Token whose vector stays zero."""
    output_size: int | None = None
    """Input size of an output embedding of their own; None: the same matrix is used, as in models that tie the two."""
    output_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "size", "padding", "output_size"):
            value = getattr(self, name)
            least = 0 if name == "padding" else 1
            optional = name in ("padding", "output_size")
            if (value is None and optional) or (type(value) is int and least <= value <= 10**8):
                continue
            raise UsageError(f"embeddings: {name} must be a number from {least} on, not {value!r}")
        if type(self.output_bias) is not bool or (self.padding or 0) >= self.tokens:
            raise UsageError(f"embeddings: output_bias or padding is not possible: {self}")

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain data."""
        return asdict(self)


class Embeddings(nn.Module):
    """``input.weight`` (tokens, size); ``output_weight`` (tokens, output_size) and ``output_bias`` (tokens,) if any."""

    def __init__(self, config: EmbeddingsConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        host = input_embedding(model)
        if host.weight.shape[1] != config.size:
            raise ModelError(f"the embeddings are {config.size} wide, the model's {host.weight.shape[1]}")
        # A twin of the model's own embedding: some scale what they look up.
        self.input = _twin(host, nn.Parameter(torch.empty(config.tokens, config.size)), config.padding)
        self.output_weight = (
            None if config.output_size is None else nn.Parameter(torch.empty(config.tokens, config.output_size))
        )
        self.output_bias = nn.Parameter(torch.empty(config.tokens)) if config.output_bias else None

    @staticmethod
    def host(model: nn.Module) -> nn.Embedding:
        """Return the embedding these stand in for."""
        return input_embedding(model)

    def reset_parameters(self) -> None:
        """N(0, 0.02), zero for the padding and the bias."""
        for weight in (self.input.weight, self.output_weight):
            if weight is not None:
                nn.init.normal_(weight, std=_INITIAL_STD)
        if self.config.padding is not None:
            with torch.no_grad():
                self.input.weight[self.config.padding].zero_()
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    @torch.no_grad()
    def copy_tokens(self, pairs: Mapping[int, int], source: Embeddings | nn.Module) -> None:
        """Start tokens with the vectors that tokens of another vocabulary have.

        Args:
            pairs: Own token to the other's.
            source: Added embeddings, or the model.
        """
        if not pairs:
            return
        own, other = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
        if isinstance(source, Embeddings):
            found = (source.input.weight, source.output_weight, source.output_bias)
        else:
            output = output_embedding(source)
            found = (input_embedding(source).weight, getattr(output, "weight", None), getattr(output, "bias", None))
        for mine, theirs in zip((self.input.weight, self.output_weight, self.output_bias), found, strict=True):
            if mine is not None and theirs is not None:
                mine[own.to(mine.device)] = theirs[other.to(theirs.device)].to(mine)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (batch, seq, size) to (batch, seq, tokens)."""
        weight = self.input.weight if self.output_weight is None else self.output_weight
        return F.linear(hidden, weight, self.output_bias)


def config_for(model: nn.Module, tokens: int, padding: int | None) -> EmbeddingsConfig:
    """Describe embeddings for a model: tied to its output embedding as its own are.

    Raises:
        ModelError: It embeds no tokens.
    """
    own, output = input_embedding(model), output_embedding(model)
    untied = output is not None and output.weight is not own.weight
    return EmbeddingsConfig(
        tokens,
        own.weight.shape[1],
        padding,
        output.weight.shape[1] if output is not None and untied else None,
        output is not None and getattr(output, "bias", None) is not None,
    )


def input_embedding(model: nn.Module) -> nn.Embedding:
    """Return the module that looks tokens up.

    Raises:
        ModelError: There is none.
    """
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]  # of transformers models
    except (AttributeError, NotImplementedError, KeyError):
        found = None
    if not isinstance(found, nn.Embedding):
        raise ModelError(f"{type(model).__name__} looks up no tokens, or in a way that is not known")
    return found


def output_embedding(model: nn.Module) -> nn.Linear | None:
    """Return the linear layer that scores tokens, or None."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return found if isinstance(found, nn.Linear) else None


def input_paths(model: nn.Module) -> list[str]:
    """Return the modules that look up in the input embedding's weights: encoder and decoder may share them."""
    weight = input_embedding(model).weight
    return [
        path for path, module in model.named_modules() if isinstance(module, nn.Embedding) and module.weight is weight
    ]


def _twin(host: nn.Embedding, weight: nn.Parameter, padding: int | None) -> nn.Embedding:
    twin = copy.copy(host)
    twin.__dict__ = {
        **{key: value for key, value in host.__dict__.items() if not key.startswith("_hf_") and key != "forward"},
        "_parameters": {"weight": weight},
        "_buffers": dict(host._buffers),
        "_modules": {},
        "num_embeddings": weight.shape[0],
        "padding_idx": padding,
    }
    for name in list(twin.__dict__):
        if "_hooks" in name and isinstance(twin.__dict__[name], dict):
            twin.__dict__[name] = OrderedDict()
    return twin


def hook_embeddings(model: nn.Module, engine: Engine) -> list[Undo]:
    """Let the embeddings of the running plan stand in for the model's own; return what undoes it."""
    undo = []
    for path in input_paths(model):
        module, hook = model.get_submodule(path), _Instead(engine, f"tokens of {path}", "input")
        # In front of whatever is added to the embedded tokens.
        undo += [before(module, hook.before), after(module, hook.after, prepend=True)]
    output = output_embedding(model)
    if output is not None:
        hook = _Instead(engine, "hidden states to score", "logits")
        undo += [before(output, hook.before), after(output, hook.after, prepend=True)]
        sized = _Sized(engine, model)
        undo += [before(model, sized.before), after(model, sized.after, always_call=True), sized.after]
    return undo


@dataclass(frozen=True, eq=False)
class _Instead:
    """Give the module nothing to do, and answer for it."""

    engine: Engine
    key: str
    what: str

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or self.engine.current().embeddings is None:
            return None
        (given,) = (*args, *kwargs.values())
        self.engine.put(self.key, given)
        return (given[:0],), {}

    def after(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> Any:
        embeddings = self.engine.current().embeddings
        if embeddings is None:
            return None
        given = self.engine.take(self.key)
        assert given is not None
        return embeddings.get_submodule("input")(given) if self.what == "input" else embeddings.logits(given)


class _Sized:
    """What a language model's own forward knows of the size of its vocabulary, changed for the time of a call."""

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        self.engine, self.model = engine, model
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        owners = [config, *([text] if text is not config else []), model]
        self.owners = [owner for owner in owners if type(getattr(owner, "vocab_size", None)) is int]
        self.sizes = [owner.vocab_size for owner in self.owners]
        self.bias: Any = None
        """``final_logits_bias`` of BART and its relatives, while another stands in."""

    def before(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        self.after()  # of a call that was interrupted
        embeddings = self.engine.current().embeddings
        if kwargs is None or embeddings is None:
            return
        if kwargs.get("labels") is not None:  # losses read the size from the configuration
            for owner in self.owners:
                owner.vocab_size = embeddings.config.tokens
        bias = getattr(self.model, "final_logits_bias", None)
        if isinstance(bias, torch.Tensor):
            self.bias, self.model.final_logits_bias = bias, bias.new_zeros(1, embeddings.config.tokens)

    def after(self, *_: Any) -> None:
        for owner, size in zip(self.owners, self.sizes, strict=True):
            if owner.vocab_size != size:
                owner.vocab_size = size
        if self.bias is not None:
            self.model.final_logits_bias, self.bias = self.bias, None
