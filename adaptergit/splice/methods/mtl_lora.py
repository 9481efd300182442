"""MTL-LoRA: LoRA for several tasks, with a task's own transformation between A and a mixture of B's.

Yang et al. 2024 (arXiv:2410.09437): ``y = W x + b + s · (Σ_i w_i B_i) Λ_t A x``, with ``w`` a softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.splice.config import MethodConfig, register, register_preset
from adaptergit.splice.layers import is_number, require
from adaptergit.splice.methods.projections import Target, check_targets, targets
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class MTLLoRA(MethodConfig):
    """Configuration of MTL-LoRA; fields and defaults are those of ``adapters``' ``MTLLoRAConfig``."""

    family: ClassVar[str] = "mtl_lora"

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: tuple[int, ...] = ()
    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    attn_matrices: tuple[str, ...] = ("q", "v")
    n_up_projection: int = 1
    task_specific_matrix_type: str = "singular_values"
    """"singular_values" (a diagonal) or "linear" (r × r)."""
    weights_sharpness: float = 0.05
    """Temperature of the mixture."""
    init_weights_seed: int | None = None
    target_modules: tuple[str, ...] | str | None = None

    def __post_init__(self) -> None:
        check_targets(self)
        for name in ("r", "n_up_projection"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, f"{name} must be a positive whole number, not {value!r}")
        require(is_number(self.weights_sharpness) and self.weights_sharpness > 0, "weights_sharpness must be positive")
        require(
            self.task_specific_matrix_type in ("singular_values", "linear"),
            "task_specific_matrix_type must be 'singular_values' or 'linear'",
        )

    @property
    def method(self) -> str:
        """``mtl_lora``."""
        return self.family

    def build(self, host: Host) -> Parts:
        """Make the matrices of every linear layer that the configuration names."""
        parts = Parts()
        for target in targets(self, host):
            if target.fused:
                raise UsageError("MTL-LoRA is not defined for a part of a fused layer")
            parts.put(target.place, MTLSite(self, target))
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """A kaiming, B zero, the task's transformation the identity, the mixture random."""
        for module in parts.places.values():
            assert isinstance(module, MTLSite)
            nn.init.kaiming_uniform_(module.lora_A, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(module.lora_B)
            if self.task_specific_matrix_type == "linear":
                nn.init.eye_(module.task)
            else:
                nn.init.ones_(module.task)
            nn.init.uniform_(module.weights, generator=generator)


class MTLSite(nn.Module):
    """``lora_A`` (r, inputs), ``task`` (r,) or (r, r), ``lora_B`` (n, outputs, r), ``weights`` (n,)."""

    additive = True

    def __init__(self, config: MTLLoRA, target: Target) -> None:
        super().__init__()
        self.config, self.target = config, target
        n, r = config.n_up_projection, config.r
        self.lora_A = nn.Parameter(torch.empty(r, target.inputs))
        self.task = nn.Parameter(torch.empty((r, r) if config.task_specific_matrix_type == "linear" else (r,)))
        self.lora_B = nn.Parameter(torch.empty(n, target.outputs, r))
        self.weights = nn.Parameter(torch.empty(n))
        self.dropout = nn.Dropout(config.dropout)

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the update, (batch, seq, outputs)."""
        x = inputs if before is None else before
        inner = self.dropout(x).to(self.lora_A.dtype) @ self.lora_A.T
        inner = inner @ self.task.T if self.task.dim() == 2 else inner * self.task
        out: torch.Tensor = inner @ self._b().T * (self.config.alpha / self.config.r)
        return out

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the layer's new output."""
        return y + update

    def delta(self) -> torch.Tensor:
        """Return what is added to the layer's matrix, (outputs, inputs)."""
        middle = self.task @ self.lora_A if self.task.dim() == 2 else self.task[:, None] * self.lora_A
        return self._b() @ middle * (self.config.alpha / self.config.r)

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the update in it."""
        return weight + self.delta().to(weight.dtype)

    def _b(self) -> torch.Tensor:
        mixture = torch.softmax(self.weights / self.config.weights_sharpness, dim=0)
        return torch.einsum("n,nor->or", mixture, self.lora_B)


register_preset("mtl_lora", MTLLoRA())
