"""What LoRA and its relatives share: the linear layers they act on, how fused ones are cut, gates and magnitudes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import Projection, is_linear
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.layers import Unfilled, is_number, require, require_counts, require_one_of, require_shares
from adaptergit.splice.places import Linear, Parts
from adaptergit.splice.sidecar import own_modules
from adaptergit.splice.trace import within

if TYPE_CHECKING:
    from adaptergit.splice.places import Host

_ORDER = ("q", "k", "v")


@dataclass(frozen=True)
class OnLinears(MethodConfig):
    """Fields that say which linear layers a method acts on."""

    selfattn_lora: bool = True
    """In every attention: the matrices of ``attn_matrices``."""
    intermediate_lora: bool = False
    """In the first layer of the feed-forward (role ``up``)."""
    output_lora: bool = False
    """In the last layer of the feed-forward (role ``down``)."""
    leave_out: tuple[int, ...] = ()
    """Blocks without adapter."""
    attn_matrices: tuple[str, ...] = ("q", "v")
    """Of "q", "k" and "v": the projections of an attention that are adapted."""
    target_modules: tuple[str, ...] | str | None = None
    """Paths of linear layers, as in PEFT; None: by role."""
    init_weights_seed: int | None = None
    """Random numbers of the initial weights; None: those of torch's own generator."""
    dtype: str | None = None
    """Of the parameters, like "float16"; None: the host's."""

    @property
    def embeds(self) -> bool:
        """Whether it is defined for layers that look tokens up."""
        return False

    def __post_init__(self) -> None:
        require(
            isinstance(self.attn_matrices, tuple) and set(self.attn_matrices) <= set(_ORDER),
            f"attn_matrices holds 'q', 'k' and 'v', not {self.attn_matrices!r}",
        )

    def put(self, host: Host, make: Callable[[Target, nn.Module], nn.Module], *, fused: bool = False) -> Parts:
        """Put what ``make`` makes at every layer.

        Raises:
            UsageError: A layer is fused with others, and the method is not defined for a part of it.
        """
        parts = Parts()
        for target in targets(self, host):
            if target.fused and not fused:
                raise UsageError(
                    f"{self.method} is not defined for a part of a fused layer",
                    hint=f"name all of {target.place.path}: target_modules",
                )
            layer = host.module(target.place.path)
            if isinstance(layer, nn.Embedding) and not self.embeds:
                raise ModelError(f"{self.method} is not defined for an embedding", where=target.place.path)
            parts.put(target.place, make(target, layer))
        return parts


@dataclass(frozen=True)
class LowRank(OnLinears):
    """Fields of ``adapters``' ``LoRAConfig``, which its relatives have too."""

    starts: ClassVar[tuple[str, ...]] = ("lora",)
    """Values of ``init_weights``."""
    gated: ClassVar[bool] = False
    """Whether there are gates."""

    r: int = 8
    """Rank of the update."""
    alpha: float = 8
    """The update is scaled by ``alpha / r``."""
    dropout: float = 0.0
    """Share of the layer's inputs that is dropped in training, in front of A."""
    composition_mode: str = "add"
    """What is done with the layer's output: "add", or "scale" in IA3."""
    init_weights: str = "lora"
    """One of ``starts``: how the matrices begin."""
    use_gating: bool = False
    """Scale the update by a learned gate that reads the layer's input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "r")
        require_shares(self, "dropout")
        require(is_number(self.alpha), f"alpha must be a number, not {self.alpha!r}")
        require_one_of(self, composition_mode=(type(self).composition_mode,), init_weights=self.starts)
        require(not self.use_gating or self.gated, f"{self.family} has no gates")


@dataclass(frozen=True)
class Target:
    """A linear layer, and the parts of its output that are adapted."""

    place: Projection | Linear
    inputs: int
    outputs: int
    slots: tuple[tuple[int, int], ...]
    """Ranges of the output dimension; one range that is all of it where nothing is fused."""

    @property
    def fused(self) -> bool:
        """Whether it is one of several matrices in one layer."""
        return self.slots != ((0, self.outputs),)


def targets(config: OnLinears, host: Host) -> Iterator[Target]:
    """Yield the linear layers a configuration names.

    ``target_modules`` are paths from the base model, or the ends of paths; a string is a regular expression for whole
    paths, or "all-linear" for every linear layer of the blocks. Without it, roles decide.
    """
    if config.target_modules is not None:
        yield from _by_path(config, host)
        return
    for projection in host.projections:
        if projection.block in config.leave_out:
            continue
        inputs, outputs = host.features(projection)
        if projection.role in config.attn_matrices and config.selfattn_lora:
            yield Target(projection, inputs, outputs, ((0, outputs),))
        elif projection.role == "qkv" and config.selfattn_lora:
            ranges = fused_ranges(host, projection)
            yield Target(projection, inputs, outputs, tuple(ranges[m] for m in _ORDER if m in config.attn_matrices))
        elif (projection.role == "up" and config.intermediate_lora) or (
            projection.role == "down" and config.output_lora
        ):
            yield Target(projection, inputs, outputs, ((0, outputs),))


def _by_path(config: OnLinears, host: Host) -> Iterator[Target]:
    known = {projection.path: projection for projection in host.projections}
    wanted = config.target_modules
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise UsageError(f"target_modules={wanted!r} is no regular expression: {error}") from error
        paths = [
            path
            for path, module in own_modules(host.base)
            if is_linear(module)
            and (
                any(within(path, block) for block in host.anatomy.block_paths)
                if wanted == "all-linear"
                else pattern.fullmatch(path)
            )
        ]
    else:
        paths = [
            path
            for path, module in own_modules(host.base)
            if _takes_update(module) and any(path == end or path.endswith(f".{end}") for end in wanted or ())
        ]
    for path in paths:
        place = known.get(path) or Linear(path)
        if config.leave_out and host.block_of(place) in config.leave_out:
            continue
        inputs, outputs = host.features(place)
        yield Target(place, inputs, outputs, ((0, outputs),))


def _takes_update(module: Any) -> bool:
    return is_linear(module) or type(module).__name__ == "Embedding"


def fused_ranges(host: Host, projection: Projection) -> Mapping[str, tuple[int, int]]:
    """Return the range of q, k and v in the output of a fused layer."""
    outputs = host.features(projection)[1]
    config = getattr(host.module(projection.path.rpartition(".")[0]), "config", None) or host.base.config
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if not heads or not groups or outputs % (heads + 2 * groups):
        raise ModelError("how queries, keys and values are fused here is not known", where=projection.path)
    size = outputs // (heads + 2 * groups)
    q, k = heads * size, groups * size
    return {"q": (0, q), "k": (q, q + k), "v": (q + k, q + 2 * k)}


def spread(parts: list[torch.Tensor], target: Target) -> torch.Tensor:
    """Put the slots' updates where they belong in the layer's output, zeros elsewhere."""
    if not target.fused:
        return parts[0]
    out = parts[0].new_zeros(*parts[0].shape[:-1], target.outputs)
    for (start, stop), part in zip(target.slots, parts, strict=True):
        out[..., start:stop] = part
    return out


class LowRankSite(nn.Module):
    """What acts at one linear layer by adding to its output; with a gate in place of the factor, and with magnitudes.

    A method gives ``update`` and ``product``.
    """

    def __init__(self, config: LowRank, target: Target, host: nn.Module, *, scale: float, dora: bool = False) -> None:
        super().__init__()
        self.config, self.target, self.scale = config, target, scale
        self._host: list[Any] = [host]  # in a list: not a part of this module
        self.dropout = nn.Dropout(config.dropout)
        self.gate = Unfilled(target.inputs, len(target.slots)) if config.use_gating else None
        self.m = nn.Parameter(torch.empty(target.outputs, 1)) if dora else None
        self.additive = self.m is None

    def product(self) -> torch.Tensor:
        """Return the change of the layer's matrix (outputs, inputs) before the factor."""
        raise NotImplementedError

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Fill gate and magnitudes, which are the norms of the host's weights."""
        reset_gate(self.gate, generator)
        if self.m is not None:
            with torch.no_grad():
                self.m.copy_(weight_of(self._host[0]).float().norm(dim=1, keepdim=True))

    def scaled(self, parts: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return the slots' updates times the gate or the factor, where they belong in the layer's output."""
        if self.gate is not None:
            gate = opened(self.gate, inputs)
            parts = [part * gate[..., i : i + 1] for i, part in enumerate(parts)]
        elif self.scale != 1.0:
            parts = [part * self.scale for part in parts]
        return spread(parts, self.target)

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the layer's new output, (batch, seq, outputs)."""
        if self.m is None:
            return y + update
        factor, bias = self._factor(weight_of(self._host[0])).view(-1), getattr(self._host[0], "bias", None)
        if self.scales_bias or bias is None:
            whole: torch.Tensor = factor * (y + update)
            return whole
        scaled: torch.Tensor = bias + factor * (y - bias + update)
        return scaled

    @property
    def scales_bias(self) -> bool:
        """Whether magnitudes are those of ``adapters``, which scale the bias too and leave the factor out of the norm.

        The paper's do neither.
        """
        return True

    def delta(self) -> torch.Tensor:
        """Return what is added to the layer's matrix, (outputs, inputs)."""
        if self.gate is not None:
            raise UsageError("what is gated depends on its input: it cannot be merged", hint="leave it active")
        product = self.product()
        # It is ours alone; memory that is new for every step takes longer than the arithmetic.
        return self.scale * product if torch.is_grad_enabled() else product.mul_(self.scale)

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the update in it, (outputs, inputs)."""
        delta = self.delta().to(weight.dtype)
        total = weight + delta if torch.is_grad_enabled() else delta.add_(weight)
        return total if self.m is None else self._factor(weight).to(weight.dtype) * total

    def merged_bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias that goes with :meth:`merged`, or None if it stays."""
        if self.m is None or bias is None or not self.scales_bias:
            return None
        return bias * self._factor(weight_of(self._host[0])).to(bias.dtype).view(-1)

    def _factor(self, weight: torch.Tensor) -> torch.Tensor:
        """Return magnitudes over row norms; those are constants for the gradient (DoRA, §4.3)."""
        assert self.m is not None
        factor = 1.0 if self.scales_bias else self.scale
        norm: torch.Tensor = (weight.to(self.m.dtype) + factor * self.product()).norm(dim=1, keepdim=True)
        return self.m / norm.detach()


def opened(gate: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Return how far gates are open, (batch, 1, gates): the mean over the sequence."""
    return torch.sigmoid(gate(inputs.to(gate.weight.dtype))).mean(dim=1, keepdim=True)


def reset_gate(gate: nn.Linear | None, generator: torch.Generator | None) -> None:
    """Fill a gate: N(0, 0.02), no bias."""
    if gate is not None:
        nn.init.normal_(gate.weight, std=0.02, generator=generator)
        nn.init.zeros_(gate.bias)


def weight_of(linear: Any) -> torch.Tensor:
    """Return a linear layer's matrix as (outputs, inputs); a copy, if the layer is quantised.

    Raises:
        ModelError: It is quantised in a way that cannot be undone here, or kept elsewhere.
    """
    weight = linear.weight
    if getattr(weight, "is_meta", False):
        raise ModelError(
            f"the weights of this {type(linear).__name__} are offloaded, and the adapter reads them",
            hint="load the model without offloading it, or use a method that does not read weights",
        )
    if is_quantised(linear):
        weight = _dequantised(linear)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise ModelError(f"the weights of this {type(linear).__name__} are quantised: its matrix cannot be read")
    return weight.T if stands_upright(linear) else weight


def stands_upright(layer: Any) -> bool:
    """Tell whether a layer keeps its matrix as (inputs, outputs)."""
    return type(layer).__name__ in ("Conv1D", "Embedding")


def is_quantised(linear: Any) -> bool:
    """Tell whether a linear layer's weight holds something else than its matrix."""
    weight = linear.weight
    return not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or _made_by("torchao", weight)


def _dequantised(linear: Any) -> Any:
    weight = linear.weight
    if _made_by("bitsandbytes", weight):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, getattr(linear, "state", None))
    # A plain tensor of integers has a dequantize() too, which knows no scales.
    return weight.dequantize() if _made_by("torchao", weight) else weight


def _made_by(package: str, weight: Any) -> bool:
    # The first is what torch.compile understands, and what nearly all weights are.
    return type(weight) not in (torch.Tensor, nn.Parameter) and type(weight).__module__.startswith(f"{package}.")
