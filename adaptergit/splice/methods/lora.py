"""LoRA: a low-rank update beside a linear layer; with DoRA, rsLoRA and gating.

Hu et al. 2022 (arXiv:2106.09685): ``y = W x + b + s · B A x`` with ``s = alpha / r``, or ``alpha / √r`` (Kalajdzievski
2023, arXiv:2312.03732). DoRA (Liu et al. 2024, arXiv:2402.09353): ``y = b + m / ‖W + s B A‖ · (W x + s · B A x)``,
norms per output row. Gated LoRA (UniPELT, Mao et al. 2022, arXiv:2110.07577): the mean over the sequence of
``sigmoid(W_g x)`` takes the place of ``s``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.splice.config import register, register_preset
from adaptergit.splice.layers import require, require_one_of
from adaptergit.splice.methods.projections import LowRank, LowRankSite, Target, spread
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class LoRA(LowRank):
    """Configuration of LoRA; fields and defaults are those of ``adapters``' ``LoRAConfig``, with some of PEFT's.

    Examples:
        >>> LoRA(r=4, alpha=16).scaling(4)
        4.0
    """

    family: ClassVar[str] = "lora"
    starts: ClassVar[tuple[str, ...]] = ("lora", "bert")
    """"lora" (A kaiming, B zero) or "bert" (both N(0, 0.02))."""
    gated: ClassVar[bool] = True

    use_dora: bool = False
    """DoRA (Liu et al. 2024, arXiv:2402.09353): norms of the weight's rows are trained apart from their directions."""
    vera_d: float | None = None
    """Of VeRA, which is a method of its own here."""
    vera_b: float | None = None
    """Of VeRA, as ``vera_d``."""
    dora_norm: str = "paper"
    """"paper", or "adapters": that library leaves alpha/r out of the norm and scales the bias too."""
    use_rslora: bool = False
    """Scale by ``alpha / √r`` (Kalajdzievski 2023, arXiv:2312.03732)."""
    rank_pattern: Mapping[str, int] | None = None
    """Other ranks for some paths."""
    alpha_pattern: Mapping[str, float] | None = None
    """Other alphas for some paths."""
    lora_bias: bool = False
    """A bias beside B."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.vera_d is None and self.vera_b is None, "vera_d and vera_b are fields of vera")
        require_one_of(self, dora_norm=("paper", "adapters"))
        require(not (self.use_gating and self.use_dora), "gating and DoRA do not go together")

    @property
    def method(self) -> str:
        """``lora`` or ``dora``."""
        return "dora" if self.use_dora else "lora"

    @property
    def embeds(self) -> bool:
        """Tokens pick columns of A; there is nothing that a gate could read."""
        return not self.use_gating

    def scaling(self, r: int, alpha: float | None = None) -> float:
        """Return the factor of the update."""
        return (self.alpha if alpha is None else alpha) / (math.sqrt(r) if self.use_rslora else r)

    def build(self, host: Host) -> Parts:
        """Make the matrices of every linear layer that the configuration names."""
        return self.put(host, lambda target, layer: LoRASite(self, target, layer), fused=not self.use_dora)

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Fill A and B; DoRA's magnitudes are the norms of the host's weights."""
        for module in parts.places.values():
            assert isinstance(module, LoRASite)
            module.reset_parameters(generator)


class LoRASite(LowRankSite):
    """The matrices at one linear layer.

    ``lora_A`` (r·n, inputs) and ``lora_B`` (outputs of n slots, r): n is 1, or the number of matrices adapted in a
    fused layer.
    """

    config: LoRA

    def __init__(self, config: LoRA, target: Target, host: nn.Module) -> None:
        path = target.place.path
        r = int((config.rank_pattern or {}).get(path, config.r))
        scale = config.scaling(r, (config.alpha_pattern or {}).get(path))
        super().__init__(config, target, host, scale=scale, dora=config.use_dora)
        self.r = r
        outputs = sum(self.sizes)
        self.lora_A = nn.Parameter(torch.empty(r * len(target.slots), target.inputs))
        self.lora_B = nn.Parameter(torch.empty(outputs, r))
        self.lora_bias = nn.Parameter(torch.empty(outputs)) if config.lora_bias else None

    @property
    def sizes(self) -> list[int]:
        """Outputs of the slots."""
        return [stop - start for start, stop in self.target.slots]

    def factors(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return A (r, inputs) and B (outputs of the slot, r) of every slot."""
        slots = zip(self.lora_A.chunk(len(self.target.slots)), torch.split(self.lora_B, self.sizes), strict=True)
        return list(slots)

    @property
    def rowwise(self) -> bool:
        """Whether many of its kind can run at once, each on a row: without norms of whole matrices."""
        return not self.config.use_dora

    @property
    def scales_bias(self) -> bool:
        """As the configuration says."""
        return self.config.dora_norm == "adapters"

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Fill with initial values."""
        if self.config.init_weights == "lora":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(self.lora_B)
        else:
            nn.init.normal_(self.lora_A, std=0.02, generator=generator)
            nn.init.normal_(self.lora_B, std=0.02, generator=generator)
        if self.lora_bias is not None:
            nn.init.zeros_(self.lora_bias)
        super().reset_parameters(generator)

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``s · B A x``, (batch, seq, outputs); ``x`` is the update before it in a Stack."""
        x = inputs if before is None else before
        if x.is_floating_point():
            inner = self.dropout(x).to(self.lora_A.dtype) @ self.lora_A.T
        else:  # an embedding: tokens pick columns of A
            inner = F.embedding(x, self.lora_A.T)
        slots = zip(inner.chunk(len(self.target.slots), -1), torch.split(self.lora_B, self.sizes), strict=True)
        parts = [a @ b.T for a, b in slots]
        if self.lora_bias is not None:
            parts = [part + bias for part, bias in zip(parts, torch.split(self.lora_bias, self.sizes), strict=True)]
        return self.scaled(parts, inputs)

    def product(self) -> torch.Tensor:
        """Return ``B A``, (outputs, inputs)."""
        made = [b @ a for a, b in self.factors()]
        if not self.target.fused:
            return made[0]
        whole = made[0].new_zeros(self.target.outputs, self.target.inputs)
        for (start, stop), one in zip(self.target.slots, made, strict=True):
            whole[start:stop] = one
        return whole

    def merged_bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias that goes with :meth:`merged`, or None if it stays."""
        if self.lora_bias is None:
            return super().merged_bias(bias)
        own = spread(list(torch.split(self.lora_bias * self.scale, self.sizes)), self.target)
        return own if bias is None else bias + own.to(bias.dtype)


register_preset("lora", LoRA())
register_preset("dora", LoRA(use_dora=True))
