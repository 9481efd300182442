"""What modules are called with: whether at all, and whether rows come before positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from adaptergit.splice.trace import evaluating, first_tensors


def not_first(model: nn.Module, base: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any]) -> str | None:
    """Return the first of some modules whose output does not begin with the rows of the batch, or None.

    Args:
        model: Runs twice, in evaluation mode, without gradients: the second time with every row twice.
        base: The base model, from which paths are.
        paths: Modules.
        inputs: Keyword arguments of one small forward.

    Raises:
        Exception: Whatever the forward raises.
    """
    twice = {name: torch.cat([one, one]) if isinstance(one, torch.Tensor) else one for name, one in inputs.items()}
    modules = {path: base.get_submodule(path) for path in paths}
    once, doubled = (_first_dimensions(model, modules, given) for given in (inputs, twice))
    # DeBERTa's projections are also called with positions alone.
    return next((path for path in once if not any(2 * n in doubled.get(path, [2 * n]) for n in once[path])), None)


def not_called(model: nn.Module, base: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any]) -> list[str]:
    """Return those of some modules that a model does not call; see :func:`not_first`."""
    modules = {path: base.get_submodule(path) for path in paths}
    called = _first_dimensions(model, modules, inputs)
    return [path for path in modules if path not in called]


def _first_dimensions(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}

    def note(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        for tensor in first_tensors(output if isinstance(output, tuple | list) else [output], {}):
            found.setdefault(path, []).append(tensor.shape[0] if tensor.dim() else 0)

    handles = [module.register_forward_hook(partial(note, path)) for path, module in modules.items()]
    try:
        with evaluating(model), torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
