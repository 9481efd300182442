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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.config import MethodConfig, presets, register, register_preset
from adaptergit.splice.layers import (
    Unfilled,
    activation,
    initialise_linear,
    is_number,
    require,
    require_counts,
    require_one_of,
    require_shares,
)
from adaptergit.splice.methods.invertible import Coupling, embedding_of
from adaptergit.splice.methods.phm import PHMLinear
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host

_STRUCTURE = (
    "mh_adapter", "output_adapter", "cross_adapter", "original_ln_before", "original_ln_after", "ln_before", "ln_after",
    "is_parallel", "use_gating", "residual_before_ln", "adapter_residual_before_ln",
)  # fmt: skip
_LOCATIONS = {
    "attention": "mh_adapter", "mixer": "mh_adapter", "cross_attention": "cross_adapter", "ffn": "output_adapter",
    "moe": "output_adapter",
}  # fmt: skip


@register
@dataclass(frozen=True)
class Bottleneck(MethodConfig):
    """Configuration of a bottleneck adapter; fields and defaults are those of ``adapters``' ``BnConfig``.

    Examples:
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
    """The host's residual sum and post-norm come before the adapter reads."""
    original_ln_after: bool = True
    """They come after the adapter, too."""
    ln_before: bool = False
    """A LayerNorm of the adapter's own before the down-projection."""
    ln_after: bool = False
    """A LayerNorm of the adapter's own after the up-projection."""
    init_weights: str = "bert"
    """"bert", "mam_adapter" or "houlsby"."""
    init_weights_seed: int | None = None
    """Random numbers of the initial weights; None: those of torch's own generator."""
    is_parallel: bool = False
    """The adapter reads the branch's input, and not its output."""
    scaling: float | str = 1.0
    """A factor, "learned" (one scalar) or "channel" (one factor per hidden dimension)."""
    use_gating: bool = False
    """Scale the adapter's output by a learned gate that reads its input."""
    residual_before_ln: bool | str = True
    """True, False or "post_add"."""
    adapter_residual_before_ln: bool = False
    """``ln_after`` takes the sum with the adapter's residual, and not the adapter's output alone."""
    cross_adapter: bool = False
    """After cross-attention."""
    leave_out: tuple[int, ...] = ()
    """Blocks without adapter."""
    dropout: float = 0.0
    """Share of the up-projection's outputs that is dropped in training."""
    inv_adapter: str | None = None
    """Invertible adapter at the embedding: "nice" (Dinh et al. 2015), "glow" (Kingma & Dhariwal 2018) or None."""
    inv_adapter_reduction_factor: float | None = None
    """Half the hidden size / inner size of the coupling functions."""
    inv_adapter_undo: bool = True
    """Undo it in front of the output embedding of the model's own class too, not only in heads beside the model.
    ``adapters`` does not in most of its models, so its checkpoints are read with False."""
    phm_layer: bool = False
    """Parameterised hypercomplex projections (Compacter, Mahabadi et al. 2021, arXiv:2106.04647)."""
    phm_dim: int = 4
    """Kronecker products that a projection is the sum of; both its sizes are multiples."""
    factorized_phm_W: bool = True  # noqa: N815 - the field's name
    """Each block of a projection is a product of two thin matrices."""
    shared_W_phm: bool = False  # noqa: N815
    """All places share the blocks."""
    shared_phm_rule: bool = True
    """All places share the rule, the matrices that the blocks are multiplied with (Kronecker)."""
    factorized_phm_rule: bool = False
    """The rule is a product of two thin matrices."""
    phm_c_init: str = "normal"
    """Of the rule: "normal" or "uniform"."""
    phm_init_range: float = 0.0001
    """Standard deviation of what is drawn from a normal distribution."""
    learn_phm: bool = True
    """Train the rule."""
    hypercomplex_nonlinearity: str = "glorot-uniform"
    """Initial values of the blocks: "glorot-uniform", "glorot-normal" or "normal"."""
    phm_rank: int = 1
    """Inner size of the thin matrices."""
    phm_bias: bool = True
    """Projections have a bias."""
    stochastic_depth: float = 0.0
    """Probability of skipping the adapter for a whole row, in training."""

    def __post_init__(self) -> None:
        require(
            self.mh_adapter or self.output_adapter or self.cross_adapter,
            "a bottleneck needs at least one place: mh_adapter, output_adapter or cross_adapter",
        )
        factors = (
            self.reduction_factor.values() if isinstance(self.reduction_factor, Mapping) else (self.reduction_factor,)
        )
        for factor in factors:
            require(is_number(factor) and factor >= 0.01, f"reduction_factor must be at least 0.01, not {factor!r}")
        require_one_of(
            self, scaling=("learned", "channel") if isinstance(self.scaling, str) else (self.scaling,),
            init_weights=("bert", "mam_adapter", "houlsby"), residual_before_ln=(True, False, "post_add"),
            inv_adapter=(None, "nice", "glow"), phm_c_init=("normal", "uniform"),
            hypercomplex_nonlinearity=("glorot-uniform", "glorot-normal", "normal"),
        )  # fmt: skip
        require_shares(self, "dropout", "stochastic_depth")
        require_counts(self, "phm_dim", "phm_rank")
        inner = self.inv_adapter_reduction_factor
        invertible = is_number(inner) and (inner or 0) > 0
        require(self.inv_adapter is None or invertible, "an invertible adapter needs inv_adapter_reduction_factor")
        activation(self.non_linearity)

    def bottleneck_size(self, hidden_size: int, block: int) -> int:
        """Return the inner size in one block, at least 1."""
        factor = self.reduction_factor
        if isinstance(factor, Mapping):
            if str(block) not in factor and "default" not in factor:
                raise UsageError(f"reduction_factor says nothing about block {block}", hint="add a 'default'")
            factor = factor.get(str(block), factor.get("default", 1))
        return max(1, int(hidden_size // factor))

    def build(self, host: Host) -> Parts:
        """Make the adapter of every site that the configuration names, and the invertible one at the embedding."""
        parts, shared = Parts(), activation(self.non_linearity)
        learned = any(True for _ in shared.parameters())
        for site in host.sites:
            if host.named is not None and site.key not in host.named:
                continue
            if site.block not in self.leave_out and getattr(self, _LOCATIONS[site.branch]):
                if site.residual is None and (self.is_parallel or not self.original_ln_after):
                    raise ModelError(
                        "this adapter needs the residual stream, which cannot be had here", where=site.output
                    )
                width = host.width(site)
                function = activation(self.non_linearity) if learned else shared
                parts.put(site, BottleneckSite(self, width, self.bottleneck_size(width, site.block), parts, function))
        if self.inv_adapter is not None:
            place, width = embedding_of(host)
            parts.put(place, Coupling(self, width))
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Fill the projections: "bert" N(0, 0.02), "mam_adapter" kaiming and zero, "houlsby" truncated N(0, 0.01)."""
        if parts.common is not None:
            parts.common.reset_parameters(generator)
        for module in parts.places.values():
            if isinstance(module, Coupling):
                module.reset_parameters(generator)
            elif isinstance(module, BottleneckSite):
                self._initialise_site(module, generator)

    def _initialise_site(self, module: BottleneckSite, generator: torch.Generator | None) -> None:
        for linear in (module.down, module.up, module.gate):
            if isinstance(linear, PHMLinear):
                linear.reset_parameters(generator)
            elif linear is not None:
                initialise_linear(
                    linear, self.init_weights, generator, up=linear is module.up, gate=linear is module.gate
                )
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
        return (scaling, self.phm_layer, self.inv_adapter, *(getattr(self, name) for name in _STRUCTURE))


class BottleneckSite(nn.Module):
    """The weights of a bottleneck adapter at one site."""

    def __init__(self, config: Bottleneck, hidden_size: int, size: int, parts: Parts, activation: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.activation = activation
        self.norm_before = nn.LayerNorm(hidden_size) if config.ln_before else None
        self.down: nn.Linear | PHMLinear
        self.up: nn.Linear | PHMLinear
        if config.phm_layer:
            self.down = PHMLinear(config, hidden_size, size, "down", parts)
            self.up = PHMLinear(config, size, hidden_size, "up", parts)
        else:
            self.down = Unfilled(hidden_size, size)
            self.up = Unfilled(size, hidden_size)
        self.norm_after = nn.LayerNorm(hidden_size) if config.ln_after else None
        self.gate = Unfilled(hidden_size, 1) if config.use_gating else None
        lengths = {"learned": 1, "channel": hidden_size}
        self.scaling = (
            nn.Parameter(torch.ones(lengths[str(config.scaling)])) if isinstance(config.scaling, str) else None
        )

    def forward(self, h: torch.Tensor, x: torch.Tensor | None, norm: nn.Module | None) -> torch.Tensor:
        """Return what takes the branch's place, shape (batch, seq, hidden), in the dtype of ``h``.

        Args:
            h: Branch output, (batch, seq, hidden).
            x: Residual stream, (batch, seq, hidden), or None where it cannot be had: ``h`` is all there is then.
            norm: The host's post-norm, or None.
        """
        config = self.config
        if config.is_parallel:
            assert x is not None
            z, residual = x, h
        else:
            z, residual = self._read(h, x, norm)
        out = self._regularise(self._transform(z), z)
        if config.adapter_residual_before_ln and not config.is_parallel:
            out = out + residual
        if self.norm_after is not None:
            out = self.norm_after(out)
        if config.is_parallel or not config.adapter_residual_before_ln:
            out = out + residual
        return out.to(h.dtype)

    def before_residual(
        self, h: torch.Tensor, x: torch.Tensor | None, norm: nn.Module | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, output without residual, and residual, for AdapterFusion; all (batch, seq, hidden)."""
        z, residual = (x, h) if self.config.is_parallel and x is not None else self._read(h, x, norm)
        return z, self._transform(z), residual

    def _read(
        self, h: torch.Tensor, x: torch.Tensor | None, norm: nn.Module | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        total = h if x is None else h + x
        z = h
        if config.original_ln_before:
            # .forward: the host's own hooks on the norm belong to the host's own call.
            z = total if norm is None else norm.forward(total)
        residual = h if config.residual_before_ln is True else total if config.residual_before_ln == "post_add" else z
        return z, residual

    @property
    def rowwise(self) -> bool:
        """Whether its weights are all its own, so that many of its kind can run at once, each on a row."""
        return not self.config.phm_layer

    @property
    def replaces_sum(self) -> bool:
        """True if the result stands for the whole sum with ``x`` (and its norm), not only for ``h``."""
        return not self.config.original_ln_after

    def _transform(self, z: torch.Tensor) -> torch.Tensor:
        bias = getattr(self.down, "bias", None)
        z = z.to(next(self.down.parameters()).dtype if bias is None else bias.dtype)
        inner = z if self.norm_before is None else self.norm_before(z)
        out: torch.Tensor = self.up(self.activation(self.down(inner)))
        if self.scaling is not None:
            out = out * self.scaling
        elif self.config.scaling != 1.0:
            out = out * float(self.config.scaling)
        return out

    def _regularise(self, out: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if self.training:
            out = nn.functional.dropout(out, self.config.dropout)
        if self.training and self.config.stochastic_depth:
            keep = 1.0 - self.config.stochastic_depth
            out = out * torch.empty(
                out.shape[0], *[1] * (out.dim() - 1), device=out.device, dtype=out.dtype
            ).bernoulli_(keep).div_(keep)
        if self.gate is not None:
            out = out * torch.sigmoid(self.gate(z.to(out.dtype))).mean(dim=1, keepdim=True)
        return out


_SEQ = Bottleneck(
    mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu", original_ln_before=True
)
_PAR = Bottleneck(
    mh_adapter=False, output_adapter=True, reduction_factor=2, non_linearity="relu", is_parallel=True, scaling=4.0,
    init_weights="mam_adapter",
)  # fmt: skip
_DOUBLE = Bottleneck(mh_adapter=True, output_adapter=True, reduction_factor=16, non_linearity="swish")
_INVERTIBLE: Mapping[str, Any] = {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
_COMPACTER: Mapping[str, Any] = {"phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu"}
register_preset("seq_bn", _SEQ, "pfeiffer")
register_preset("double_seq_bn", _DOUBLE, "houlsby")
register_preset("seq_bn_inv", replace(_SEQ, **_INVERTIBLE), "pfeiffer+inv")
register_preset("double_seq_bn_inv", replace(_DOUBLE, **_INVERTIBLE), "houlsby+inv")
register_preset("compacter", replace(_DOUBLE, **_COMPACTER))
register_preset("compacter++", replace(_SEQ, **_COMPACTER))
# Bapna & Firat 2019 (arXiv:1909.08478): a LayerNorm of the adapter's own in front, after the whole block.
_BAPNA_FIRAT = replace(_SEQ, ln_before=True, original_ln_after=False, residual_before_ln=False)
register_preset("bapna_firat", _BAPNA_FIRAT)
register_preset("par_bn", _PAR, "parallel")
register_preset("scaled_par_bn", replace(_PAR, scaling="learned"), "scaled_parallel")
_PLUS = replace(
    _SEQ, original_ln_after=False, residual_before_ln=False, scaling="channel", stochastic_depth=0.1,
    init_weights="houlsby", reduction_factor=96, non_linearity="gelu",
)  # fmt: skip
register_preset("adapter_plus", _PLUS)
