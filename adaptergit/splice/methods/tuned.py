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

from adaptergit.errors import ModelError
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

    @property
    def method(self) -> str:
        """``tuned``."""
        return self.family

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
    twin.__dict__ = {**module.__dict__, "_parameters": {**module._parameters, **parameters}}
    out: torch.Tensor = type(module).forward(twin, inputs)  # a forward of the module's own is bound to it
    return out


class TunedSite(nn.Module):
    """Values for some parameters of one module."""

    additive = False

    def __init__(self, host: nn.Module, names: list[str]) -> None:
        super().__init__()
        self._host = [host]
        own = dict(host.named_parameters(recurse=False))
        for name in names:
            if name not in own:
                raise ModelError(f"{type(host).__name__} has no parameter {name!r}")
            self.register_parameter(name, nn.Parameter(torch.empty(own[name].shape)))

    def reset_parameters(self) -> None:
        """Copy the model's values."""
        own = dict(self._host[0].named_parameters(recurse=False))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(own[name])

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the module's output with these values."""
        return run_with(self._host[0], dict(self.named_parameters()), inputs)

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return update


class TokenRows(nn.Module):
    """Rows of an embedding, (tokens, width)."""

    additive = False

    def __init__(self, host: Any, tokens: tuple[int, ...]) -> None:
        super().__init__()
        self._host, self.tokens = [host], tokens
        self.rows = nn.Parameter(torch.empty(len(tokens), host.weight.shape[1]))

    def reset_parameters(self) -> None:
        """Copy the model's rows."""
        with torch.no_grad():
            self.rows.copy_(self._host[0].weight[list(self.tokens)])

    def table(self) -> torch.Tensor:
        """Return the embedding with the rows in it, (vocabulary, width)."""
        weight: torch.Tensor = self._host[0].weight
        index = torch.tensor(self.tokens, device=weight.device)
        return weight.index_copy(0, index, self.rows.to(weight.dtype))

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the module's output with these rows."""
        return run_with(self._host[0], {"weight": self.table()}, inputs)

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return update


class TiedRows(nn.Module):
    """The same rows in an output embedding that is tied to the input's."""

    additive = False

    def __init__(self, rows: TokenRows, host: nn.Module) -> None:
        super().__init__()
        self._rows, self._host = [rows], [host]

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the module's output with these rows."""
        return run_with(self._host[0], {"weight": self._rows[0].table()}, inputs)

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return update
