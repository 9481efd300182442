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

from adaptergit.errors import UsageError
from adaptergit.splice.config import MethodConfig, register, register_preset
from adaptergit.splice.layers import is_number, require
from adaptergit.splice.methods.projections import Target, check_targets, spread, targets, weight_of
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class LoRA(MethodConfig):
    """Configuration of LoRA; fields and defaults are those of ``adapters``' ``LoRAConfig``, with some of PEFT's.

    >>> LoRA(r=4, alpha=16).scaling(4)
    4.0
    """

    family: ClassVar[str] = "lora"

    selfattn_lora: bool = True
    """In every attention: the matrices of ``attn_matrices``."""
    intermediate_lora: bool = False
    """In the first layer of the feed-forward (role ``up``)."""
    output_lora: bool = False
    """In the last layer of the feed-forward (role ``down``)."""
    leave_out: tuple[int, ...] = ()
    """Blocks without adapter."""
    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    attn_matrices: tuple[str, ...] = ("q", "v")
    init_weights: str = "lora"
    """"lora" (A kaiming, B zero) or "bert" (both N(0, 0.02))."""
    init_weights_seed: int | None = None
    use_gating: bool = False
    use_dora: bool = False
    dora_norm: str = "paper"
    """"paper", or "adapters": that library leaves alpha/r out of the norm and scales the bias too."""
    use_rslora: bool = False
    target_modules: tuple[str, ...] | str | None = None
    """Paths of linear layers, as in PEFT; None: by role."""
    rank_pattern: Mapping[str, int] | None = None
    """Other ranks for some paths."""
    alpha_pattern: Mapping[str, float] | None = None
    """Other alphas for some paths."""
    lora_bias: bool = False
    """A bias beside B."""
    dtype: str | None = None
    """Of the parameters, like "float16"; None: the host's."""

    def __post_init__(self) -> None:
        check_targets(self)
        require(isinstance(self.r, int) and self.r > 0, f"r must be a positive whole number, not {self.r!r}")
        require(is_number(self.alpha), f"alpha must be a number, not {self.alpha!r}")
        require(is_number(self.dropout) and 0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout!r}")
        require(self.init_weights in ("lora", "bert"), f"unknown init_weights {self.init_weights!r}: lora or bert")
        require(self.dora_norm in ("paper", "adapters"), "dora_norm must be 'paper' or 'adapters'")
        require(not (self.use_gating and self.use_dora), "gating and DoRA do not go together")

    @property
    def method(self) -> str:
        """``lora`` or ``dora``."""
        return "dora" if self.use_dora else "lora"

    def scaling(self, r: int, alpha: float | None = None) -> float:
        """Return the factor of the update."""
        return (self.alpha if alpha is None else alpha) / (math.sqrt(r) if self.use_rslora else r)

    def build(self, host: Host) -> Parts:
        """Make the matrices of every linear layer that the configuration names."""
        parts = Parts()
        for target in targets(self, host):
            parts.put(target.place, LoRASite(self, target, host.module(target.place.path)))
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Fill A and B; DoRA's magnitudes are the norms of the host's weights."""
        for module in parts.places.values():
            assert isinstance(module, LoRASite)
            module.reset_parameters(generator)


class LoRASite(nn.Module):
    """The matrices at one linear layer.

    ``lora_A`` (r·n, inputs) and ``lora_B`` (outputs of n slots, r): n is 1, or the number of matrices adapted in a
    fused layer.
    """

    additive = True

    def __init__(self, config: LoRA, target: Target, host: nn.Module) -> None:
        super().__init__()
        path = target.place.path
        self.config, self.target = config, target
        self.r = int((config.rank_pattern or {}).get(path, config.r))
        self.scale = config.scaling(self.r, (config.alpha_pattern or {}).get(path))
        self._host = [host]  # in a list: not a part of this module
        n, outputs = len(target.slots), sum(stop - start for start, stop in target.slots)
        self.lora_A = nn.Parameter(torch.empty(self.r * n, target.inputs))
        self.lora_B = nn.Parameter(torch.empty(outputs, self.r))
        self.lora_bias = nn.Parameter(torch.empty(outputs)) if config.lora_bias else None
        self.dropout = nn.Dropout(config.dropout)
        self.gate = nn.Linear(target.inputs, n) if config.use_gating else None
        self.m = nn.Parameter(torch.empty(target.outputs, 1)) if config.use_dora else None
        if config.use_dora and target.fused:
            raise UsageError(
                "DoRA is not defined for a part of a fused layer", hint=f"name all of {path}: target_modules"
            )
        self.additive = self.m is None

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
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.gate.bias)
        if self.m is not None:
            with torch.no_grad():
                self.m.copy_(weight_of(self._host[0]).float().norm(dim=1, keepdim=True))

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``s · B A x``, (batch, seq, outputs); ``x`` is the update before it in a Stack."""
        x = inputs if before is None else before
        if x.is_floating_point() and x.shape[-1] != self.lora_A.shape[1]:
            raise UsageError(
                f"a Stack of LoRAs feeds one update into the next: {x.shape[-1]} outputs, {self.target.inputs} inputs",
                hint="for the sum of updates: Average(a, b, weights=[1, 1], normalize_weights=False)",
            )
        if x.is_floating_point():
            inner = self.dropout(x).to(self.lora_A.dtype) @ self.lora_A.T
        else:  # an embedding: tokens pick columns of A
            inner = F.embedding(x, self.lora_A.T)
        n = len(self.target.slots)
        sizes = [stop - start for start, stop in self.target.slots]
        parts = [a @ b.T for a, b in zip(inner.chunk(n, -1), torch.split(self.lora_B, sizes), strict=True)]
        if self.lora_bias is not None:
            parts = [part + bias for part, bias in zip(parts, torch.split(self.lora_bias, sizes), strict=True)]
        if self.gate is not None:
            gate = torch.sigmoid(self.gate(inputs.to(self.gate.weight.dtype))).mean(dim=1, keepdim=True)
            parts = [part * gate[..., i : i + 1] for i, part in enumerate(parts)]
        elif self.scale != 1.0:
            parts = [part * self.scale for part in parts]
        return spread(parts, self.target)

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the layer's new output, (batch, seq, outputs)."""
        if self.m is None:
            return y + update
        host = self._host[0]
        weight = weight_of(host)
        factor = (self.m / self.norm(weight.to(self.lora_B.dtype))).view(-1)
        bias = getattr(host, "bias", None)
        if self.config.dora_norm == "adapters" or bias is None:
            whole: torch.Tensor = factor * (y + update)
            return whole
        scaled: torch.Tensor = bias + factor * (y - bias + update)
        return scaled

    def norm(self, weight: torch.Tensor) -> torch.Tensor:
        """Return DoRA's row norms for a weight (outputs, inputs); a constant for the gradient (paper, §4.3)."""
        factor = 1.0 if self.config.dora_norm == "adapters" else self.scale
        norm: torch.Tensor = (weight + factor * (self.lora_B @ self.lora_A)).norm(dim=1, keepdim=True)
        return norm.detach()

    def delta(self) -> torch.Tensor:
        """Return what is added to the layer's matrix, (outputs, inputs)."""
        if self.gate is not None:
            raise UsageError("a gated LoRA depends on its input: it cannot be merged")
        n = len(self.target.slots)
        sizes = [stop - start for start, stop in self.target.slots]
        delta = self.lora_A.new_zeros(self.target.outputs, self.target.inputs)
        for (start, stop), a, b in zip(
            self.target.slots, self.lora_A.chunk(n), torch.split(self.lora_B, sizes), strict=True
        ):
            delta[start:stop] = self.scale * (b @ a)
        return delta

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the update in it, (outputs, inputs)."""
        total = weight + self.delta().to(weight.dtype)
        if self.m is None:
            return total
        return (self.m / self.norm(weight.to(self.lora_B.dtype))).to(weight.dtype) * total

    def merged_bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias that goes with :meth:`merged`, or None if it stays."""
        if self.lora_bias is not None:
            sizes = [stop - start for start, stop in self.target.slots]
            own = spread(list(torch.split(self.lora_bias * self.scale, sizes)), self.target)
            return own if bias is None else bias + own.to(bias.dtype)
        if self.m is None or self.config.dora_norm != "adapters" or bias is None:
            return None
        norm = self.norm(weight_of(self._host[0]).to(self.lora_B.dtype))
        return bias * (self.m / norm).to(bias.dtype).view(-1)


register_preset("lora", LoRA())
register_preset("dora", LoRA(use_dora=True))
