"""Parameters of the model's own that an adapter has values of its own for.

Biases (BitFit, Ben Zaken et al. 2022, arXiv:2106.10199), norms (LN tuning, Zhao et al. 2024, arXiv:2312.11420), whole
modules, and rows of an embedding for chosen tokens. The model's own values stay as they are: the module runs again with
the adapter's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adaptergit.errors import ModelError, did_you_mean
from adaptergit.splice.config import MethodConfig, register
from adaptergit.splice.layers import require
from adaptergit.splice.places import Parts, Tuned

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class TunedParameters(MethodConfig):
    """Configuration: which parameters, by path from the whole model.

    >>> TunedParameters(parameters=("encoder.layer.0.output.LayerNorm.weight",)).method
    'tuned'
    """

    family: ClassVar[str] = "tuned"

    parameters: tuple[str, ...] = ()
    """Paths of parameters."""
    tokens: Mapping[str, tuple[int, ...]] | None = None
    """Path of an embedding, and the tokens whose rows are the adapter's; output embeddings that are tied follow."""

    def __post_init__(self) -> None:
        require(bool(self.parameters or self.tokens), "name the parameters or tokens that are tuned")

    def build(self, host: Host) -> Parts:
        """Make the values."""
        parts = Parts()
        by_module: dict[str, list[str]] = {}
        for path in self.parameters:
            module, _, name = path.rpartition(".")
            by_module.setdefault(module, []).append(name)
        for path, names in by_module.items():
            parts.put(Tuned(path), TunedSite(_module(host, path), names))
        for path, tokens in (self.tokens or {}).items():
            embedding = _module(host, path)
            rows = TokenRows(embedding, tuple(tokens))
            parts.put(Tuned(path), rows)
            for other, module in host.model.named_modules():
                if other != path and getattr(module, "weight", None) is embedding.weight:
                    parts.places[Tuned(other)] = TiedRows(rows, module)
        return parts

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Start from the model's values."""
        for module in parts.places.values():
            if isinstance(module, TunedSite | TokenRows):
                module.reset_parameters()


def _module(host: Host, path: str) -> nn.Module:
    try:
        return host.model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"the model has no module {path!r}") from error


def run_with(module: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Run a module with other parameters, without its hooks, and without changing it."""
    twin = copy.copy(module)
    own = {name: _like(value, module._parameters.get(name)) for name, value in parameters.items()}
    twin.__dict__ = {**module.__dict__, "_parameters": {**module._parameters, **own}}
    out: torch.Tensor = type(module).forward(twin, inputs)  # a forward of the module's own is bound to it
    return out


def _like(value: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    return value if own is None or not own.is_floating_point() else value.to(own.dtype)


class _Replacing(nn.Module):
    """Runs a module with other parameters in its place."""

    additive, replaces = False, True

    def __init__(self, host: Any) -> None:
        super().__init__()
        self._host = [host]  # in a list: not a part of this module

    def values(self) -> dict[str, torch.Tensor]:
        """Return the other parameters."""
        raise NotImplementedError

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the module's output with these values."""
        return run_with(self._host[0], self.values(), inputs)

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return update


class TunedSite(_Replacing):
    """Values for some parameters of one module."""

    def __init__(self, host: nn.Module, names: list[str]) -> None:
        super().__init__(host)
        own = dict(host.named_parameters(recurse=False))
        for name in names:
            if name not in own:
                raise ModelError(f"{type(host).__name__} has no parameter {name!r}", hint=did_you_mean(name, own))
            self.register_parameter(name, nn.Parameter(torch.empty(own[name].shape)))

    def reset_parameters(self) -> None:
        """Copy the model's values."""
        own = dict(self._host[0].named_parameters(recurse=False))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(own[name])

    def values(self) -> dict[str, torch.Tensor]:
        """Return the adapter's."""
        return dict(self.named_parameters())


class TokenRows(_Replacing):
    """Rows of an embedding, (tokens, width)."""

    def __init__(self, host: Any, tokens: tuple[int, ...]) -> None:
        super().__init__(host)
        self.tokens = tokens
        self.rows = nn.Parameter(torch.empty(len(tokens), host.weight.shape[1]))

    def reset_parameters(self) -> None:
        """Copy the model's rows."""
        with torch.no_grad():
            self.rows.copy_(self._host[0].weight[list(self.tokens)])

    def values(self) -> dict[str, torch.Tensor]:
        """Return the embedding with the rows in it, (vocabulary, width)."""
        weight: torch.Tensor = self._host[0].weight
        index = torch.tensor(self.tokens, device=weight.device)
        return {"weight": weight.index_copy(0, index, self.rows.to(weight.dtype))}


class TiedRows(_Replacing):
    """The same rows in an output embedding that is tied to the input's."""

    def __init__(self, rows: TokenRows, host: nn.Module) -> None:
        super().__init__(host)
        self._rows = [rows]

    def values(self) -> dict[str, torch.Tensor]:
        """Return the embedding's."""
        return self._rows[0].values()
