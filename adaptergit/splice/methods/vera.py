"""VeRA: one pair of random matrices for all places, and two small vectors at each.

Kopiczko et al. 2024 (arXiv:2310.11454): ``y = W x + b + s · diag(λ_b) B diag(λ_d) A x``. ``adapters`` keeps full
matrices where the paper has vectors; ``full`` reads its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.config import MethodConfig, register, register_preset
from adaptergit.splice.layers import is_number, require
from adaptergit.splice.methods.projections import Target, check_targets, targets, weight_of
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class VeRA(MethodConfig):
    """Configuration of VeRA; 18.6 k trained parameters on BERT-base with the defaults."""

    family: ClassVar[str] = "vera"

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: tuple[int, ...] = ()
    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    attn_matrices: tuple[str, ...] = ("q", "v")
    vera_d: float = 0.1
    """Initial value of λ_d."""
    vera_b: float = 0.0
    """Initial value of λ_b."""
    full: bool = False
    """Full matrices in place of the vectors, as in ``adapters``."""
    use_dora: bool = False
    """DVoRA: with DoRA's magnitudes, in the way of ``adapters``."""
    init_weights_seed: int | None = None
    """Of the random matrices; they are stored with the adapter all the same."""
    target_modules: tuple[str, ...] | str | None = None

    def __post_init__(self) -> None:
        check_targets(self)
        require(isinstance(self.r, int) and self.r > 0, f"r must be a positive whole number, not {self.r!r}")
        for name in ("alpha", "vera_d", "vera_b"):
            require(is_number(getattr(self, name)), f"{name} must be a number")

    @property
    def method(self) -> str:
        """``vera`` or ``dvora``."""
        return "dvora" if self.use_dora else "vera"

    def build(self, host: Host) -> Parts:
        """Make the vectors of every linear layer that the configuration names, and the shared matrices."""
        parts = Parts()
        found = list(targets(self, host))
        if not found:
            return parts
        if self.full and len({(t.inputs, t.outputs) for t in found}) > 1:
            raise ModelError("full VeRA needs layers of one size")
        shared = parts.share(_Shared(self.r, max(t.inputs for t in found), max(t.outputs for t in found)))
        for target in found:
            if target.fused:
                raise UsageError("VeRA is not defined for a part of a fused layer")
            parts.put(target.place, VeRASite(self, target, shared, host.module(target.place.path)))
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Fill the shared matrices with kaiming values, the vectors with constants."""
        nn.init.kaiming_uniform_(parts.common.lora_A, a=5**0.5, generator=generator)
        nn.init.kaiming_uniform_(parts.common.lora_B, a=5**0.5, generator=generator)
        for module in parts.places.values():
            assert isinstance(module, VeRASite)
            nn.init.constant_(module.vera_D, self.vera_d)
            nn.init.constant_(module.vera_B, self.vera_b)
            if module.m is not None:
                with torch.no_grad():
                    module.m.copy_(weight_of(module._host[0]).float().norm(dim=1, keepdim=True))


class _Shared(nn.Module):
    def __init__(self, r: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(r, inputs), requires_grad=False)
        self.lora_B = nn.Parameter(torch.empty(outputs, r), requires_grad=False)


class VeRASite(nn.Module):
    """``vera_D`` (r,) and ``vera_B`` (outputs,), or square matrices of these sizes."""

    def __init__(self, config: VeRA, target: Target, shared: nn.Module, host: nn.Module) -> None:
        super().__init__()
        self.config, self.target = config, target
        self._shared: list[Any] = [shared]
        self._host: list[Any] = [host]
        times = 2 if config.full else 1
        self.vera_D = nn.Parameter(torch.empty((config.r,) * times))
        self.vera_B = nn.Parameter(torch.empty((target.outputs,) * times))
        self.dropout = nn.Dropout(config.dropout)
        self.m = nn.Parameter(torch.empty(target.outputs, 1)) if config.use_dora else None
        self.additive = self.m is None

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the update, (batch, seq, outputs)."""
        x = inputs if before is None else before
        a, b = self._matrices()
        inner = self.dropout(x).to(a.dtype) @ a.T
        inner = inner @ self.vera_D.T if self.config.full else inner * self.vera_D
        out = inner @ b.T
        out = out @ self.vera_B.T if self.config.full else out * self.vera_B
        update: torch.Tensor = out * (self.config.alpha / self.config.r)
        return update

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the layer's new output."""
        if self.m is None:
            return y + update
        return self._factor(weight_of(self._host[0])) * (y + update)

    def delta(self) -> torch.Tensor:
        """Return what is added to the layer's matrix, (outputs, inputs)."""
        a, b = self._matrices()
        if self.config.full:
            delta = self.vera_B @ b @ self.vera_D @ a
        else:
            delta = (self.vera_B[:, None] * b) @ (self.vera_D[:, None] * a)
        scaled: torch.Tensor = delta * (self.config.alpha / self.config.r)
        return scaled

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the update in it, (outputs, inputs)."""
        total = weight + self.delta().to(weight.dtype)
        return total if self.m is None else self._factor(weight).to(weight.dtype)[:, None] * total

    def merged_bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias that goes with :meth:`merged`, or None if it stays."""
        if self.m is None or bias is None:
            return None
        return bias * self._factor(weight_of(self._host[0])).to(bias.dtype)

    def _factor(self, weight: torch.Tensor) -> torch.Tensor:
        assert self.m is not None
        total = weight.to(self.vera_B.dtype) + self.delta() / (self.config.alpha / self.config.r)
        factor: torch.Tensor = (self.m / total.norm(dim=1, keepdim=True).detach()).view(-1)
        return factor

    def _matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        shared = self._shared[0]
        return shared.lora_A[:, : self.target.inputs], shared.lora_B[: self.target.outputs]


register_preset("vera", VeRA())
register_preset("dvora", VeRA(use_dora=True))
