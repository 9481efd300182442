"""VeRA: one pair of random matrices for all places, and two small vectors at each.

Kopiczko et al. 2024 (arXiv:2310.11454): ``y = W x + b + s · diag(λ_b) B diag(λ_d) A x``. ``adapters`` keeps full
matrices where the paper has vectors; ``full`` reads its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adaptergit.errors import ModelError
from adaptergit.splice.config import register, register_preset
from adaptergit.splice.layers import is_number, require
from adaptergit.splice.methods.projections import LowRank, LowRankSite, Target, targets
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class VeRA(LowRank):
    """Configuration of VeRA; 18.6 k trained parameters on BERT-base with the defaults.

    The random matrices are stored with the adapter, whatever ``init_weights_seed`` they were made from.
    """

    family: ClassVar[str] = "vera"
    starts: ClassVar[tuple[str, ...]] = ("vera",)
    gated: ClassVar[bool] = True

    init_weights: str = "vera"
    vera_d: float = 0.1
    """Initial value of λ_d."""
    vera_b: float = 0.0
    """Initial value of λ_b."""
    full: bool = False
    """Full matrices in place of the vectors, as in ``adapters``."""
    use_dora: bool = False
    """DVoRA: with DoRA's magnitudes, in the way of ``adapters``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vera_d", "vera_b"):
            require(is_number(getattr(self, name)), f"{name} must be a number")
        require(not (self.use_gating and self.use_dora), "gating and DoRA do not go together")

    @property
    def method(self) -> str:
        """``vera`` or ``dvora``."""
        return "dvora" if self.use_dora else "vera"

    def build(self, host: Host) -> Parts:
        """Make the vectors of every linear layer that the configuration names, and the shared matrices."""
        sizes = {(target.inputs, target.outputs) for target in targets(self, host)} or {(0, 0)}
        if self.full and len(sizes) > 1:
            raise ModelError("full VeRA needs layers of one size", hint="name them with target_modules, or full=False")
        shared = _Shared(self.r, max(size for size, _ in sizes), max(size for _, size in sizes))
        parts = self.put(host, lambda target, layer: VeRASite(self, target, shared, layer))
        parts.share(shared)
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Fill the shared matrices with kaiming values, the vectors with constants."""
        nn.init.kaiming_uniform_(parts.common.lora_A, a=5**0.5, generator=generator)
        nn.init.kaiming_uniform_(parts.common.lora_B, a=5**0.5, generator=generator)
        for module in parts.places.values():
            assert isinstance(module, VeRASite)
            nn.init.constant_(module.vera_D, self.vera_d)
            nn.init.constant_(module.vera_B, self.vera_b)
            module.reset_parameters(generator)


class _Shared(nn.Module):
    def __init__(self, r: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(r, inputs), requires_grad=False)
        self.lora_B = nn.Parameter(torch.empty(outputs, r), requires_grad=False)


class VeRASite(LowRankSite):
    """``vera_D`` (r,) and ``vera_B`` (outputs,), or square matrices of these sizes."""

    config: VeRA

    def __init__(self, config: VeRA, target: Target, shared: nn.Module, host: nn.Module) -> None:
        super().__init__(config, target, host, scale=config.alpha / config.r, dora=config.use_dora)
        self._shared: list[Any] = [shared]
        times = 2 if config.full else 1
        self.vera_D = nn.Parameter(torch.empty((config.r,) * times))
        self.vera_B = nn.Parameter(torch.empty((target.outputs,) * times))

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the update, (batch, seq, outputs)."""
        x = inputs if before is None else before
        a, b = self._matrices()
        inner = self.dropout(x).to(a.dtype) @ a.T
        inner = inner @ self.vera_D.T if self.config.full else inner * self.vera_D
        out = inner @ b.T
        return self.scaled([out @ self.vera_B.T if self.config.full else out * self.vera_B], inputs)

    def product(self) -> torch.Tensor:
        """Return ``diag(λ_b) B diag(λ_d) A``, (outputs, inputs)."""
        a, b = self._matrices()
        if self.config.full:
            return self.vera_B @ b @ self.vera_D @ a
        return (self.vera_B[:, None] * b) @ (self.vera_D[:, None] * a)

    def _matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        shared = self._shared[0]
        return shared.lora_A[:, : self.target.inputs], shared.lora_B[: self.target.outputs]


register_preset("vera", VeRA())
register_preset("dvora", VeRA(use_dora=True))
