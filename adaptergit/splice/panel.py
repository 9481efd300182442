"""The panel: the adapters of one model, as a person holds them.

The model stays its own class and its ``state_dict`` stays the base model's; ``detach`` gives it back bit for bit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import Anatomy, Site, anatomy_of, base_of, parameter_of
from adaptergit.splice.composition import Stack, parse_composition
from adaptergit.splice.config import MethodConfig, parse_config
from adaptergit.splice.engine import EMPTY, Engine, Plan
from adaptergit.splice.head_hooks import hook_head
from adaptergit.splice.heads import HeadConfig, build_head, static_head_of, static_paths
from adaptergit.splice.sidecar import Sidecar

_ATTRIBUTE = "adaptergit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def adapters(model: nn.Module) -> Panel:
    """Return the panel of a model, making it on first use.

    Raises:
        ModelError: The model's architecture is not known.
    """
    sidecar = getattr(model, _ATTRIBUTE, None)
    return sidecar.panel if isinstance(sidecar, _PanelSidecar) else Panel(model)


@dataclass(frozen=True)
class Spliced:
    """One adapter in a model."""

    config: MethodConfig
    modules: Mapping[Site, nn.Module]
    about: Any = None
    """Whatever the loader knows about it: card, verdict."""


class Panel:
    """The adapters and heads of one model; made by :func:`adapters`."""

    def __init__(self, model: nn.Module) -> None:
        if hasattr(model, _ATTRIBUTE):
            raise ModelError(f"the model has an attribute {_ATTRIBUTE!r} that is not a panel")
        self.anatomy: Anatomy = anatomy_of(model)
        self._model = model
        self._base = base_of(model)
        self._engine = Engine(self._base)
        self._adapters: dict[str, Spliced] = {}
        self._heads: dict[str, HeadConfig] = {}
        self._active: Stack | None = None
        self._active_head: str | None = None
        self._skip: frozenset[int] = frozenset()
        self._head_handles: list[RemovableHandle] = []
        self._trainable: dict[str, bool] | None = None
        self._sidecar = _PanelSidecar(self)
        model.add_module(_ATTRIBUTE, self._sidecar)

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

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def add(self, name: str, config: str | MethodConfig = "seq_bn", *, dtype: torch.dtype | None = None) -> None:
        """Add a freshly initialised adapter. It does nothing until it is activated.

        Args:
            name: A new name.
            config: A method configuration or config string.
            dtype: Of its parameters; default: the host block's.

        Raises:
            UsageError: The name is taken or the config string is malformed.
            ModelError: The model has no place that the configuration asks for.
        """
        parsed = parse_config(config)
        modules = self.build(parsed)
        seed = getattr(parsed, "init_weights_seed", None)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for module in modules.values():
            module.to_empty(device="cpu")
            parsed.initialise(module, generator)
        self.insert(name, parsed, modules, dtype=dtype)

    def add_head(self, name: str, config: HeadConfig) -> None:
        """Add a freshly initialised head; it acts when an adapter of the same name, or ``head=name``, is active.

        Raises:
            UsageError: The name is taken.
            ModelError: The head does not fit the model's class.
        """
        self.insert_head(name, config, build_head(config, self._model, self.anatomy.hidden_size))

    def build(self, config: MethodConfig) -> dict[Site, nn.Module]:
        """Make an adapter's modules without storage, to compare names and shapes with a checkpoint.

        Raises:
            ModelError: No site of this model takes the configuration.
        """
        with torch.device("meta"):
            built = {site: config.build(site, self.anatomy.hidden_size) for site in self.anatomy.sites}
        modules = {site: module for site, module in built.items() if module is not None}
        if not modules:
            raise ModelError(f"{config.method} has no place in this model: its sites are left out or not there")
        return modules

    def insert(
        self,
        name: str,
        config: MethodConfig,
        modules: Mapping[Site, nn.Module],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        about: Any = None,
    ) -> None:
        """Put an adapter with its weights into the panel; it stays inactive."""
        self._check_new(name, self._adapters)
        for site, module in modules.items():
            host = parameter_of(self._base, site)
            module.to(device=device or host.device, dtype=dtype or host.dtype)
            module.train(self._model.training)
        self._adapters[name] = Spliced(config, dict(modules), about)
        holder = nn.Module()
        for site, module in modules.items():
            _add_at(holder, site.key, module)
        self._sidecar.passengers[name] = holder

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
        self._check_new(name, self._heads)
        host = parameter_of(self._base, self.anatomy.sites[-1])
        module.to(device=device or host.device, dtype=dtype or host.dtype)
        module.train(self._model.training)
        self._heads[name] = config
        self._sidecar.passengers[_head_key(name)] = module

    def module(self, name: str) -> nn.Module:
        """Return an adapter's weights; its tensor names are architecture-free, like ``blocks.3.ffn.down.weight``.

        Raises:
            UsageError: No adapter of that name.
        """
        self._spliced(name)
        return self._sidecar.passengers[name]

    def head_module(self, name: str) -> nn.Module:
        """Return a head's weights.

        Raises:
            UsageError: No head of that name.
        """
        self.head_config(name)
        return self._sidecar.passengers[_head_key(name)]

    def config(self, name: str) -> MethodConfig:
        """Return an adapter's configuration."""
        return self._spliced(name).config

    def sites_of(self, name: str) -> list[Site]:
        """Return the sites an adapter acts at."""
        return list(self._spliced(name).modules)

    def about(self, name: str) -> Any:
        """Return what the loader knows about an adapter, or None."""
        return self._spliced(name).about

    def head_config(self, name: str) -> HeadConfig:
        """Return a head's configuration.

        Raises:
            UsageError: No head of that name.
        """
        if name not in self._heads:
            raise UsageError(f"there is no head {name!r}", hint=f"heads: {', '.join(self._heads) or 'none'}")
        return self._heads[name]

    @property
    def active(self) -> Stack | None:
        """The active composition; assigning activates, None switches all adapters off."""
        return self._active

    @active.setter
    def active(self, composition: str | Stack | None) -> None:
        self.activate(composition)

    @property
    def active_head(self) -> str | None:
        """The active head, or None: the model answers as its own class does."""
        return self._active_head

    def activate(
        self, composition: str | Stack | None, head: str | None = None, skip_layers: Iterable[int] = ()
    ) -> None:
        """Choose what acts in every forward from now on.

        Args:
            composition: A name, ``Stack(…)`` or None.
            head: Default: the head named like the last adapter, if there is one.
            skip_layers: Blocks in which adapters do nothing (AdapterDrop, Rücklé et al. 2021).

        Raises:
            UsageError: An adapter or head that is not there; nothing changes.
        """
        skip = frozenset(skip_layers)
        parsed = None if composition is None else parse_composition(composition)
        plan = self._compile(parsed, skip)
        if head is None and parsed is not None and parsed.children[-1] in self._heads:
            head = parsed.children[-1]
        if head is not None:
            self.head_config(head)
        self._engine.plan = plan
        self._active, self._skip = parsed, skip
        self._set_head(head)

    @contextmanager
    def using(self, composition: str | Stack | None, skip_layers: Iterable[int] = ()) -> Iterator[None]:
        """Use other adapters inside the block, in this thread or task only.

        The active head stays; with None it is switched off too, and the model answers as its own class does.

        Raises:
            UsageError: An adapter that is not there.
        """
        parsed = None if composition is None else parse_composition(composition)
        plan = replace(self._compile(parsed, frozenset(skip_layers)), head=parsed is not None)
        with self._engine.override(plan):
            yield

    def train(self, *names: str) -> None:
        """Freeze everything but these adapters and their heads, and activate them as a Stack.

        On a model whose class has a head (``AutoModelForSequenceClassification``), that head is trained too: a copy of
        it, kept beside the model like the adapter.

        Raises:
            UsageError: No adapter of that name, or no name.
        """
        if not names:
            raise UsageError("name at least one adapter to train", hint=f"adapters: {', '.join(self.names) or 'none'}")
        for name in names:
            self._spliced(name)
        if names[-1] not in self._heads and static_paths(self._model):
            self.add_head(names[-1], static_head_of(self._model))
        if self._trainable is None:
            self._trainable = {n: p.requires_grad for n, p in self._model.named_parameters() if not self._is_ours(n)}
        self._model.requires_grad_(False)
        for name in names:
            self.module(name).requires_grad_(True)
            if name in self._heads:
                self.head_module(name).requires_grad_(True)
        self.activate(Stack(*names))
        self._model.train()

    def remove(self, name: str) -> None:
        """Forget an adapter and its head; if it is active, all adapters are switched off.

        Raises:
            UsageError: No adapter of that name.
        """
        self._spliced(name)
        if self._active is not None and name in self._active.children:
            self.activate(None)
        if self._active_head == name:
            self._set_head(None)
        del self._adapters[name]
        del self._sidecar.passengers[name]
        if self._heads.pop(name, None) is not None:
            del self._sidecar.passengers[_head_key(name)]

    def detach(self) -> nn.Module:
        """Remove every trace of the panel and return the model, bit for bit what it was."""
        self._engine.plan = EMPTY
        self._set_head(None)
        if self._trainable is not None:
            for name, parameter in self._model.named_parameters():
                if name in self._trainable:
                    parameter.requires_grad_(self._trainable[name])
        with contextlib.suppress(AttributeError):
            delattr(self._model, _ATTRIBUTE)
        return self._model

    def parameters_of(self, name: str) -> int:
        """Count an adapter's parameters, without its head."""
        return sum(p.numel() for p in self.module(name).parameters())

    def save(self, name: str, folder: Any, /, **about: Any) -> None:
        """Write an adapter and its head as a package folder that can be loaded or published.

        Args:
            name: Adapter to save.
            folder: Created if missing; files of an earlier save are replaced.
            about: Card fields to set (``description``, ``license``, ``task`` …).

        Raises:
            UsageError: No adapter of that name.
            PackageError: A card field is not valid; nothing is written.
        """
        from adaptergit.splice.checkpoint import save

        save(self, name, folder, about)

    def _compile(self, composition: Stack | None, skip: frozenset[int]) -> Plan:
        if composition is None:
            return EMPTY
        steps: dict[Site, tuple[Any, ...]] = {}
        for child in composition.children:
            for site, module in self._spliced(child).modules.items():
                if site.block not in skip:
                    steps[site] = (*steps.get(site, ()), module)
        return Plan(steps)

    def _set_head(self, name: str | None) -> None:
        for handle in self._head_handles:
            handle.remove()
        self._head_handles = []
        self._active_head = name
        if name is not None:
            self._head_handles = hook_head(
                self._model, self._base, self.head_module(name), self.anatomy.pooling, self._engine
            )

    def _spliced(self, name: str) -> Spliced:
        if name not in self._adapters:
            raise UsageError(f"there is no adapter {name!r}", hint=f"adapters: {', '.join(self.names) or 'none'}")
        return self._adapters[name]

    def _check_new(self, name: str, existing: Mapping[str, Any]) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name an adapter", hint="use letters, digits, '.', '_' and '-'")
        if name in existing:
            raise UsageError(f"{name!r} is there already", hint="choose another name, or panel.remove() it first")

    @staticmethod
    def _is_ours(parameter_name: str) -> bool:
        return parameter_name.startswith(f"{_ATTRIBUTE}.")

    def __repr__(self) -> str:
        lines = [f"{n}: {s.config.method}, {self.parameters_of(n):,} parameters" for n, s in self._adapters.items()]
        return f"Panel of {type(self._model).__name__}, active: {self._active}\n  " + "\n  ".join(
            lines or ["no adapters"]
        )


class _PanelSidecar(Sidecar):
    def __init__(self, panel: Panel) -> None:
        super().__init__()
        object.__setattr__(self, "panel", panel)

    panel: Panel


def _head_key(name: str) -> str:
    return f"{name}:head"


def _add_at(holder: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for part in parents:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        child = holder._modules[part]
        assert child is not None
        holder = child
    holder.add_module(last, module)
