"""What a model holds besides itself: adapters, fusions, heads and embeddings, with their weights, none acting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError, did_you_mean
from adaptergit.splice.anatomy import Anatomy, Site, base_of, parameter_of
from adaptergit.splice.config import MethodConfig, check_types
from adaptergit.splice.embeddings import Embeddings
from adaptergit.splice.fusion import Fusion, FusionConfig
from adaptergit.splice.heads import HeadConfig, build_head
from adaptergit.splice.layers import seeded
from adaptergit.splice.methods.union import leaves
from adaptergit.splice.places import Host, Parts, Place, Tuned
from adaptergit.splice.sidecar import Sidecar

ATTRIBUTE = "adaptergit"
T = TypeVar("T")


@dataclass(frozen=True)
class Spliced:
    """One adapter in a model."""

    config: MethodConfig
    parts: Parts
    about: Any = None
    """Whatever the loader knows about it: card, verdict."""
    frozen: frozenset[str] = frozenset()
    """Parameters that the method does not train."""


@dataclass(frozen=True)
class Fused:
    """One AdapterFusion in a model."""

    config: FusionConfig
    children: tuple[str, ...]
    """The adapters it was made for, in order."""
    modules: Mapping[Place, Fusion]


class Inventory:
    """The part of a panel that holds things; made with it."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.host = Host(model, anatomy)
        self._model = model
        self._base = base_of(model)
        self._adapters: dict[str, Spliced] = {}
        self._fusions: dict[str, Fused] = {}
        self._heads: dict[str, HeadConfig] = {}
        self._tokenizers: dict[str, Any] = {}
        self._trainable: dict[str, bool] | None = None
        """Which of the model's own parameters were trainable before everything was frozen; None: nothing is."""
        self._sidecar = _InventorySidecar(self)
        model.add_module(ATTRIBUTE, self._sidecar)

    @property
    def model(self) -> nn.Module:
        """The model this panel belongs to."""
        return self._model

    @property
    def names(self) -> list[str]:
        """Adapters in the order they were added."""
        return list(self._adapters)

    @property
    def heads(self) -> list[str]:
        """Heads in the order they were added."""
        return list(self._heads)

    @property
    def fusions(self) -> list[str]:
        """Fusions in the order they were added."""
        return list(self._fusions)

    @property
    def embeddings(self) -> list[str]:
        """Added embeddings in the order they were added."""
        return list(self._tokenizers)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def spliced(self, name: str) -> Spliced:
        """Return an adapter's record.

        Raises:
            UsageError: No adapter of that name.
        """
        return _look_up(self._adapters, name, "adapter")

    def fused(self, name: str) -> Fused:
        """Return a fusion's record.

        Raises:
            UsageError: No fusion of that name.
        """
        return _look_up(self._fusions, name, "fusion")

    def module(self, name: str) -> nn.Module:
        """Return an adapter's weights; its tensor names are architecture-free, like ``blocks.3.ffn.down.weight``.

        Raises:
            UsageError: No adapter of that name.
        """
        return self.spliced(name).parts

    def config(self, name: str) -> MethodConfig:
        """Return an adapter's configuration."""
        return self.spliced(name).config

    def about(self, name: str) -> Any:
        """Return what the loader knows about an adapter, or None."""
        return self.spliced(name).about

    def sites_of(self, name: str) -> list[Site]:
        """Return the sites of the blocks an adapter acts in."""
        places = self.spliced(name).parts.places
        blocks = {getattr(place, "block", None) for place in places}
        acting = {place for place in places if isinstance(place, Site)}
        own = {site.key: site for site in acting}
        known = [own.get(site.key, site) for site in self.anatomy.sites]
        return [s for s in known if s in acting or (not acting and (s.block in blocks or blocks == {None}))]

    def parameters_of(self, name: str) -> int:
        """Count the parameters that an adapter trains, without its head."""
        frozen = self.spliced(name).frozen
        return sum(p.numel() for key, p in self.module(name).named_parameters() if key not in frozen)

    def head_config(self, name: str) -> HeadConfig:
        """Return a head's configuration.

        Raises:
            UsageError: No head of that name.
        """
        return _look_up(self._heads, name, "head")

    def head_module(self, name: str) -> nn.Module:
        """Return a head's weights.

        Raises:
            UsageError: No head of that name.
        """
        self.head_config(name)
        return self._sidecar.passengers[_key(name, ":head")]

    def fusion_module(self, name: str) -> nn.Module:
        """Return a fusion's weights.

        Raises:
            UsageError: No fusion of that name.
        """
        self.fused(name)
        return self._sidecar.passengers[_key(name, ":fusion")]

    def tokenizer(self, name: str) -> Any:
        """Return the tokenizer that added embeddings belong to, or None.

        Raises:
            UsageError: No embeddings of that name.
        """
        return _look_up(self._tokenizers, name, "embeddings")

    def embeddings_module(self, name: str) -> Embeddings:
        """Return the weights of added embeddings.

        Raises:
            UsageError: No embeddings of that name.
        """
        self.tokenizer(name)
        module = self._sidecar.passengers[_key(name, ":embeddings")]
        assert isinstance(module, Embeddings)
        return module

    def build(self, config: MethodConfig, host: Host | None = None) -> Parts:
        """Make an adapter's modules without storage, to compare names and shapes with a checkpoint.

        Args:
            config: What to build.
            host: The model with other sites than the panel's, for an adapter that was made for those.

        Raises:
            ModelError: No place of this model takes the configuration.
        """
        with torch.device("meta"):
            return self._built(config, host or self.host)

    def make(self, config: MethodConfig) -> Parts:
        """Make an adapter's modules with initial values, on the CPU.

        Raises:
            ModelError: No place of this model takes the configuration.
        """
        # The context costs more than making the tensors.
        usual = torch.get_default_device().type == "cpu"
        with contextlib.nullcontext() if usual else torch.device("cpu"):
            parts = self._built(config, self.host)
            config.initialise(parts, self.host, seeded(config))
        return parts

    def _built(self, config: MethodConfig, host: Host) -> Parts:
        check_types(config)
        self._check_blocks(config)
        parts = config.build(host)
        if not parts.places:
            raise ModelError(
                f"{config.method} has no place in this model: its places are left out or not there",
                hint="adaptergit inspect MODEL shows the places that there are",
            )
        return parts

    def _check_blocks(self, config: MethodConfig) -> None:
        for part in getattr(config, "configs", ()):
            self._check_blocks(part)
        layers, factor = getattr(config, "layers", ()), getattr(config, "reduction_factor", None)
        named = [key for key in factor if key != "default"] if isinstance(factor, Mapping) else []
        if strange := [key for key in named if not str(key).isdecimal()]:
            raise UsageError(f"reduction_factor: {strange[0]!r} is no block's number", hint='"default", or "0", "1" …')
        for index in (
            *getattr(config, "leave_out", ()),
            *(layers if isinstance(layers, tuple) else ()),
            *map(int, named),
        ):
            if not 0 <= index < self.anatomy.blocks:
                raise ModelError(
                    f"{config.method} speaks of block {index}, which is not there",
                    hint=f"blocks: 0 to {self.anatomy.blocks - 1}",
                )

    def build_head(self, config: HeadConfig) -> nn.Module:
        """Make a head's modules without storage.

        Raises:
            ModelError: It does not fit the model's class.
        """
        with torch.device("meta"):
            module = build_head(config, self._model, self.anatomy.hidden_size)
        return module.to("meta")

    def insert(
        self,
        name: str,
        config: MethodConfig,
        parts: Parts,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        about: Any = None,
    ) -> None:
        """Put an adapter with its weights into the panel; it stays inactive."""
        check_new(name, self._adapters)
        for own, part, _ in leaves(config, parts):
            wanted = _dtype(getattr(own, "dtype", None), dtype)
            if part.common is not None:
                self._settle(next(iter(part.places)), part.common, wanted, device)
            for place, module in part.places.items():
                self._settle(place, module, wanted, device)
        frozen = frozenset(key for key, parameter in parts.named_parameters() if not parameter.requires_grad)
        if self._trainable is not None:  # train() froze everything but what it named
            parts.requires_grad_(False)
        self._adapters[name] = Spliced(config, parts, about, frozen)
        self._sidecar.passengers[_key(name)] = parts

    def insert_head(
        self,
        name: str,
        config: HeadConfig,
        module: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Put a head with its weights into the panel; it stays inactive."""
        check_new(name, self._heads)
        host = parameter_of(self._base, self.anatomy.sites[-1].output)
        self._place(module, host, dtype, device)
        trained = name in self and any(p.requires_grad for p in self.module(name).parameters())
        if self._trainable is not None and not trained:  # a head is trained with its adapter
            module.requires_grad_(False)
        self._heads[name] = config
        self._sidecar.passengers[_key(name, ":head")] = module

    def branches_of(self, names: Iterable[str]) -> list[Site]:
        """Return the branches where any of some adapters acts, in the model's order.

        What a checkpoint of ``adapters`` brings may act at other modules than the anatomy's.
        """
        order = {site.key: number for number, site in enumerate(self.anatomy.sites)}
        found = {p for name in names for p in self.spliced(name).parts.places if isinstance(p, Site)}
        return sorted(found, key=lambda site: order.get(site.key, len(order)))

    def insert_fusion(
        self,
        name: str,
        config: FusionConfig,
        modules: Mapping[Place, Fusion],
        children: Iterable[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Put a fusion of some adapters with its weights into the panel."""
        if name in self._fusions:
            raise UsageError(f"the fusion {name!r} is there already", hint=f"panel.remove_fusion({name!r})")
        holder = Parts()
        for place, module in modules.items():
            self._settle(place, module, dtype, device)
            holder.put(place, module)
        if self._trainable is not None:  # until train_fusion()
            holder.requires_grad_(False)
        self._fusions[name] = Fused(config, tuple(children), dict(modules))
        self._sidecar.passengers[_key(name, ":fusion")] = holder

    def insert_embeddings(
        self,
        name: str,
        module: Embeddings,
        tokenizer: Any = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Put embeddings with their weights into the panel; they stay inactive."""
        check_new(name, self._tokenizers)
        self._place(module, module.host(self._model).weight, dtype, device)
        self._tokenizers[name] = tokenizer
        self._sidecar.passengers[_key(name, ":embeddings")] = module

    def drop(self, name: str) -> None:
        """Forget an adapter and its head."""
        del self._adapters[name], self._sidecar.passengers[_key(name)]
        if name in self._heads:
            self.drop_head(name)

    def drop_head(self, name: str) -> None:
        """Forget a head."""
        del self._heads[name], self._sidecar.passengers[_key(name, ":head")]

    def drop_fusion(self, name: str) -> None:
        """Forget a fusion."""
        del self._fusions[name], self._sidecar.passengers[_key(name, ":fusion")]

    def drop_embeddings(self, name: str) -> None:
        """Forget embeddings and their tokenizer."""
        del self._tokenizers[name], self._sidecar.passengers[_key(name, ":embeddings")]

    def snapshot(self) -> Callable[[], None]:
        """Return a function that takes back everything added since."""
        tables: tuple[dict[str, Any], ...] = (
            self._adapters,
            self._fusions,
            self._heads,
            self._tokenizers,
            self._sidecar.passengers,
        )
        before = [dict(table) for table in tables]

        def restore() -> None:
            for table, content in zip(tables, before, strict=True):
                table.clear()
                table.update(content)

        return restore

    def _settle(self, place: Place, module: nn.Module, dtype: torch.dtype | None, device: torch.device | None) -> None:
        root = self._model if isinstance(place, Tuned) else self._base
        path = place.output if isinstance(place, Site) else place.path
        host = parameter_of(root, path)
        if host.is_meta and device is None:
            device = _offloaded_to(root, path)
        self._place(module, host, dtype, device)

    def _place(
        self, module: nn.Module, host: torch.Tensor, dtype: torch.dtype | None, device: torch.device | None
    ) -> None:
        device, dtype = device or host.device, dtype or host.dtype
        tensors = chain(module.parameters(), module.buffers())
        if any(one.device != device or one.dtype != dtype for one in tensors):  # to look takes less time than to move
            module.to(device=device, dtype=dtype)
        module.train(self._model.training)
        if dtype == torch.float16:  # the only dtype with a smaller range
            for key, tensor in module.state_dict().items():
                if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
                    raise ModelError(
                        f"{key} holds values too large for float16", hint="dtype=torch.float32, or bfloat16"
                    )


def _offloaded_to(root: nn.Module, path: str) -> torch.device:
    """Return the device that a module runs on whose weights accelerate keeps elsewhere."""
    parent = root.get_submodule(path.rpartition(".")[0]) if path else root
    for module in (*parent.modules(), *root.modules()):
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    raise ModelError(
        "the model has no weights: it is on the meta device",
        where=path,
        hint="load them first, as from_pretrained(…) does",
    )


class _InventorySidecar(Sidecar):
    def __init__(self, panel: Inventory) -> None:
        super().__init__()
        object.__setattr__(self, "panel", panel)

    panel: Inventory


def _dtype(named: str | None, given: torch.dtype | None) -> torch.dtype | None:
    """Return what a caller says that parameters compute in, or else a configuration; None: as their host does."""
    wanted = given if named is None or given is not None else getattr(torch, str(named), None)
    if named is None and given is None:
        return None
    if isinstance(wanted, torch.dtype) and wanted.is_floating_point:
        return wanted
    raise UsageError(f"{named or given!r} is no dtype that adapters compute in", hint="float32, bfloat16, float16")


def panel_of(model: nn.Module) -> Any:
    """Return the panel a model has, or None."""
    sidecar = getattr(model, ATTRIBUTE, None)
    return sidecar.panel if isinstance(sidecar, _InventorySidecar) else None


def check_new(name: str, existing: Iterable[str]) -> None:
    """Refuse what cannot be a new name.

    Raises:
        UsageError: It is taken, or no file could have it.
    """
    if not isinstance(name, str) or not _names_a_file(name):
        raise UsageError(f"{name!r} cannot name an adapter", hint="use what a file name can hold")
    if name in existing:
        raise UsageError(f"{name!r} is there already", hint="choose another name, or panel.remove() it first")


def _names_a_file(name: str) -> bool:
    try:
        return 0 < len(name.encode()) < 256 and name not in (".", "..") and not set(name) & set("/\0")
    except UnicodeEncodeError:
        return False


def _look_up(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        known = what if what.endswith("s") else f"{what}s"
        made_by = "add" if what == "adapter" else f"add_{what}"
        there = f"{known}: {', '.join(table)}" if table else f"there are none yet: panel.{made_by}(…)"
        raise UsageError(
            f"there {'are' if known == what else 'is'} no {what} {name!r}", hint=did_you_mean(name, table) or there
        )
    return table[name]


def _key(name: str, kind: str = "") -> str:
    """Name of something among the passengers: colons of its own are doubled."""
    return name.replace(":", "::") + kind
