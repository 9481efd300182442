"""Bottleneck adapters: down-projection, non-linearity, up-projection, added to a residual branch.

Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2021 (arXiv:2005.00247), He et al. 2022 (arXiv:2110.04366) for
the parallel and scaled kinds, Steitz & Roth 2024 (arXiv:2406.06820) for AdapterPlus.

With ``h`` the branch's output, ``x`` the residual stream and ``N`` the host's post-norm (the identity in pre-norm
models), all of shape (batch, seq, hidden), and ``A(z) = s · (W_up f(W_down norm_before(z) + b_down) + b_up)``:

* sequential: ``z = N(h + x)`` if ``original_ln_before`` else ``h``; ``r = h`` (``residual_before_ln=True``), ``z``
  (False) or ``h + x`` ("post_add"); ``o = norm_after(A(z)) + r``. Then the host goes on with ``N(o + x)``, or takes
  ``o`` as the result of the sum if not ``original_ln_after``.
* parallel: ``o = norm_after(A(x)) + h``.

The order of float operations is that of the ``adapters`` library, so that its checkpoints give its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.splice.config import MethodConfig, presets, register, register_preset

if TYPE_CHECKING:
    from adaptergit.splice.anatomy import Site

_STRUCTURE = (
    "mh_adapter",
    "output_adapter",
    "cross_adapter",
    "original_ln_before",
    "original_ln_after",
    "ln_before",
    "ln_after",
    "is_parallel",
    "use_gating",
    "residual_before_ln",
    "adapter_residual_before_ln",
)
_LOCATIONS = {"attention": "mh_adapter", "cross_attention": "cross_adapter", "ffn": "output_adapter"}


@register
@dataclass(frozen=True)
class Bottleneck(MethodConfig):
    """Configuration of a bottleneck adapter; fields and defaults are those of ``adapters``' ``BnConfig``.

    >>> config = Bottleneck(mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu")
    >>> config.bottleneck_size(hidden_size=768, block=0)
    48
    """

    family: ClassVar[str] = "bottleneck"

    mh_adapter: bool
    """After self-attention."""
    output_adapter: bool
    """After the feed-forward layer."""
    reduction_factor: float | Mapping[str, float]
    """hidden size / bottleneck size; or a mapping from block index to factor, with "default" for the others."""
    non_linearity: str
    """A transformers activation, or "leakyrelu"."""
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    """A LayerNorm of the adapter's own before the down-projection."""
    ln_after: bool = False
    """A LayerNorm of the adapter's own after the up-projection."""
    init_weights: str = "bert"
    """"bert", "mam_adapter" or "houlsby"."""
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    """A factor, "learned" (one scalar) or "channel" (one factor per hidden dimension)."""
    use_gating: bool = False
    residual_before_ln: bool | str = True
    """True, False or "post_add"."""
    adapter_residual_before_ln: bool = False
    cross_adapter: bool = False
    """After cross-attention."""
    leave_out: tuple[int, ...] = ()
    """Blocks without adapter."""
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    """Probability of skipping the adapter for a whole row, in training."""

    def __post_init__(self) -> None:
        for name in _LOCATIONS.values():
            _require(isinstance(getattr(self, name), bool), f"{name} must be True or False")
        _require(
            self.mh_adapter or self.output_adapter or self.cross_adapter,
            "a bottleneck needs at least one place: mh_adapter, output_adapter or cross_adapter",
        )
        factors = (
            self.reduction_factor.values() if isinstance(self.reduction_factor, Mapping) else (self.reduction_factor,)
        )
        for factor in factors:
            _require(_is_number(factor) and factor >= 0.01, f"reduction_factor must be at least 0.01, not {factor!r}")
        _require(
            _is_number(self.scaling) or self.scaling in ("learned", "channel"),
            f"scaling must be a number, 'learned' or 'channel', not {self.scaling!r}",
        )
        _require(
            self.init_weights in ("bert", "mam_adapter", "houlsby"),
            f"unknown init_weights {self.init_weights!r}: bert, mam_adapter or houlsby",
        )
        _require(
            self.residual_before_ln in (True, False, "post_add"),
            f"residual_before_ln must be True, False or 'post_add', not {self.residual_before_ln!r}",
        )
        for name in ("dropout", "stochastic_depth"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value < 1, f"{name} must be in [0, 1), not {value!r}")
        _require(
            isinstance(self.leave_out, tuple) and all(isinstance(i, int) for i in self.leave_out),
            "leave_out must be a list of block indices",
        )
        activation(self.non_linearity)

    def bottleneck_size(self, hidden_size: int, block: int) -> int:
        """Return the inner size in one block, at least 1."""
        factor = self.reduction_factor
        if isinstance(factor, Mapping):
            if str(block) not in factor and "default" not in factor:
                raise UsageError(f"reduction_factor says nothing about block {block}", hint="add a 'default'")
            factor = factor.get(str(block), factor.get("default", 1))
        return max(1, int(hidden_size // factor))

    def build(self, site: Site, hidden_size: int) -> nn.Module | None:
        """Make the adapter of one site, or None if the configuration leaves it out."""
        if site.block in self.leave_out or not getattr(self, _LOCATIONS[site.branch]):
            return None
        return BottleneckSite(self, hidden_size, self.bottleneck_size(hidden_size, site.block))

    def initialise(self, module: nn.Module, generator: torch.Generator | None) -> None:
        """Fill the projections: "bert" N(0, 0.02), "mam_adapter" kaiming and zero, "houlsby" truncated N(0, 0.01)."""
        assert isinstance(module, BottleneckSite)
        linears = [module.down, module.up, *([module.gate] if module.gate is not None else [])]
        for linear in linears:
            if self.init_weights == "mam_adapter" and linear is not module.gate:
                if linear is module.down:
                    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
                else:
                    nn.init.zeros_(linear.weight)
            elif self.init_weights == "houlsby":
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02, generator=generator)
            else:
                nn.init.normal_(linear.weight, std=0.02, generator=generator)
            nn.init.zeros_(linear.bias)
        for norm in (module.norm_before, module.norm_after):
            if norm is not None:
                norm.reset_parameters()
        if module.scaling is not None:
            nn.init.ones_(module.scaling)

    @property
    def method(self) -> str:
        """The preset with the same structure, whatever its sizes, activation and regularisation; else "bottleneck"."""
        for name, config in presets().items():
            if isinstance(config, Bottleneck) and config._structure() == self._structure():
                return name
        return self.family

    def _structure(self) -> tuple[object, ...]:
        scaling = self.scaling if isinstance(self.scaling, str) else "factor"
        return (scaling, *(getattr(self, name) for name in _STRUCTURE))


class BottleneckSite(nn.Module):
    """The weights of a bottleneck adapter at one site."""

    def __init__(self, config: Bottleneck, hidden_size: int, size: int) -> None:
        super().__init__()
        self.config = config
        self.activation = activation(config.non_linearity)
        self.norm_before = nn.LayerNorm(hidden_size) if config.ln_before else None
        self.down = nn.Linear(hidden_size, size)
        self.up = nn.Linear(size, hidden_size)
        self.norm_after = nn.LayerNorm(hidden_size) if config.ln_after else None
        self.gate = nn.Linear(hidden_size, 1) if config.use_gating else None
        self.dropout = nn.Dropout(config.dropout)
        lengths = {"learned": 1, "channel": hidden_size}
        self.scaling = (
            nn.Parameter(torch.ones(lengths[str(config.scaling)])) if isinstance(config.scaling, str) else None
        )

    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """Return what takes the branch's place, shape (batch, seq, hidden), in the dtype of ``h``.

        Args:
            h: Branch output, (batch, seq, hidden).
            x: Residual stream, (batch, seq, hidden).
            norm: The host's post-norm, or None.
        """
        config = self.config
        if config.is_parallel:
            out = self._transform(x)
            if self.norm_after is not None:
                out = self.norm_after(out)
            return (out + h).to(h.dtype)
        z = h
        if config.original_ln_before:
            z = h + x
            if norm is not None:
                # .forward: the host's own hooks on the norm belong to the host's own call.
                z = norm.forward(z)
        residual = h if config.residual_before_ln is True else h + x if config.residual_before_ln == "post_add" else z
        out = self._transform(z)
        if config.adapter_residual_before_ln:
            out = out + residual
        if self.norm_after is not None:
            out = self.norm_after(out)
        if not config.adapter_residual_before_ln:
            out = out + residual
        return out.to(h.dtype)

    @property
    def replaces_sum(self) -> bool:
        """True if the result stands for the whole sum with ``x`` (and its norm), not only for ``h``."""
        return not self.config.original_ln_after

    def _transform(self, z: torch.Tensor) -> torch.Tensor:
        z = z.to(self.down.weight.dtype)
        inner = z if self.norm_before is None else self.norm_before(z)
        out: torch.Tensor = self.up(self.activation(self.down(inner)))
        if self.scaling is not None:
            out = out * self.scaling
        elif self.config.scaling != 1.0:
            out = out * float(self.config.scaling)
        out = self.dropout(out)
        if self.training and self.config.stochastic_depth:
            keep = 1.0 - self.config.stochastic_depth
            out = out * torch.empty(
                out.shape[0], *[1] * (out.dim() - 1), device=out.device, dtype=out.dtype
            ).bernoulli_(keep).div_(keep)
        if self.gate is not None:
            out = out * torch.sigmoid(self.gate(z)).mean(dim=1, keepdim=True)
        return out


def activation(name: str) -> nn.Module:
    """Return an activation by its transformers name.

    Raises:
        UsageError: There is none of that name.
    """
    from transformers.activations import ACT2FN

    if str(name).lower() == "leakyrelu":
        return nn.LeakyReLU()
    if str(name).lower() not in ACT2FN:
        raise UsageError(f"unknown non_linearity {name!r}", hint=f"known: leakyrelu, {', '.join(sorted(ACT2FN))}")
    module: nn.Module = ACT2FN[str(name).lower()]
    return module


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UsageError(what)


_SEQ = Bottleneck(
    mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu", original_ln_before=True
)
_PAR = Bottleneck(
    mh_adapter=False,
    output_adapter=True,
    reduction_factor=2,
    non_linearity="relu",
    is_parallel=True,
    scaling=4.0,
    init_weights="mam_adapter",
)
register_preset("seq_bn", _SEQ, "pfeiffer")
register_preset(
    "double_seq_bn",
    Bottleneck(mh_adapter=True, output_adapter=True, reduction_factor=16, non_linearity="swish"),
    "houlsby",
)
register_preset("par_bn", _PAR, "parallel")
register_preset("scaled_par_bn", replace(_PAR, scaling="learned"), "scaled_parallel")
register_preset(
    "adapter_plus",
    replace(
        _SEQ,
        original_ln_after=False,
        residual_before_ln=False,
        scaling="channel",
        stochastic_depth=0.1,
        init_weights="houlsby",
        reduction_factor=96,
        non_linearity="gelu",
    ),
)
