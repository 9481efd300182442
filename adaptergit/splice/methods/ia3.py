"""IA3: learned factors for the outputs (or inputs) of linear layers.

Liu et al. 2022 (arXiv:2205.05638). ``adapters`` scales the output of the feed-forward's first layer, before the
activation; the paper and PEFT scale the input of its last layer. Both are here: ``intermediate_lora`` and
``feedforward_modules``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.splice.config import register, register_preset
from adaptergit.splice.layers import Unfilled, require
from adaptergit.splice.methods.projections import LowRank, Target, opened, reset_gate
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class IA3(LowRank):
    """Configuration of IA3; fields and defaults are those of ``adapters``' ``IA3Config``."""

    family: ClassVar[str] = "ia3"
    starts: ClassVar[tuple[str, ...]] = ("ia3",)
    gated: ClassVar[bool] = True

    intermediate_lora: bool = True
    r: int = 1
    """One factor for each output: always 1."""
    alpha: float = 1
    """A factor for the factors."""
    attn_matrices: tuple[str, ...] = ("k", "v")
    """Of "q", "k" and "v": the projections whose outputs are scaled."""
    composition_mode: str = "scale"
    init_weights: str = "ia3"
    feedforward_modules: tuple[str, ...] = ()
    """Of ``target_modules``, the ones whose input is scaled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r == 1 and self.dropout == 0, "IA3 has one factor for each output and no dropout: r=1, dropout=0")

    @property
    def embeds(self) -> bool:
        """Where outputs are scaled, whatever the inputs are."""
        return not self.use_gating and not self.feedforward_modules

    def build(self, host: Host) -> Parts:
        """Make the factors of every linear layer that the configuration names."""
        return self.put(host, lambda target, layer: IA3Site(self, target, layer), fused=True)

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Start from ones."""
        for module in parts.places.values():
            assert isinstance(module, IA3Site)
            nn.init.ones_(module.factors)
            reset_gate(module.gate, generator)


class IA3Site(nn.Module):
    """The factors at one linear layer: (outputs of the slots,), or (inputs,)."""

    additive = False

    def __init__(self, config: IA3, target: Target, host: nn.Module) -> None:
        super().__init__()
        path = target.place.path
        self.config, self.target = config, target
        self.scales_input = any(path == end or path.endswith(f".{end}") for end in config.feedforward_modules)
        self._host = [host]
        size = target.inputs if self.scales_input else sum(stop - start for start, stop in target.slots)
        self.factors = nn.Parameter(torch.empty(size))
        self.gate = Unfilled(target.inputs, len(target.slots)) if config.use_gating else None

    @property
    def replaces(self) -> bool:
        """Whether it runs the layer anew, whatever came before."""
        return self.scales_input

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the factors of this input, (batch or 1, 1, outputs); in a Stack, factors multiply.

        Where inputs are scaled, return what the layer makes of the scaled input instead.
        """
        if self.scales_input:
            out: torch.Tensor = self._host[0].forward(inputs * self.factors.to(inputs.dtype))
            return out
        sizes = [stop - start for start, stop in self.target.slots]
        parts = [part.view(1, 1, -1) for part in torch.split(self.factors, sizes)]
        if self.gate is not None:
            gate = opened(self.gate, inputs)
            parts = [part * gate[..., i : i + 1] for i, part in enumerate(parts)]
        elif self.config.alpha != 1:
            parts = [part * self.config.alpha for part in parts]
        if not self.target.fused:
            factors = parts[0]
        else:
            factors = parts[0].new_ones(parts[0].shape[0], 1, self.target.outputs)
            for (start, stop), part in zip(self.target.slots, parts, strict=True):
                factors[..., start:stop] = part
        chained: torch.Tensor = factors if before is None else before * factors
        return chained

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the layer's new output."""
        return update if self.scales_input else y * update

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the factors in it, (outputs, inputs)."""
        if self.gate is not None:
            raise UsageError("a gated IA3 depends on its input: it cannot be merged", hint="leave it active")
        if self.scales_input:
            return weight * self.factors.to(weight.dtype)
        return weight * self.output_factors().to(weight.dtype)[:, None]

    def merged_bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias that goes with :meth:`merged`, or None if it stays."""
        return None if self.scales_input or bias is None else bias * self.output_factors().to(bias.dtype)

    def output_factors(self) -> torch.Tensor:
        """Return the factor of every output; they apply to the bias too."""
        factors = self.factors.new_ones(self.target.outputs)
        sizes = [stop - start for start, stop in self.target.slots]
        for (start, stop), part in zip(self.target.slots, torch.split(self.factors, sizes), strict=True):
            factors[start:stop] = part * self.config.alpha
        return factors


register_preset("ia3", IA3())
