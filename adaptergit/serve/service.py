"""What is served: adapters that were resolved, verified and compared with their base model, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.bases import trained_columns, trained_length
from adaptergit.errors import AdaptergitError, ModelError, NotFoundError, UsageError
from adaptergit.load import About, load, load_found
from adaptergit.reference import expand, is_hub
from adaptergit.serve.answers import Phrasing, label_names, phrasing_of
from adaptergit.serve.encoding import most_tokens
from adaptergit.serve.found import Found, base_of_all, check_bases, check_names, find
from adaptergit.serve.mixing import lane_of, loners, positions_taken
from adaptergit.serve.names import split_name
from adaptergit.settings import load_settings
from adaptergit.splice.composition import Average, Block, Composition, Fuse, Stack
from adaptergit.splice.heads import static_head_of, static_paths
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.places import Tuned
from adaptergit.splice.setup import KINDS
from adaptergit.training.base import words_tokenizer


@dataclass(frozen=True, eq=False)
class Served:
    """One adapter with its head, as requests know it."""

    name: str
    reference: str
    """What it was loaded from, as it was written."""
    version: str | None
    description: str | None
    digest: str | None
    """sha256 of the manifest, or of the list of an unsigned checkpoint's files; None for a folder without either."""
    signers: tuple[str, ...]
    """Keys that signed it and that were believed."""
    composition: Composition
    """What acts; a name, or what a set-up composes."""
    head: str | None
    """None: the head of the model's own class, whose weights the adapter brings."""
    phrasing: Phrasing | None
    """None: its head cannot be put into words."""
    labels: tuple[str, ...]
    tokenizer: Any
    max_length: int
    """Tokens; longer texts are cut."""
    embeddings: str | None = None
    lane: Hashable = None
    """Adapters of one lane share batches."""
    alone: bool = False
    """Not even two of its rows share a batch."""


@dataclass(frozen=True, eq=False)
class Service:
    """A base model with all adapters that are served."""

    model: nn.Module
    base_model: str
    """Its id."""
    adapters: Mapping[str, Served]
    """By the names that requests use."""


def open_service(
    references: Sequence[str],
    *,
    base: str | Path | None = None,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    lock: str | Path | None = None,
    device: str | torch.device | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Service:
    """Load adapters for serving: all are verified, and compared with each other's base model, before one is read.

    Args:
        references: References or package folders; ``name=REF`` gives one another name.
        base: Folder of the base model; default: the settings' mapping of the cards' id, or the id.
        policy: See :func:`adaptergit.load`, as ``offline`` and ``lock``.
        refresh: Ask for newer versions even if recent answers are known.
        device: Where the model goes.
        report: Told what is going on.

    Raises:
        UsageError: No references, two of one name, or something that cannot be served.
        ModelError: Two base models, or an adapter without a head.
        AdaptergitError: Whatever :func:`adaptergit.load` raises.
    """
    if not references:
        raise UsageError("there is nothing to serve", hint="adaptergit serve org/repo@adapter …")
    settings = load_settings()
    if base is not None and not expand(base).is_dir():
        raise NotFoundError("there is no such folder", where=str(base), hint="--base names the base model's folder")
    target = None if device is None else _device(device)
    found = []
    for text in references:
        report(f"verifying {split_name(text)[1]}")
        found.append(find(text, settings, policy, offline, refresh, lock))
    check_names([one.name for one in found])
    check_bases([(one.name, one.about) for one in found if one.about is not None])
    report("loading the base model")
    model, base_id, tokenizer = base_of_all(found, base, settings, offline or settings.offline, target)
    served = []
    for one in found:
        report(f"loading {one.reference}")
        options: Any = {"policy": policy, "offline": offline, "lock": None if is_hub(one.exact) else lock}
        served.append(_loaded(model, tokenizer, one, options))
    return _service(model, base_id, served)


def service_of(model: nn.Module, tokenizer: Any) -> Service:
    """Serve what is in a model's panel: every adapter that has a head of its name.

    Raises:
        ModelError: There is none.
    """
    panel = adapters(model)
    names = [name for name in panel.names if name in panel.heads]
    if not names:
        raise ModelError(
            "no adapter of this model has a head", hint="panel.add_head(name, …), or load one with its head"
        )
    made = []
    for name in names:
        about = panel.about(name) if isinstance(panel.about(name), About) else None
        identity = about.verdict.digest if about is not None and about.verdict is not None else None
        made.append(_made(panel, tokenizer, Found(name, name, name, about, None, identity), name, name))
    return _service(model, str(getattr(getattr(model, "config", None), "_name_or_path", "")), made)


def _loaded(model: nn.Module, tokenizer: Any, one: Found, options: Mapping[str, Any]) -> Served:
    """Splice one adapter in and see what it became."""
    panel, name, reference = adapters(model), one.name, one.reference
    panel.activate(None, head=[])
    before = set(panel.heads)
    several = one.about is not None and one.about.card.method in KINDS
    try:
        given = None if several else name
        if one.about is None:
            load(one.exact, model, name=given, **options)
        else:  # what was looked at is what is loaded
            load_found(one.about, model, name=given, **options)
    except AdaptergitError as error:
        error.where = f"{name} ({error.where})" if error.where else name
        if "another base model" in error.what:
            error.hint = "name the folder of the base model that its card names with --base (base=)"
        raise
    composition, head = panel.active, panel.active_head
    if composition is None:
        raise ModelError(
            f"{name!r} holds no adapter that can act",
            where=reference,
            hint="publish adapter and head in one package: panel.save(…), or save_setup(…)",
        )
    if head is None and not _brings_head(panel, composition):
        raise ModelError(
            f"{name!r} was published without a head: it has nothing to answer with",
            where=reference,
            hint="panel.add_head(…) and train it, before panel.save(…) and publish",
        )
    if len(set(panel.heads) - before) > 1:
        raise UsageError(f"{name!r} is a set-up of several heads", where=reference, hint="publish one for each answer")
    if not _alike(composition):
        raise UsageError(
            f"{name!r} is {composition}: what shares out rows or positions itself cannot be served",
            where=reference,
            hint="Stack, Fuse and Average can",
        )
    return _made(panel, tokenizer, one, composition, head)


def _made(panel: Panel, tokenizer: Any, one: Found, composition: Composition, head: str | None) -> Served:
    name, reference, about = one.name, one.reference, one.about
    config = static_head_of(panel.model) if head is None else panel.head_config(head)
    names = list(composition.names()) if isinstance(composition, Block) else [composition]
    embeddings = next((member for member in names if member in panel.embeddings), None)
    own = tokenizer if embeddings is None else panel.tokenizer(embeddings)
    if own is None:
        what = f"{name!r} has a vocabulary of its own and no tokenizer"
        raise ModelError(
            what, where=reference, hint="panel.add_embeddings(…) with one, before it is saved and published"
        )
    phrasing = phrasing_of(config)
    if phrasing is not None and phrasing.by_token and not own.is_fast:
        raise ModelError(
            f"{name!r} answers by tokens, and the tokenizer does not tell where they are",
            where=reference,
            hint="a base model with a tokenizer.json has one that does",
        )
    if phrasing is not None and phrasing.task == "tagging" and embeddings is None:
        own = words_tokenizer(own, str(own.name_or_path))  # as it was trained
    if own.pad_token_id is None:
        own.pad_token = own.eos_token
    card: Mapping[str, Any] = about.card.data if about is not None else {}
    if phrasing is not None and phrasing.pairs is None and (columns := trained_columns(card)):
        phrasing = replace(phrasing, pairs="pair" in columns)
    longest = most_tokens(panel.model, own) - positions_taken(panel, composition)[1]
    made = Served(
        name=name,
        reference=reference,
        version=card.get("version"),
        description=card.get("description"),
        digest=one.identity,
        signers=tuple(about.verdict.signers) if about is not None and about.verdict is not None else (),
        composition=composition,
        head=head,
        phrasing=phrasing,
        labels=label_names(config),
        tokenizer=own,
        max_length=min(trained_length(card), longest),
        embeddings=embeddings,
    )
    return replace(made, lane=lane_of(panel, made))


def _service(model: nn.Module, base_id: str, served: Sequence[Served]) -> Service:
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = served[0].tokenizer.pad_token_id  # heads of decoder classes look for it
    model.eval()
    alone = {one.name for one in loners(model, [one for one in served if one.phrasing is not None])}
    adapters(model).activate(None, head=[])
    return Service(model, base_id, {one.name: replace(one, alone=one.name in alone) for one in served})


def _brings_head(panel: Panel, composition: Composition) -> bool:
    """Tell whether adapters hold weights for the head of the model's own class, as PEFT's ``modules_to_save``."""
    heads = static_paths(panel.model)
    names = composition.names() if isinstance(composition, Block) else [composition]
    return any(
        isinstance(place, Tuned) and place.path.split(".")[0] in heads
        for name in names
        for place in panel.spliced(name).parts.places
    )


def _alike(composition: Composition) -> bool:
    """Tell whether a composition treats all rows and positions alike."""
    if not isinstance(composition, Block):
        return True
    return isinstance(composition, Stack | Fuse | Average) and all(
        child is not None and _alike(child) for child in composition.children
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"{str(device)!r} is no device of this machine",
            hint="leave --device out, or see what there is: adaptergit doctor",
        ) from error
