"""Invertible adapters: a bijection behind the embedding, undone in front of the output embedding.

Pfeiffer et al. 2020 (MAD-X, arXiv:2005.00052), with the couplings of NICE (Dinh et al. 2015, arXiv:1410.8516) and Glow
(Kingma & Dhariwal 2018, arXiv:1807.03039).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from adaptergit.errors import ModelError
from adaptergit.splice.layers import Unfilled, activation, initialise_linear
from adaptergit.splice.places import Embedding
from adaptergit.splice.sidecar import own_modules

if TYPE_CHECKING:
    from adaptergit.splice.methods.bottleneck import Bottleneck
    from adaptergit.splice.places import Host


# Layers that widen a small embedding to the hidden size; the bijection comes before them.
_WIDENING = ("embeddings_project", "encoder.embedding_hidden_mapping_in", "decoder.project_in")


def embedding_of(host: Host) -> tuple[Embedding, int]:
    """Return the place behind the embedding, and its width: what enters the first (text) block, or what widens it."""
    modules = dict(own_modules(host.base))
    for path in _WIDENING:
        if isinstance(wider := modules.get(path), nn.Linear):
            return Embedding(path), wider.in_features
    paths = host.anatomy.block_paths
    index = next((i for i, path in enumerate(paths) if "text" in path.split(".")[0]), 0)
    if paths[index] not in modules:
        raise ModelError("the blocks of this model are no modules: nothing stands between the embedding and the first")
    return Embedding(paths[index]), next(host.width(site) for site in host.sites if site.block == index)


class Coupling(nn.Module):
    """With ``x1``, ``x2`` the halves of the hidden state.

    NICE: ``y1 = x1 + F(x2)``, ``y2 = x2 + G(y1)``. Glow: each sum becomes ``y = x · e^s + t`` with ``s, t`` from F or
    G; ``s`` is kept in (-1, 1) by tanh.
    """

    def __init__(self, config: Bottleneck, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        if hidden_size % 2:
            raise ModelError(f"an invertible adapter halves the hidden size, and {hidden_size} is odd")
        half = hidden_size // 2
        size = max(1, int(half // (config.inv_adapter_reduction_factor or 1)))
        out = half * (2 if config.inv_adapter == "glow" else 1)
        self.F = nn.Sequential(Unfilled(half, size), activation(config.non_linearity), Unfilled(size, out))
        self.G = nn.Sequential(Unfilled(half, size), activation(config.non_linearity), Unfilled(size, out))

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Fill with initial values."""
        for module in (*self.F, *self.G):
            if isinstance(module, nn.Linear):
                initialise_linear(module, "bert", generator)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map (batch, seq, hidden) to the same shape."""
        x1, x2 = hidden.to(next(self.parameters()).dtype).chunk(2, dim=-1)
        y1 = self._couple(x1, self.F(x2))
        y2 = self._couple(x2, self.G(y1))
        return torch.cat([y1, y2], dim=-1).to(hidden.dtype)

    def inverse(self, hidden: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`forward`."""
        y1, y2 = hidden.to(next(self.parameters()).dtype).chunk(2, dim=-1)
        x2 = self._uncouple(y2, self.G(y1))
        x1 = self._uncouple(y1, self.F(x2))
        return torch.cat([x1, x2], dim=-1).to(hidden.dtype)

    def _couple(self, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        if self.config.inv_adapter == "nice":
            return x + made
        s, t = made.chunk(2, dim=-1)
        return x * torch.exp(torch.tanh(s)) + t

    def _uncouple(self, y: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        if self.config.inv_adapter == "nice":
            return y - made
        s, t = made.chunk(2, dim=-1)
        return (y - t) * torch.exp(-torch.tanh(s))
