"""Unions: several methods as one adapter, like MAM (He et al. 2022) and UniPELT (Mao et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.config import MethodConfig, config_from_dict, describe, presets, register, register_preset
from adaptergit.splice.layers import seeded
from adaptergit.splice.methods.bottleneck import Bottleneck
from adaptergit.splice.methods.lora import LoRA
from adaptergit.splice.methods.prefix_tuning import PrefixTuning
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    import torch

    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class Union(MethodConfig):
    """Configurations that act together; written ``a|b`` in config strings."""

    family: ClassVar[str] = "union"

    configs: tuple[MethodConfig, ...]

    def __post_init__(self) -> None:
        # From a card, the parts are plain data.
        parts = tuple(config_from_dict(str(c.get("family")), c) if isinstance(c, Mapping) else c for c in self.configs)
        if len(parts) < 2 or not all(isinstance(part, MethodConfig) for part in parts):
            raise UsageError("a union holds two configurations or more")
        object.__setattr__(self, "configs", parts)

    @property
    def method(self) -> str:
        """``mam``, ``unipelt``, or the parts' methods joined with plus signs."""
        kinds = tuple(config.method for config in self.configs)
        known: Mapping[tuple[str, ...], str] = {("prefix_tuning", "par_bn"): "mam"}
        gated = all(getattr(config, "use_gating", False) for config in self.configs)
        if gated and {c.family for c in self.configs} == {"prefix_tuning", "bottleneck", "lora"}:
            return "unipelt"
        return known.get(kinds, "+".join(kinds))

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain data."""
        return {"configs": [describe(config) for config in self.configs]}

    def build(self, host: Host) -> Parts:
        """Build the parts, numbered.

        Raises:
            UsageError: Two of them act at the same place.
            ModelError: One of them has no place.
        """
        parts = Parts()
        for number, config in enumerate(self.configs):
            built = config.build(host)
            if not built.places:
                raise ModelError(f"{config.method} of this union has no place in this model", hint="leave it out")
            for place in built.places:
                if place in parts.places:
                    raise UsageError(f"two parts of the union act at {place.key}", hint="use leave_out, or a Stack")
            parts.add_module(str(number), built)
            parts.places.update(built.places)
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Initialise the parts in order, each from its own seed if it has one."""
        for config, part, _ in leaves(self, parts):
            config.initialise(part, host, seeded(config) or generator)


def leaves(config: MethodConfig, parts: Parts, prefix: str = "") -> Iterator[tuple[MethodConfig, Parts, str]]:
    """Yield what a configuration is made of, unions taken apart, each with what its tensors' names begin with."""
    if not isinstance(config, Union):
        yield config, parts, prefix
        return
    for number, child in enumerate(config.configs):
        yield from leaves(child, cast("Parts", parts.get_submodule(str(number))), f"{prefix}{number}.")


_SEQ, _PAR = presets()["seq_bn"], presets()["par_bn"]
assert isinstance(_SEQ, Bottleneck)
register_preset("mam", Union((PrefixTuning(bottleneck_size=800), _PAR)))
_GATED_PREFIX, _GATED_LORA = PrefixTuning(prefix_length=10, use_gating=True), LoRA(r=8, alpha=2, use_gating=True)
register_preset("unipelt", Union((_GATED_PREFIX, replace(_SEQ, use_gating=True), _GATED_LORA)))
