"""Small pieces that methods and heads share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from adaptergit.errors import UsageError


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


class Unfilled(nn.Linear):
    """A linear layer that is made without values: PyTorch's own would be overwritten at once, and take longer."""

    def reset_parameters(self) -> None:
        """Leave it to whoever made it."""


def initialise_linear(
    linear: nn.Linear, how: str, generator: torch.Generator | None, *, up: bool = False, gate: bool = False
) -> None:
    """Fill a linear layer: "bert" N(0, 0.02), "mam_adapter" kaiming and zero, "houlsby" truncated N(0, 0.01)."""
    if how == "mam_adapter" and not gate:
        if up:
            nn.init.zeros_(linear.weight)
        else:
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
    elif how == "houlsby":
        nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02, generator=generator)
    else:
        nn.init.normal_(linear.weight, std=0.02, generator=generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def is_number(value: Any) -> bool:
    """Tell whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def require(condition: bool, what: str) -> None:
    """Raise a :class:`UsageError` unless the condition holds."""
    if not condition:
        raise UsageError(what)


def require_counts(config: Any, *names: str, least: int = 1) -> None:
    """Raise a :class:`UsageError` unless these fields are whole numbers, and not too small."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= least, f"{name} must be a whole number from {least} on, not {value!r}")
    ranks = pattern.values() if isinstance(pattern := getattr(config, "rank_pattern", None), Mapping) else ()
    require(all(isinstance(r, int) and r >= 1 for r in ranks), "rank_pattern: a rank is a whole number from 1 on")


def require_shares(config: Any, *names: str) -> None:
    """Raise a :class:`UsageError` unless these fields are numbers in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        require(is_number(value) and 0 <= value < 1, f"{name} must be in [0, 1), not {value!r}")


def require_one_of(config: Any, **choices: tuple[Any, ...]) -> None:
    """Raise a :class:`UsageError` unless these fields have one of the values."""
    for name, allowed in choices.items():
        value = getattr(config, name)
        require(value in allowed, f"{name} must be {', '.join(map(repr, allowed))}, not {value!r}")


def seeded(config: Any) -> torch.Generator | None:
    """Return the source of a configuration's first values, if it names one: ``init_weights_seed``."""
    seed = getattr(config, "init_weights_seed", None)
    return None if seed is None else torch.Generator().manual_seed(seed)
