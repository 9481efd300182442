"""Summary: what an adapter is, or what a model holds, on one screen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptergit.contents import CONFIG, Contents, contents
from adaptergit.errors import NotFoundError, PackageError, UsageError, counted
from adaptergit.package.weights import SETUP, files_of, placement, tensors_in
from adaptergit.reference import expand, is_folder
from adaptergit.settings import load_settings

if TYPE_CHECKING:
    from torch import nn

    from adaptergit.splice.panel import Panel


@dataclass(frozen=True)
class PackageSummary:
    """A package, or a checkpoint of others."""

    source: str
    """As it was asked for."""
    path: Path
    name: str
    version: str | None
    digest: str | None
    format: str
    method: str
    base_model: str | None
    base_parameters: int | None
    """Of the base model, where the settings know its folder."""
    license: str | None
    parameters: int
    """That are trained, without head and embeddings."""
    parts: Mapping[str, int]
    """Numbers in the weights, by adapter, head, fusion and embeddings."""
    placement: Mapping[str, tuple[int, ...]]
    """Blocks it acts in, by place."""
    head: str | None
    labels: tuple[str, ...]
    dtypes: tuple[str, ...]
    bytes: int
    """Of all its files."""

    def __str__(self) -> str:
        share = f", {100 * self.parameters / self.base_parameters:.2f} % of it" if self.base_parameters else ""
        base = f" ({self.base_parameters:,} parameters)" if self.base_parameters else ""
        head = f"{self.head}, {counted(len(self.labels), 'label')}" if self.labels else self.head
        rows = [
            ("adapter", f"{self.name} {self.version or ''}".strip()),
            ("method", f"{self.method} ({self.format})"),
            ("base model", f"{self.base_model}{base}" if self.base_model else None),
            ("parameters", f"{self.parameters:,}{share}"),
            *(
                (part, f"{count:,} parameters")
                for part, count in self.parts.items()
                if part in ("fusion", "embeddings")
            ),
            ("head", f"{head}, {self.parts['head']:,} parameters" if "head" in self.parts else head),
            ("acts at", "\n".join(_placed(self.placement))),
            ("dtype", ", ".join(self.dtypes)),
            ("size", f"{self.bytes:,} bytes"),
            ("licence", self.license),
            ("digest", f"sha256:{self.digest}" if self.digest else None),
            ("files", str(self.path)),
        ]
        return _rows(rows)


@dataclass(frozen=True)
class AdapterSummary:
    """One adapter in a model."""

    name: str
    method: str
    parameters: int
    placement: Mapping[str, tuple[int, ...]]
    dtypes: tuple[str, ...]
    active: bool
    merged: bool
    training: bool
    """Whether a parameter of it is trained."""
    source: str | None
    """Name, version and folder it was loaded from."""


@dataclass(frozen=True)
class ModelSummary:
    """A model and what is spliced into it."""

    model: str
    base_parameters: int
    trainable: int
    """Parameters that are trained, whatever they belong to."""
    parameters: int
    """All there are, what is spliced in included."""
    adapters: tuple[AdapterSummary, ...]
    heads: Mapping[str, int]
    """Parameters by name, as of fusions and embeddings."""
    fusions: Mapping[str, int]
    embeddings: Mapping[str, int]
    active: str | None
    """The composition that acts."""
    active_head: str | None

    def __str__(self) -> str:
        lines = [_rows([
            ("model", f"{self.model}, {self.base_parameters:,} parameters"),
            ("active", self.active or "no adapter"),
            ("head", self.active_head or "the model's own"),
            ("trainable", f"{self.trainable:,} ({100 * self.trainable / max(self.parameters, 1):.2f} % of all)"),
        ])]  # fmt: skip
        for one in self.adapters:
            state = [word for word in ("active", "merged", "training") if getattr(one, word)]
            share = f"{100 * one.parameters / max(self.base_parameters, 1):.2f} %"
            where = "; ".join(_placed(one.placement))
            lines.append(
                f"{one.name}: {one.method}, {one.parameters:,} parameters ({share})  {' '.join(state)}".rstrip()
            )
            lines += [f"    {where}"] if where else []
            lines += [f"    from {one.source}"] if one.source else []
        for kind in ("fusions", "heads", "embeddings"):
            lines += [f"{kind}: {name}, {count:,} parameters" for name, count in getattr(self, kind).items()]
        return "\n".join(lines)


def summary(what: str | Path | nn.Module | Panel, **fetching: Any) -> PackageSummary | ModelSummary:
    """Say what a package is, without loading it, or what a model holds.

    Args:
        what: A reference, a package folder, a folder of AdapterHub's or PEFT's; or a model, or its panel.
        fetching: For a reference: ``policy``, ``offline``, ``index``, ``lock``, see :func:`~adaptergit.resolve.fetch`;
            by default, anybody's signature does: nothing is loaded.

    Raises:
        UsageError, NotFoundError, TransportError: It cannot be had.
        PackageError, TrustError: It is damaged, or refused.
    """
    if not isinstance(what, str | os.PathLike):
        return _of_model(what)
    folder = expand(what) if is_folder(what) else None
    if folder is not None and (folder / "config.json").is_file() and not (folder / "card.yaml").is_file():
        hint = f"adaptergit inspect {what} shows where adapters go in it"
        raise NotFoundError("this is a model, and no adapter", where=str(folder), hint=hint)
    return _of_package(contents(what, **fetching))


def _of_package(found: Contents) -> PackageSummary:
    data: Mapping[str, Any] = found.card.data if found.card else {}
    config = found.configs.get(CONFIG, {})
    parts: dict[str, int] = {}
    for tensor in found.tensors.values():
        parts[tensor.part] = parts.get(tensor.part, 0) + tensor.count
    base = data.get("base_model", {}).get("id") or config.get("base_model_name_or_path") or config.get("model_name")
    method = data["adapter"]["method"] if data else _method(found.configs)
    head = data.get("head", {})
    acting = [tensor.name for tensor in found.tensors.values() if tensor.part in ("adapter", "fusion")]
    return PackageSummary(
        source=found.label,
        path=found.path,
        name=str(data.get("name") or config.get("name") or found.path.resolve().name),
        version=data.get("version"),
        digest=found.digest,
        format=found.format,
        method=method,
        base_model=str(base) if base else None,
        base_parameters=_base_parameters(str(base)) if base else None,
        license=data.get("license"),
        parameters=data.get("adapter", {}).get("parameters", parts.get("adapter", 0)),
        parts=parts,
        placement=placement(acting),
        head=head.get("type") or ("head" if "head" in parts else None),
        labels=tuple(head.get("labels", ())),
        dtypes=tuple(sorted({tensor.dtype for tensor in found.tensors.values()})),
        bytes=sum(path.stat().st_size for path in files_of(found.path)),
    )


def _method(configs: Mapping[str, Any]) -> str:
    """Return what files of others are of, in their words."""
    for name, kind in ((SETUP, "setup"), ("adapter_fusion_config.json", "fusion")):
        if name in configs:
            return kind
    config = configs.get(CONFIG)
    if config is None:
        return "head"
    inner = config.get("config")
    architecture = inner.get("architecture") if isinstance(inner, Mapping) else None
    return str(config.get("peft_type") or architecture or "bottleneck").lower()


def _base_parameters(model_id: str) -> int | None:
    """Count a base model that lies here, by the headers of its files."""
    folder = load_settings().base_models.get(model_id)
    if folder is None or not expand(folder).is_dir():
        return None
    try:
        tensors = tensors_in(expand(folder)).values()
        return sum(tensor.count for tensor in tensors if tensor.file.name.startswith("model")) or None
    except PackageError:
        return None


def _of_model(what: Any) -> ModelSummary:
    from adaptergit.splice.inventory import ATTRIBUTE, panel_of

    model = what.model if hasattr(what, "activate") else what
    if not hasattr(model, "named_parameters"):
        raise UsageError(
            f"neither a reference nor a model, but {type(what).__name__}", hint='"org/repo@adapter", or a model'
        )
    panel = panel_of(model)
    base = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(f"{ATTRIBUTE}."))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    if panel is None:
        return ModelSummary(type(model).__name__, base, trainable, every, (), {}, {}, {}, None, None)
    active = panel.active
    names = [active] if isinstance(active, str) else list(active.names()) if active is not None else []

    def counted(kind: str, module: Any) -> dict[str, int]:
        return {name: sum(p.numel() for p in module(name).parameters()) for name in getattr(panel, kind)}

    return ModelSummary(
        type(model).__name__,
        base,
        trainable,
        every,
        tuple(_adapter(panel, name, name in names) for name in panel.names),
        counted("heads", panel.head_module),
        counted("fusions", panel.fusion_module),
        counted("embeddings", panel.embeddings_module),
        None if active is None else str(active),
        panel.active_head,
    )


def _adapter(panel: Panel, name: str, active: bool) -> AdapterSummary:
    module, about = panel.module(name), panel.about(name)
    card = getattr(about, "card", None)
    return AdapterSummary(
        name,
        panel.config(name).method,
        panel.parameters_of(name),
        placement(place.key for place in panel.spliced(name).parts.places),
        tuple(sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()})),
        active,
        name in panel.merged,
        any(p.requires_grad for p in module.parameters()),
        None if card is None else f"{card.name} {card.version}, {about.path}",
    )


def _placed(placement: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield lines; places that act in the same blocks share one."""
    ordered = sorted(placement.items(), key=lambda item: (item[1], item[0]))
    for blocks, group in groupby(ordered, key=lambda item: item[1]):
        where = ", ".join(place for place, _ in group)
        yield f"{_spans(blocks)}: {where}" if blocks else where


def _spans(numbers: tuple[int, ...]) -> str:
    """Write numbers with runs as spans.

    >>> _spans((0, 1, 2, 5))
    'blocks 0-2, 5'
    """
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0])]
    spans = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"block{'s' if len(numbers) > 1 else ''} {spans}"


def _rows(rows: list[tuple[str, str | None]]) -> str:
    lines = []
    for title, text in rows:
        for number, line in enumerate((text or "").splitlines()):
            lines.append(f"{title if number == 0 else '':<12} {line}")
    return "\n".join(lines)
