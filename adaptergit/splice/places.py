"""Places an adapter's modules can be put at, and the holder of one adapter's modules.

Besides sites and projections (``anatomy.py``) there are the attention of a site, a block's output, and the embedding.
Every place has an architecture-free key, which the names of tensors start with.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from adaptergit.errors import ModelError
from adaptergit.splice.anatomy import Anatomy, Projection, Site, base_of, features_of, is_linear, projections_of
from adaptergit.splice.attention import own_way
from adaptergit.splice.families import Branch
from adaptergit.splice.sidecar import own_modules
from adaptergit.splice.trace import within


@dataclass(frozen=True)
class Linear:
    """A linear layer by its own path; for checkpoints that name modules, not roles."""

    path: str

    @property
    def key(self) -> str:
        """Name that tensor names start with: ``linear.pooler.dense``."""
        return f"linear.{self.path}"


@dataclass(frozen=True)
class Tuned:
    """A module that runs with parameters of an adapter's; ``path`` from the whole model, head and all."""

    path: str

    @property
    def key(self) -> str:
        """``tuned.classifier``."""
        return f"tuned.{self.path}"


@dataclass(frozen=True)
class Attention:
    """The attention of a branch: keys and values of every head."""

    block: int
    branch: Branch
    path: str
    """Module that calls transformers' attention function."""

    @property
    def key(self) -> str:
        """``blocks.3.attention.prefix``."""
        return f"blocks.{self.block}.{self.branch}.prefix"


@dataclass(frozen=True)
class BlockOutput:
    """What a block gives to the next."""

    block: int
    path: str

    @property
    def key(self) -> str:
        """``blocks.3.output``."""
        return f"blocks.{self.block}.output"


@dataclass(frozen=True)
class Embedding:
    """What enters the first block of a stack; ``path`` is that block."""

    path: str
    key = "embedding"


@dataclass(frozen=True)
class Prompt:
    """Positions in front of the sequence."""

    path: str
    """Module whose output is the embedded sequence, or empty: the input embedding is looked up beforehand."""
    key = "prompt"


Place = Site | Projection | Linear | Tuned | Attention | BlockOutput | Embedding | Prompt


class Parts(nn.Module):
    """The modules of one adapter. Tensor names are ``<key of the place>.<part>``, and ``shared.<part>``."""

    places: dict[Place, nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.places = {}

    def put(self, place: Place, module: nn.Module) -> None:
        """Put a module at a place."""
        self.places[place] = module
        add_at(self, place.key, module)

    def share(self, module: nn.Module) -> nn.Module:
        """Register what modules of several places use."""
        self.add_module("shared", module)
        return module

    @property
    def common(self) -> Any:
        """What was registered, or None."""
        return self._modules.get("shared")


def add_at(holder: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path."""
    *parents, last = path.split(".")
    for part in parents:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        child = holder._modules[part]
        assert child is not None
        holder = child
    holder.add_module(last, module)


@dataclass(frozen=True)
class Host:
    """A model as methods see it."""

    model: nn.Module
    anatomy: Anatomy
    named: frozenset[str] | None = None
    """Keys of the sites that a card names: the others get no bottleneck. None: no card speaks."""

    def with_sites(self, sites: Iterable[Site]) -> Host:
        """Return the model with an adapter's own sites, where their modules are there; else with its own.

        An adapter that was trained at other places than ours, or at fewer (docs/compatibility.md), keeps to those.
        """
        sites = tuple(sites)
        own = {site.key: site for site in self.anatomy.sites}
        modules = dict(own_modules(self.base))
        for site in sites:
            paths = [site.output, *(site.residual or "").split("+"), site.norm]
            there = own.get(site.key)
            if there is not None and there != site and all(path in modules for path in paths if path):
                own[site.key] = site
        named = frozenset(site.key for site in sites) if sites else None
        return Host(self.model, replace(self.anatomy, sites=tuple(own.values())), named)

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return base_of(self.model)

    @property
    def model_type(self) -> str:
        """What transformers calls models of this kind, or an empty string."""
        return str(getattr(getattr(self.base, "config", None), "model_type", ""))

    @property
    def hidden_size(self) -> int:
        """Of the first stack."""
        return self.anatomy.hidden_size

    @property
    def sites(self) -> tuple[Site, ...]:
        """Residual branches."""
        return self.anatomy.sites

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """Linear layers by role."""
        return projections_of(self.base, self.anatomy)

    def width(self, site: Site) -> int:
        """Return the hidden size at a site."""
        return site.hidden_size or self.anatomy.hidden_size

    def features(self, place: Projection | Linear) -> tuple[int, int]:
        """Return input and output size of a linear layer.

        Raises:
            ModelError: It is not a linear layer.
        """
        module = self.module(place.path)
        if isinstance(module, nn.Embedding):
            return module.num_embeddings, module.embedding_dim
        if not is_linear(module):
            raise ModelError(f"{place.path} is not a linear layer but a {type(module).__name__}")
        return features_of(module)

    def module(self, path: str) -> nn.Module:
        """Return a module of the base model."""
        return self.base.get_submodule(path)

    def attentions(self) -> Iterator[Attention]:
        """Yield the attentions that go through transformers' attention function, in order."""
        seen: dict[str, None] = {}
        for site in self.sites:
            if site.branch not in ("attention", "cross_attention") or site.ordinal > 1:
                continue
            for projection in self.projections:
                if (projection.block, projection.branch) == (site.block, site.branch) and projection.role != "o":
                    path = projection.path.rpartition(".")[0]
                    if path not in seen and uses_attention_function(self.module(path)):
                        seen[path] = None
                        yield Attention(site.block, site.branch, path)

    def head_sizes(self, place: Attention) -> tuple[int, int]:
        """Return the number of key/value heads and the size of a head."""
        module = self.module(place.path)
        config = getattr(module, "config", self.base.config)
        names = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
        size = next((int(v) for name in names if isinstance(v := getattr(module, name, None), int)), None)
        keys = next(
            (p for p in self.projections if p.path.startswith(f"{place.path}.") and p.role in ("k", "qkv")), None
        )
        if size is None or keys is None:
            raise ModelError("the heads of this attention are not known", where=place.path)
        width = self.features(keys)[1]
        heads: Any = getattr(config, "num_key_value_heads", None)
        if keys.role == "k":
            return width // size, size
        return (heads or getattr(config, "num_attention_heads", width // 3 // size)), size

    def block_of(self, place: Place) -> int | None:
        """Return the number of the block that a place is in, or None: it is in none."""
        known: int | None = getattr(place, "block", None)
        if known is not None or not isinstance(place, Linear | Tuned):
            return known
        path = place.path.removeprefix(self._prefix) if isinstance(place, Tuned) else place.path
        return next((i for i, block in enumerate(self.anatomy.block_paths) if block and within(path, block)), None)

    def module_of(self, place: Place) -> Place | str:
        """Return the path, from the whole model, of the module whose output a place changes; or the place itself."""
        if isinstance(place, Projection | Linear):
            return self._prefix + place.path
        return place.path if isinstance(place, Tuned) else place

    @cached_property
    def _prefix(self) -> str:
        """Where the base is in the model: nothing, or a path with a dot."""
        return next((f"{name}." for name, module in self.model.named_modules() if module is self.base and name), "")

    def blocks(self) -> Iterator[BlockOutput]:
        """Yield the blocks that are modules."""
        modules = dict(own_modules(self.base))
        for index, path in enumerate(self.anatomy.block_paths):
            if path in modules:  # parts of XLM's blocks are in lists of their own
                yield BlockOutput(index, path)

    def stack_of(self, path: str) -> str:
        """Return the path of the list a block is in, without numbers: blocks of one stack share it, and groups do."""
        return re.sub(r"\.\d+(?=\.|$)", "", path.rpartition(".")[0])


def uses_attention_function(module: nn.Module) -> bool:
    """Tell whether a module calls the function that its configuration names (``ALL_ATTENTION_FUNCTIONS``)."""
    if own_way(module) is not None:
        return True
    if getattr(module, "config", None) is None:
        return False
    try:
        source = inspect.getsource(inspect.unwrap(type(module).forward))
    except (OSError, TypeError):
        return False
    return "ALL_ATTENTION_FUNCTIONS" in source and hasattr(
        sys.modules[type(module).__module__], "eager_attention_forward"
    )
