"""MTL-LoRA: LoRA for several tasks, with a task's own transformation between A and a mixture of B's.

Yang et al. 2024 (arXiv:2410.09437): ``y = W x + b + s · (Σ_i w_i B_i) Λ_t A x``, with ``w`` a softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from adaptergit.splice.config import register, register_preset
from adaptergit.splice.layers import is_number, require, require_counts, require_one_of
from adaptergit.splice.methods.projections import LowRank, LowRankSite, Target
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class MTLLoRA(LowRank):
    """Configuration of MTL-LoRA; fields and defaults are those of ``adapters``' ``MTLLoRAConfig``."""

    family: ClassVar[str] = "mtl_lora"

    n_up_projection: int = 1
    """Matrices B that are mixed, with weights of the task's own."""
    task_specific_matrix_type: str = "singular_values"
    """"singular_values" (a diagonal) or "linear" (r × r)."""
    weights_sharpness: float = 0.05
    """Temperature of the mixture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "n_up_projection")
        require(is_number(self.weights_sharpness) and self.weights_sharpness > 0, "weights_sharpness must be positive")
        require_one_of(self, task_specific_matrix_type=("singular_values", "linear"))

    def build(self, host: Host) -> Parts:
        """Make the matrices of every linear layer that the configuration names."""
        return self.put(host, lambda target, layer: MTLSite(self, target, layer))

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


class MTLSite(LowRankSite):
    """``lora_A`` (r, inputs), ``task`` (r,) or (r, r), ``lora_B`` (n, outputs, r), ``weights`` (n,)."""

    config: MTLLoRA

    def __init__(self, config: MTLLoRA, target: Target, host: nn.Module) -> None:
        super().__init__(config, target, host, scale=config.alpha / config.r)
        n, r = config.n_up_projection, config.r
        self.lora_A = nn.Parameter(torch.empty(r, target.inputs))
        self.task = nn.Parameter(torch.empty((r, r) if config.task_specific_matrix_type == "linear" else (r,)))
        self.lora_B = nn.Parameter(torch.empty(n, target.outputs, r))
        self.weights = nn.Parameter(torch.empty(n))

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the update, (batch, seq, outputs)."""
        x = inputs if before is None else before
        inner = self.dropout(x).to(self.lora_A.dtype) @ self.lora_A.T
        inner = inner @ self.task.T if self.task.dim() == 2 else inner * self.task
        return self.scaled([inner @ self._b().T], inputs)

    def product(self) -> torch.Tensor:
        """Return ``(Σ_i w_i B_i) Λ_t A``, (outputs, inputs)."""
        middle = self.task @ self.lora_A if self.task.dim() == 2 else self.task[:, None] * self.lora_A
        return self._b() @ middle

    def _b(self) -> torch.Tensor:
        mixture = torch.softmax(self.weights / self.config.weights_sharpness, dim=0)
        return torch.einsum("n,nor->or", mixture, self.lora_B)


register_preset("mtl_lora", MTLLoRA())
