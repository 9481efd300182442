"""What LoRA and its relatives share: which linear layers of the model they act on, and how fused ones are cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from adaptergit.errors import ModelError
from adaptergit.splice.anatomy import Projection, is_linear
from adaptergit.splice.layers import require
from adaptergit.splice.places import Linear

if TYPE_CHECKING:
    from adaptergit.splice.places import Host

_ORDER = ("q", "k", "v")


class Targeting(Protocol):
    """Fields that say where a method acts."""

    @property
    def selfattn_lora(self) -> bool: ...  # noqa: D102
    @property
    def intermediate_lora(self) -> bool: ...  # noqa: D102
    @property
    def output_lora(self) -> bool: ...  # noqa: D102
    @property
    def attn_matrices(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def leave_out(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def target_modules(self) -> tuple[str, ...] | str | None: ...  # noqa: D102


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


def targets(config: Targeting, host: Host) -> Iterator[Target]:
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


def _by_path(config: Targeting, host: Host) -> Iterator[Target]:
    known = {projection.path: projection for projection in host.projections}
    wanted = config.target_modules
    if isinstance(wanted, str):
        paths = [
            path
            for path, module in host.base.named_modules()
            if is_linear(module)
            and (
                any(path.startswith(f"{block}.") for block in host.anatomy.block_paths)
                if wanted == "all-linear"
                else re.fullmatch(wanted, path)
            )
        ]
    else:
        paths = [
            path
            for path, module in host.base.named_modules()
            if _takes_update(module) and any(path == end or path.endswith(f".{end}") for end in wanted or ())
        ]
    for path in paths:
        place = known.get(path) or Linear(path)
        if isinstance(place, Projection) and place.block in config.leave_out:
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


def check_targets(config: Any) -> None:
    """Check the fields that say where a method acts.

    Raises:
        UsageError: A value is not allowed.
    """
    require(
        isinstance(config.attn_matrices, tuple) and set(config.attn_matrices) <= set(_ORDER),
        f"attn_matrices holds 'q', 'k' and 'v', not {config.attn_matrices!r}",
    )
    require(
        isinstance(config.leave_out, tuple) and all(isinstance(i, int) for i in config.leave_out),
        "leave_out must be a list of block indices",
    )


def spread(parts: list[torch.Tensor], target: Target) -> torch.Tensor:
    """Put the slots' updates where they belong in the layer's output, zeros elsewhere."""
    if not target.fused:
        return parts[0]
    out = parts[0].new_zeros(*parts[0].shape[:-1], target.outputs)
    for (start, stop), part in zip(target.slots, parts, strict=True):
        out[..., start:stop] = part
    return out


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
    return weight.T if type(linear).__name__ == "Conv1D" else weight


def is_quantised(linear: Any) -> bool:
    """Tell whether a linear layer's weight holds something else than its matrix."""
    weight = linear.weight
    return (
        not isinstance(weight, torch.Tensor)
        or not weight.is_floating_point()
        or type(weight).__module__.startswith("torchao.")
    )


def _dequantised(linear: Any) -> Any:
    weight = linear.weight
    if type(weight).__module__.startswith("bitsandbytes."):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, getattr(linear, "state", None))
    # A plain tensor of integers has a dequantize() too, which knows no scales.
    return weight.dequantize() if type(weight).__module__.startswith("torchao.") else weight
