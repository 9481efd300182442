"""What one package holds: an adapter with its head and embeddings, or a set-up of several with their composition.

A set-up's card says ``adapter.method: setup`` (``head`` or ``fusion`` where it holds only that) and lists its members
in ``adapter.config``; the tensors of the n-th start with ``adapters.<n>.``, ``fusions.<n>.``, ``heads.<n>.`` or
``embeddings.<n>.``. A single adapter's tensors have no such prefix, its head's and embeddings' start with ``head.`` and
``embeddings.``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import Site
from adaptergit.splice.composition import Block, Composition, Fuse, composition_text, parse_composition
from adaptergit.splice.config import MethodConfig, config_from_dict, describe
from adaptergit.splice.embeddings import Embeddings, EmbeddingsConfig, output_embedding
from adaptergit.splice.fusion import Fusion, FusionConfig, fusion_config
from adaptergit.splice.heads import HeadConfig, head_from_dict
from adaptergit.splice.inventory import check_new
from adaptergit.splice.places import Parts, Place

if TYPE_CHECKING:
    from adaptergit.splice.panel import Panel

KINDS = ("setup", "fusion", "head")
_MOST = 1000


@dataclass(frozen=True)
class FusionEntry:
    """A fusion of a set-up."""

    children: tuple[str, ...]
    config: FusionConfig
    sites: tuple[str, ...]
    """Keys of the places it acts at."""


@dataclass(frozen=True)
class Setup:
    """The members of a package by name."""

    adapters: Mapping[str, MethodConfig] = field(default_factory=dict)
    fusions: Mapping[str, FusionEntry] = field(default_factory=dict)
    heads: Mapping[str, HeadConfig] = field(default_factory=dict)
    embeddings: Mapping[str, EmbeddingsConfig] = field(default_factory=dict)
    composition: Composition | None = None
    """What is activated."""
    single: bool = False
    """One adapter, which gives the others their names."""

    def prefixes(self) -> Iterator[tuple[str, str, str]]:
        """Yield kind, name and prefix of the tensors of every member."""
        if self.single:
            yield from (("adapters", name, "") for name in self.adapters)
            yield from (("heads", name, "head.") for name in self.heads)
            yield from (("embeddings", name, "embeddings.") for name in self.embeddings)
            return
        for kind in ("adapters", "fusions", "heads", "embeddings"):
            for index, name in enumerate(getattr(self, kind)):
                yield kind, name, f"{kind}.{index}."

    @property
    def method(self) -> str:
        """What the card calls it."""
        if self.single:
            return next(iter(self.adapters.values())).method
        if self.adapters or self.embeddings:
            return "setup"
        return "fusion" if self.fusions else "head"


def single(panel: Panel, name: str) -> Setup:
    """Describe an adapter with what has its name."""
    return Setup(
        {name: panel.config(name)},
        heads={name: panel.head_config(name)} if name in panel.heads else {},
        embeddings={name: panel.embeddings_module(name).config} if name in panel.embeddings else {},
        composition=name,
        single=True,
    )


def several(panel: Panel, composition: Composition | None, heads: Iterable[str], embeddings: Iterable[str]) -> Setup:
    """Describe all that acts in a composition, with heads and embeddings.

    Raises:
        UsageError: Something is not there.
    """
    names = [composition] if isinstance(composition, str) else composition.names() if composition is not None else []
    fusions = {key: panel.fused(key) for key in fused(composition)}
    return Setup(
        {name: panel.config(name) for name in names},
        {k: FusionEntry(f.children, f.config, tuple(p.key for p in f.modules)) for k, f in fusions.items()},
        {name: panel.head_config(name) for name in heads},
        {name: panel.embeddings_module(name).config for name in embeddings},
        composition,
    )


def fuses(composition: Composition | None) -> Iterator[Fuse]:
    """Yield the fusions in a composition."""
    if isinstance(composition, Fuse):
        yield composition
    if isinstance(composition, Block):
        for child in composition.children:
            yield from fuses(child)


def fused(composition: Composition | None) -> Iterator[str]:
    """Yield the keys of the fusions in a composition."""
    return (fuse.key for fuse in fuses(composition))


def tensors_of(panel: Panel, setup: Setup) -> dict[str, torch.Tensor]:
    """Return the weights of all members under their names in the file."""
    modules: dict[str, Callable[[str], nn.Module]] = {
        "adapters": panel.module,
        "fusions": panel.fusion_module,
        "heads": panel.head_module,
        "embeddings": panel.embeddings_module,
    }
    return {
        prefix + key: tensor
        for kind, name, prefix in setup.prefixes()
        for key, tensor in modules[kind](name).state_dict().items()
    }


def as_card(setup: Setup) -> dict[str, Any]:
    """Return ``config``, and for a single adapter ``head`` and ``embeddings``, as a card stores them."""
    heads = [_head_record(name, head) for name, head in setup.heads.items()]
    if setup.single:
        data: dict[str, Any] = {"config": describe(next(iter(setup.adapters.values())))}
        for record in heads:
            data["head"] = {key: value for key, value in record.items() if key != "name"}
        for config in setup.embeddings.values():
            data["embeddings"] = config.to_dict()
        return data
    fusions = [
        {"name": n, "children": list(f.children), "config": f.config.to_dict(), "sites": list(f.sites)}
        for n, f in setup.fusions.items()
    ]
    return {
        "config": {
            "composition": None if setup.composition is None else composition_text(setup.composition),
            "adapters": [{"name": n, "method": c.method, "config": describe(c)} for n, c in setup.adapters.items()],
            "fusions": fusions,
            "heads": heads,
            "embeddings": [{"name": n, "config": c.to_dict()} for n, c in setup.embeddings.items()],
        }
    }


def from_card(data: Mapping[str, Any], name: str | None) -> Setup:
    """Read what :func:`as_card` wrote.

    Args:
        data: A card that fits its schema.
        name: For a single adapter or head; default: its own.

    Raises:
        UsageError: Something in it is unknown or not possible.
    """
    method, config = data["adapter"]["method"], data["adapter"]["config"]
    if method not in KINDS:
        chosen = name or str(data["name"])
        adapter = _method(method, config)
        head, embeddings = data.get("head"), data.get("embeddings")
        return Setup(
            {chosen: adapter},
            heads={} if head is None else {chosen: _head(head)},
            embeddings={} if embeddings is None else {chosen: EmbeddingsConfig(**embeddings)},
            composition=chosen,
            single=True,
        )
    wanted = {"composition", "adapters", "fusions", "heads", "embeddings"}
    if set(config) != wanted:
        raise UsageError(f"a {method} lists {', '.join(sorted(wanted))}, not {', '.join(sorted(config))}")
    renamed = method == "head" and name is not None and len(config["heads"]) == 1
    composition = config["composition"]
    setup = Setup(
        {n: _method(r["method"], r["config"]) for n, r in _records(config, "adapters", {"method", "config"})},
        {n: _fusion(r) for n, r in _records(config, "fusions", {"children", "config", "sites"})},
        {
            name if renamed and name else n: _head(r)
            for n, r in _records(config, "heads", {"type", "config"}, {"labels"})
        },
        {n: EmbeddingsConfig(**r["config"]) for n, r in _records(config, "embeddings", {"config"})},
        None if composition is None else parse_composition(composition),
    )
    if setup.method != method:
        raise UsageError(f"adapter.method is {method!r}, but its members make a {setup.method}")
    return setup


def built(panel: Panel, setup: Setup, sites: Iterable[Site]) -> dict[tuple[str, str], nn.Module]:
    """Make the modules of all members without storage, by kind and name.

    Args:
        panel: Of the model they are for.
        setup: What to make.
        sites: Where adapters and fusions act, where that is not what the panel found.

    Raises:
        ModelError: Something has no place in the model.
    """
    host = panel.host.with_sites(sites)
    by_key: dict[str, Place] = {site.key: site for site in host.sites}
    made: dict[tuple[str, str], nn.Module] = {
        ("adapters", name): panel.build(config, host) for name, config in setup.adapters.items()
    }
    for name, entry in setup.fusions.items():
        holder = Parts()
        for key in entry.sites:
            place = by_key.get(key)
            if not isinstance(place, Site):
                raise ModelError(f"the fusion {name!r} acts at {key}, which this model has not")
            with torch.device("meta"):
                holder.put(place, Fusion(entry.config, host.width(place)))
        made["fusions", name] = holder
    made |= {("heads", name): panel.build_head(config) for name, config in setup.heads.items()}
    with torch.device("meta"):
        made |= {("embeddings", name): Embeddings(config, panel.model) for name, config in setup.embeddings.items()}
    return made


def inserted(
    panel: Panel,
    setup: Setup,
    modules: Mapping[tuple[str, str], nn.Module],
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    about: Any = None,
) -> None:
    """Put all members, their weights read, into a panel.

    Raises:
        UsageError: A name is taken.
    """
    for name, config in setup.adapters.items():
        parts = modules["adapters", name]
        assert isinstance(parts, Parts)
        panel.insert(name, config, parts, dtype=dtype, device=device, about=about)
    for name, entry in setup.fusions.items():
        holder = modules["fusions", name]
        assert isinstance(holder, Parts)
        at: dict[Place, Any] = dict(holder.places)
        panel.insert_fusion(name, entry.config, at, entry.children, dtype=dtype, device=device)
    for name, head in setup.heads.items():
        panel.insert_head(name, head, modules["heads", name], dtype=dtype, device=device)
    for name in setup.embeddings:
        embeddings = modules["embeddings", name]
        assert isinstance(embeddings, Embeddings)
        panel.insert_embeddings(name, embeddings, tokenizer, dtype=dtype, device=device)


def without_output(setup: Setup, model: nn.Module) -> tuple[Setup, tuple[str, ...]]:
    """Leave out the output side of embeddings where a model scores no tokens; return what tensors that skips."""
    if not setup.embeddings or output_embedding(model) is not None:
        return setup, ()
    skipped = tuple(f"{prefix}output_" for kind, _, prefix in setup.prefixes() if kind == "embeddings")
    plain = {
        name: EmbeddingsConfig(config.tokens, config.size, config.padding) for name, config in setup.embeddings.items()
    }
    return Setup(setup.adapters, setup.fusions, setup.heads, plain, setup.composition, setup.single), skipped


def _head_record(name: str, head: HeadConfig) -> dict[str, Any]:
    fields = head.to_dict()
    labels = list(fields.pop("labels", ()))
    return {"name": name, "type": head.type, "config": fields, **({"labels": labels} if labels else {})}


def _head(record: Mapping[str, Any]) -> HeadConfig:
    if not all(isinstance(label, str) for label in record.get("labels", ())):
        raise UsageError("labels are names")
    return head_from_dict(record["type"], record["config"], tuple(record.get("labels", ())))


def _method(method: str, config: Mapping[str, Any]) -> MethodConfig:
    parsed = config_from_dict(str(config.get("family", method)), config)
    if parsed.method != method:
        raise UsageError(f"adapter.method is {method!r}, but its config is of {parsed.method!r}")
    return parsed


def _fusion(record: Mapping[str, Any]) -> FusionEntry:
    children, sites = record["children"], record["sites"]
    for listed in (children, sites):
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed) or len(listed) > _MOST:
            raise UsageError("a fusion lists its children and sites by name")
    if len(set(sites)) != len(sites):
        raise UsageError("a fusion lists a site twice")
    return FusionEntry(tuple(children), fusion_config(dict(record["config"])), tuple(sites))


def _records(
    config: Mapping[str, Any], kind: str, needed: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the members of a kind by name."""
    listed, seen = config[kind], set[str]()
    if not isinstance(listed, list) or len(listed) > _MOST:
        raise UsageError(f"{kind} must be a list of at most {_MOST}")
    for record in listed:
        if not isinstance(record, Mapping) or not {"name", *needed} <= set(record) <= {"name", *needed, *optional}:
            raise UsageError(f"every one of the {kind} has name, {', '.join(sorted(needed))}")
        if kind == "fusions":
            if not isinstance(record["name"], str) or record["name"] in seen:
                raise UsageError(f"fusions are named once: {record['name']!r}")
        else:
            check_new(record["name"], seen)
        seen.add(record["name"])
        yield record["name"], record
