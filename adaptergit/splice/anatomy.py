"""Anatomy: the places of a model where adapters can be spliced in.

A *site* is one residual branch of one block. With ``h`` the branch's output and ``x`` the residual stream, the host
computes ``x + h`` (pre-norm) or ``norm(h + x)`` (post-norm); adapters work on ``h``, and may read ``x`` and ``norm``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from adaptergit.errors import ModelError
from adaptergit.splice.families import FAMILIES, Branch, family_of


@dataclass(frozen=True)
class Site:
    """One residual branch of one block. Paths start at the base model."""

    block: int
    branch: Branch
    output: str
    """Module whose output (or first output) is the branch ``h``, shape (batch, seq, hidden)."""
    residual: str
    """Module whose first argument is the residual stream ``x``, shape (batch, seq, hidden)."""
    norm: str | None
    """Post-norm applied to ``h + x``, or None."""

    @property
    def key(self) -> str:
        """Architecture-free name, as tensor names start with: ``blocks.3.ffn``."""
        return f"blocks.{self.block}.{self.branch}"


@dataclass(frozen=True)
class Anatomy:
    """All sites of one model."""

    sites: tuple[Site, ...]
    hidden_size: int
    blocks: int
    pooling: Literal["first", "last"]

    def site(self, block: int, branch: Branch) -> Site | None:
        """Return a site by position, or None."""
        return next((s for s in self.sites if (s.block, s.branch) == (block, branch)), None)


def base_of(model: nn.Module) -> nn.Module:
    """Return the model without its head: ``model.base_model`` of transformers, or the model itself."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def anatomy_of(model: nn.Module, sites: Iterable[Mapping[str, Any]] | None = None) -> Anatomy:
    """Find the sites of a model.

    Args:
        model: A transformers model, with or without head.
        sites: Sites resolved earlier (from a card); used where the model's type is not in the table.

    Raises:
        ModelError: The type is unknown, or a module that the table names is missing.
    """
    base = base_of(model)
    model_type = str(getattr(getattr(base, "config", None), "model_type", type(base).__name__))
    family = family_of(model_type)
    if family is None:
        if sites is None:
            raise _unknown(model_type, base)
        found = tuple(Site(**site) for site in sites)
    else:
        blocks = _module(base, family.blocks, model_type)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise ModelError(f"{model_type}: {family.blocks} is not a list of blocks")
        found = tuple(
            Site(
                block=index,
                branch=row.branch,
                output=f"{family.blocks}.{index}.{row.output}",
                residual=f"{family.blocks}.{index}.{row.residual}",
                norm=f"{family.blocks}.{index}.{row.norm}" if row.norm else None,
            )
            for index in range(len(blocks))
            for row in family.branches
        )
    for site in found:
        for path in (site.output, site.residual, site.norm):
            if path is not None:
                _module(base, path, model_type)
    pooling = family.pooling if family else "first"
    return Anatomy(found, _hidden_size(base, model_type), len({s.block for s in found}), pooling)


def as_records(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """Return sites as a card stores them."""
    return [asdict(site) for site in sites]


def parameter_of(base: nn.Module, site: Site) -> torch.Tensor:
    """Return a floating-point parameter of the site's block: adapters take its device and dtype."""
    block = base.get_submodule(site.output.rpartition(".")[0])
    for module in (block, base):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter
    raise ModelError("the model has no floating-point parameter", where=site.output)


def _module(base: nn.Module, path: str, model_type: str) -> nn.Module:
    try:
        return base.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"this {model_type} model has no module {path!r}", where=type(base).__name__, hint=_tree(base)
        ) from error


def _hidden_size(base: nn.Module, model_type: str) -> int:
    size = getattr(getattr(base, "config", None), "hidden_size", None)
    if not isinstance(size, int):
        raise ModelError(f"{model_type}: config.hidden_size is not a number")
    return size


def _unknown(model_type: str, base: nn.Module) -> ModelError:
    known = ", ".join(sorted(t for family in FAMILIES for t in family.model_types))
    return ModelError(
        f"models of type {model_type!r} are not in the table of families (known: {known})", hint=_tree(base)
    )


def _tree(base: nn.Module, depth: int = 3) -> str:
    """Print the module tree, with runs of numbered children shown once."""
    lines = ["the model's modules are:"]
    for name, module in base.named_modules():
        parts = name.split(".")
        if name and len(parts) <= depth and not any(part.isdigit() and part != "0" for part in parts):
            lines.append(f"    {name}: {type(module).__name__}")
    return "\n".join(lines[:60])
