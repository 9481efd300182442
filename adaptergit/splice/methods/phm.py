"""Parameterised hypercomplex multiplication: linear layers as sums of Kronecker products.

Zhang et al. 2021 (arXiv:2102.08597); in Compacter (Mahabadi et al. 2021, arXiv:2106.04647) the blocks are products of
thin matrices. With rules ``R_k`` (n × n) and blocks ``W_k`` (in/n × out/n): ``y = x · Σ_k R_k ⊗ W_k + b``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.errors import ModelError

if TYPE_CHECKING:
    from adaptergit.splice.methods.bottleneck import Bottleneck
    from adaptergit.splice.places import Parts


class PHMShared(nn.Module):
    """What all places of one adapter share: the rule, and maybe the blocks."""

    def __init__(self, config: Bottleneck) -> None:
        super().__init__()
        self.config = config
        if config.shared_phm_rule:
            _add_rule(self, config)

    def add_blocks(self, side: str, inputs: int, outputs: int) -> None:
        """Add the blocks of the down- or up-projections, once."""
        for name, shape in _blocks(self.config, inputs, outputs).items():
            own = name.replace("W", f"W_{side}", 1)
            if own not in self._parameters:
                self.register_parameter(own, nn.Parameter(torch.empty(shape)))
            elif self._parameters[own].shape != shape:  # type: ignore[union-attr]
                raise ModelError(
                    "shared_W_phm needs places of equal size", hint="use one reduction_factor for all blocks"
                )

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Fill with initial values."""
        _reset(self, self.config, generator)


class PHMLinear(nn.Module):
    """Map (…, inputs) to (…, outputs)."""

    def __init__(self, config: Bottleneck, inputs: int, outputs: int, side: str, parts: Parts) -> None:
        super().__init__()
        n = config.phm_dim
        if inputs % n or outputs % n:
            raise ModelError(f"phm_dim {n} divides not both {inputs} and {outputs}", hint="choose another phm_dim")
        self.config = config
        self.side = side
        shared = parts.common
        if shared is None and (config.shared_phm_rule or config.shared_W_phm):
            shared = parts.share(PHMShared(config))
        # A list hides the module from this one's own parameters: it belongs to the adapter as a whole.
        self._shared: list[Any] = [shared]
        if not config.shared_phm_rule:
            _add_rule(self, config)
        if config.shared_W_phm:
            shared.add_blocks(side, inputs, outputs)
        else:
            for name, shape in _blocks(config, inputs, outputs).items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        if config.phm_bias:
            self.b = nn.Parameter(torch.empty(outputs))
        else:
            self.register_parameter("b", None)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Fill with initial values."""
        _reset(self, self.config, generator)

    def weight(self) -> torch.Tensor:
        """Return the matrix, (inputs, outputs)."""
        rules: Any = self._shared[0] if self.config.shared_phm_rule else self
        rule = rules.phm_rule_left @ rules.phm_rule_right if self.config.factorized_phm_rule else rules.phm_rule
        blocks: Any
        blocks, tag = (self._shared[0], f"W_{self.side}") if self.config.shared_W_phm else (self, "W")
        if self.config.factorized_phm_W:
            block = getattr(blocks, f"{tag}_left") @ getattr(blocks, f"{tag}_right")
        else:
            block = getattr(blocks, tag)
        products = torch.einsum("kac,kpq->kapcq", rule, block)
        return products.reshape(len(rule), rule.shape[1] * block.shape[1], rule.shape[2] * block.shape[2]).sum(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        y = x @ self.weight()
        return y if self.b is None else y + self.b


def _add_rule(module: nn.Module, config: Bottleneck) -> None:
    n = config.phm_dim
    shapes = (
        {"phm_rule_left": (n, n, 1), "phm_rule_right": (n, 1, n)}
        if config.factorized_phm_rule
        else {"phm_rule": (n, n, n)}
    )
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=config.learn_phm))


def _blocks(config: Bottleneck, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    n, rank = config.phm_dim, config.phm_rank
    if config.factorized_phm_W:
        return {"W_left": (n, inputs // n, rank), "W_right": (n, rank, outputs // n)}
    return {"W": (n, inputs // n, outputs // n)}


def _reset(module: nn.Module, config: Bottleneck, generator: torch.Generator | None) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("phm_rule"):
            if config.phm_c_init == "normal":
                nn.init.normal_(parameter, std=config.phm_init_range, generator=generator)
            else:
                nn.init.uniform_(parameter, -1, 1, generator=generator)
        elif name == "b":
            nn.init.zeros_(parameter)
        else:
            with torch.no_grad():
                for block in parameter:
                    if config.hypercomplex_nonlinearity == "glorot-uniform":
                        nn.init.xavier_uniform_(block, generator=generator)
                    elif config.hypercomplex_nonlinearity == "glorot-normal":
                        nn.init.xavier_normal_(block, generator=generator)
                    else:
                        nn.init.normal_(block, std=config.phm_init_range, generator=generator)
