"""A module that rides along with a model but is no part of its state.

Adapter parameters must be seen by optimisers, ``.to()``, ``.train()`` and ``.requires_grad_()``, and must not appear in
the base model's ``state_dict``. PyTorch walks modules in two ways: parameters through ``named_modules``, state through
``_modules``. The sidecar shows its passengers to the first and hides them from the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn


class Sidecar(nn.Module):
    """Holds named modules next to a model."""

    passengers: dict[str, nn.Module]

    def __init__(self) -> None:
        super().__init__()
        # Not an attribute assignment of a module: nn.Module would register it and put it into the state_dict.
        object.__setattr__(self, "passengers", {})

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the sidecar and everything in it."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        yield from super().named_modules(memo, prefix, remove_duplicate)
        for name, module in self.passengers.items():
            yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield what is in it: ``train``, ``to`` and the sharding of FSDP walk over children."""
        yield from self.passengers.items()

    def apply(self, fn: Callable[[nn.Module], None]) -> Sidecar:
        """Do nothing: ``model.apply`` re-initialises hosts, and must not re-initialise trained adapters."""
        return self


def own_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of a model once, with its path, and nothing that rides along, however much there is of it."""
    memo: set[nn.Module] = set()
    for module in (root, *root.children()):
        memo |= {child for child in module.children() if isinstance(child, Sidecar)}
    yield from root.named_modules(memo)
