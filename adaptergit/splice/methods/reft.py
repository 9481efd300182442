"""ReFT: interventions on the hidden states of a few positions.

Wu et al. 2024 (arXiv:2404.03592). LoReFT: ``h + Rᵀ (W h + b - R h)`` with orthonormal rows in ``R`` (r, hidden); NoReFT
without the constraint; DiReFT: ``h + Rᵀ (W h + b)``. It acts behind every block, on the first ``prefix_positions`` and
last ``suffix_positions`` real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from adaptergit.splice.config import MethodConfig, register, register_preset
from adaptergit.splice.layers import (
    Unfilled,
    activation,
    initialise_linear,
    require,
    require_counts,
    require_one_of,
    require_shares,
)
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class ReFT(MethodConfig):
    """Configuration of ReFT; fields and defaults are those of ``adapters``' ``ReftConfig``."""

    family: ClassVar[str] = "reft"

    layers: tuple[int, ...] | str = "all"
    """Blocks to act behind."""
    prefix_positions: int = 3
    """First positions of a text that are changed."""
    suffix_positions: int = 0
    """Last positions of a text that are changed."""
    r: int = 1
    """Rank: dimensions of the subspace."""
    orthogonality: bool = True
    """The rows that span the subspace stay orthonormal."""
    tied_weights: bool = False
    """The same weights for first and last positions."""
    subtract_projection: bool = True
    """Take away what the hidden state has in the subspace, before the new value is put there (LoReFT)."""
    dropout: float = 0.05
    """Share of the output that is dropped in training."""
    non_linearity: str | None = None
    """Behind the learned source: a transformers activation, or None."""
    dtype: str | None = None
    """Of the parameters, like "float16"; None: the host's."""
    output_reft: bool = True
    """Behind blocks; False: nowhere."""
    init_weights_seed: int | None = None
    """Random numbers of the initial weights; None: those of torch's own generator."""

    def __post_init__(self) -> None:
        require_counts(self, "prefix_positions", "suffix_positions", least=0)
        require(self.prefix_positions + self.suffix_positions > 0, "ReFT needs prefix_positions or suffix_positions")
        require_counts(self, "r")
        require_one_of(self, layers=("all",) if isinstance(self.layers, str) else (self.layers,))
        require_shares(self, "dropout")
        if self.non_linearity is not None:
            activation(self.non_linearity)

    @property
    def method(self) -> str:
        """``loreft``, ``noreft`` or ``direft``."""
        if not self.subtract_projection:
            return "direft"
        return "loreft" if self.orthogonality else "noreft"

    def build(self, host: Host) -> Parts:
        """Make the interventions behind every block."""
        parts = Parts()
        for place in host.blocks():
            if self.output_reft and (self.layers == "all" or place.block in self.layers):
                width = next(host.width(site) for site in host.sites if site.block == place.block)
                require(self.r <= width, f"r={self.r} is more than the model's hidden size, {width}")
                parts.put(place, ReFTSite(self, width))
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Orthonormal ``R``, N(0, 0.02) for ``W``, zero ``b``."""
        for module in parts.places.values():
            assert isinstance(module, ReFTSite)
            for unit in module.units():
                nn.init.orthogonal_(unit.projection, generator=generator)
                initialise_linear(unit.source, "bert", generator)


class ReFTUnit(nn.Module):
    """``projection`` is R (r, hidden), ``source`` is W (r, hidden) and b (r,)."""

    def __init__(self, config: ReFT, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.source = Unfilled(hidden_size, config.r)
        self.projection = nn.Parameter(torch.empty(config.r, hidden_size))
        self.activation = activation(config.non_linearity) if config.non_linearity else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def rows(self) -> torch.Tensor:
        """Return R, with orthonormal rows if the configuration says so."""
        if not self.config.orthogonality:
            return self.projection
        q, r = torch.linalg.qr(self.projection.float().T)
        rows: torch.Tensor = (q * torch.sign(torch.diagonal(r))).T
        return rows.to(self.projection.dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (…, hidden) to the same shape."""
        rows = self.rows()
        inner = hidden.to(rows.dtype)
        change = self.activation(self.source(inner))
        if self.config.subtract_projection:
            change = change - inner @ rows.T
        out: torch.Tensor = hidden + self.dropout(change @ rows).to(hidden.dtype)
        return out


class ReFTSite(nn.Module):
    """The interventions behind one block."""

    def __init__(self, config: ReFT, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.prefix = ReFTUnit(config, hidden_size) if config.prefix_positions else None
        own = config.suffix_positions and not (config.tied_weights and self.prefix is not None)
        self.suffix = ReFTUnit(config, hidden_size) if own else None

    def units(self) -> list[ReFTUnit]:
        """Return the units there are."""
        return [unit for unit in (self.prefix, self.suffix) if unit is not None]

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Intervene.

        Args:
            hidden: (batch, seq, hidden).
            mask: (batch, total), 1 for real tokens; with a KV cache, ``hidden`` are the last of them. None: all real.
        """
        length = hidden.shape[1]
        if mask is None:
            mask = torch.ones(hidden.shape[0], length, dtype=torch.long, device=hidden.device)
        total = mask.shape[1]
        mask = mask.long()
        first = mask.argmax(dim=1, keepdim=True)
        count = mask.sum(dim=1, keepdim=True)
        position = torch.arange(total - length, total, device=hidden.device)[None] - first
        real = (position >= 0) & (position < count)
        out = hidden
        # Both read the block's own output; where they meet, the last positions win.
        for unit, chosen in (
            (self.prefix, real & (position < self.config.prefix_positions)),
            (self.suffix or self.prefix, real & (position >= count - self.config.suffix_positions)),
        ):
            if unit is not None:
                out = torch.where(chosen[..., None], unit(hidden), out)
        return out


register_preset("loreft", ReFT())
register_preset("noreft", ReFT(orthogonality=False))
register_preset("direft", ReFT(orthogonality=False, subtract_projection=False))
