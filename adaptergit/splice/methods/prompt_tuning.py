"""Prompt tuning: learned vectors in front of the embedded sequence.

Lester et al. 2021 (arXiv:2104.08691).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import called_of
from adaptergit.splice.config import MethodConfig, register, register_preset
from adaptergit.splice.layers import is_number, require, require_counts, require_one_of
from adaptergit.splice.places import Parts, Prompt

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class PromptTuning(MethodConfig):
    """Configuration of prompt tuning; fields and defaults are those of ``adapters``' ``PromptTuningConfig``."""

    family: ClassVar[str] = "prompt_tuning"

    prompt_length: int = 10
    """Tokens in front of the text."""
    prompt_init: str = "random_uniform"
    """"random_uniform", or "from_string": the embeddings of a text's tokens (``prompt_init_ids``)."""
    prompt_init_text: str | None = None
    """The text, with "from_string"."""
    prompt_init_ids: tuple[int, ...] = ()
    """The text's tokens, repeated to fill the prompt."""
    random_uniform_scale: float = 0.5
    """With "random_uniform": embeddings are drawn between minus and plus this."""
    init_weights_seed: int | None = None
    """Random numbers of the initial weights; None: those of torch's own generator."""
    combine: str = "prefix"
    """"prefix", or "prefix_after_bos": behind the first token."""
    before_positions: bool = False
    """Put the prompt in front of the input embedding, where it gets positions of its own (as PEFT does), and not behind
    the model's embedding layer."""

    def __post_init__(self) -> None:
        require_counts(self, "prompt_length")
        require_one_of(self, combine=("prefix", "prefix_after_bos"), prompt_init=("random_uniform", "from_string"))
        require(is_number(self.random_uniform_scale), "random_uniform_scale must be a number")

    def build(self, host: Host) -> Parts:
        """Make the prompt."""
        parts = Parts()
        embeddings = getattr(host.base, "embeddings", None)
        lookup = _lookup(host)
        settings = getattr(host.base, "config", None)
        if any(getattr(settings, f"use_{kind}relative_position_bias", False) for kind in ("", "shared_")):
            raise ModelError(f"{type(host.base).__name__} knows where each of its patches is: it has none for a prompt")
        behind = isinstance(embeddings, nn.Module) and not self.before_positions and embeddings is not lookup
        taken = inspect.signature(called_of(host.base).forward).parameters
        if not behind and not {"input_ids", "inputs_embeds"} & taken.keys():
            raise ModelError(f"{type(host.base).__name__} is given no tokens: there is no place for a prompt")
        width = getattr(lookup, "embedding_dim", host.hidden_size)
        if behind:  # where ELECTRA's and ALBERT's are still as narrow as the layer's last norm
            norm = getattr(getattr(embeddings, "LayerNorm", None), "weight", None)
            width = host.hidden_size if norm is None else len(norm)
        parts.put(Prompt("embeddings" if behind else ""), PromptSite(self, width))
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Uniform values, or the embeddings of the given tokens."""
        for module in parts.places.values():
            assert isinstance(module, PromptSite)
            scale = self.random_uniform_scale
            nn.init.uniform_(module.prompt_embedding, -scale, scale, generator=generator)
            if self.prompt_init == "from_string":
                table = getattr(_lookup(host), "weight", None)
                if table is None or table.dim() != 2:
                    raise ModelError("prompt_init='from_string' needs a model that embeds tokens")
                tokens = self.prompt_init_ids or _tokens(self.prompt_init_text, host)
                times = -(-self.prompt_length // len(tokens))
                ids = torch.tensor((tokens * times)[: self.prompt_length], device=table.device)
                with torch.no_grad():
                    module.prompt_embedding.copy_(table[ids])


def _lookup(host: Host) -> nn.Module | None:
    try:
        found: nn.Module | None = host.base.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, KeyError):
        return None
    return found


def _tokens(text: str | None, host: Host) -> tuple[int, ...]:
    """Tokenize a text with the tokenizer that the model was loaded with."""
    from transformers import AutoTokenizer

    require(bool(text), "prompt_init='from_string' needs prompt_init_text, or prompt_init_ids, its tokens")
    name = str(getattr(host.base.config, "_name_or_path", ""))
    try:
        tokens = tuple(AutoTokenizer.from_pretrained(name)(text)["input_ids"])
    except (OSError, ValueError) as error:
        raise UsageError(
            f"there is no tokenizer at {name!r}, where the model comes from", hint="pass prompt_init_ids, the tokens"
        ) from error
    require(bool(tokens), f"{text!r} has no tokens")
    return tokens


class PromptSite(nn.Module):
    """The prompt, (length, hidden)."""

    def __init__(self, config: PromptTuning, width: int) -> None:
        super().__init__()
        self.config = config
        self.prompt_embedding = nn.Parameter(torch.empty(config.prompt_length, width))

    @property
    def start(self) -> int:
        """Number of tokens in front of the prompt."""
        return 1 if self.config.combine == "prefix_after_bos" else 0

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Put the prompt into (batch, seq, hidden)."""
        prompt = self.prompt_embedding.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        return torch.cat([hidden[:, : self.start], prompt, hidden[:, self.start :]], dim=1)


register_preset("prompt_tuning", PromptTuning())
