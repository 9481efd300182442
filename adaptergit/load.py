"""Load: a reference or a folder becomes adapters in a model. Here the two halves meet.

resolve → fetch → verify → compare with the model → read the weights → splice. Everything that can refuse comes before
anything that changes the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.bases import NamedBase, base_model, class_for, stated_base, transformers
from adaptergit.dependencies import DEPTH, dependencies_of
from adaptergit.errors import AdaptergitError, PackageError, UsageError
from adaptergit.formats import Folder, foreign_format, is_foreign, is_single, load_folder, model_class
from adaptergit.formats.unpack import unpacked
from adaptergit.hf import Checkpoint, fetch_hub
from adaptergit.judge import Asked, accepted
from adaptergit.legacy import LegacyError, legacy_file
from adaptergit.package import CARD, MANIFEST, WEIGHTS, Card, Manifest, read_package
from adaptergit.package.local import local_card
from adaptergit.reference import check_flags, check_paths, check_pinned_by, expand, is_folder, is_hub
from adaptergit.resolve import Fetched, check_policy, fetch
from adaptergit.settings import Settings, load_settings
from adaptergit.splice.anatomy import Site
from adaptergit.splice.checkpoint import read_into, read_tokenizer
from adaptergit.splice.composition import Stack
from adaptergit.splice.fingerprint import Fingerprint, compare
from adaptergit.splice.panel import Panel, adapters, check_model
from adaptergit.splice.setup import Setup, built, from_card, inserted, without_output
from adaptergit.trust import Verdict


@dataclass(frozen=True)
class About:
    """Where a loaded adapter came from."""

    card: Card
    path: Path
    verdict: Verdict | None
    """None for a local folder that is not a signed package."""
    from_store: bool
    """True when no network was touched."""
    unsigned: Mapping[str, str] | None = None
    """Digests of the files of a checkpoint that has no manifest, but an identity."""
    weights: memoryview | None = field(default=None, repr=False, compare=False)
    """The very bytes that were checked, if they could be held; the panel keeps none."""

    @cached_property
    def digests(self) -> Mapping[str, str] | None:
        """What the files must be, byte for byte, when they are read; None for a folder without a manifest."""
        if self.unsigned is not None:
            return self.unsigned
        manifest = self.path / MANIFEST
        if self.verdict is None and not manifest.exists():
            return None
        parsed = self.verdict.manifest if self.verdict else Manifest.from_bytes(read_package(self.path).manifest_bytes)
        return {file.path: file.sha256 for file in parsed.files}

    @property
    def format(self) -> str:
        """Whose files they are: "adaptergit", "adapterhub" or "peft"."""
        return str(self.card.data["adapter"]["format"])


@dataclass(frozen=True)
class _Wanted:
    """How something is loaded, and all that it depends on."""

    settings: Settings
    head: bool
    device: torch.device | None
    dtype: torch.dtype | None
    policy: str | None
    offline: bool
    refresh: bool
    index: str | Path | None
    lock: str | Path | None
    dependencies: bool

    def obtain(self, ref: str | Path) -> About:
        """Return a package whose every byte is checked."""
        names = ("policy", "offline", "refresh", "index", "lock")
        return obtain(ref, self.settings, **{name: getattr(self, name) for name in names})


def load(
    ref: str | Path,
    model: nn.Module | None = None,
    *,
    name: str | None = None,
    head: bool = True,
    activate: bool = True,
    dependencies: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
) -> Any:
    """Load an adapter into a model and return the transformers model itself.

    Args:
        ref: ``org/repo@adapter``, any other reference, ``hf:org/repo``, or a package folder.
        model: Default: the base model the card names, through ``AutoModel.from_pretrained``.
        name: Name in the model's panel; default: the card's.
        head: Also load the prediction head, if the package has one.
        activate: Make it the active adapter.
        dependencies: Also load what the card says it was trained on top of, each verified like any other, under the
            names of their cards; an adapter is then activated as a Stack on top of them. What the model has already
            under such a name is used, if it is the same release.
        device: Where the adapter goes; default: where its block is. A model made here goes there too.
        dtype: Of the adapter; default: its block's.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say. Files of an archive
            that nobody signed, which an index lists, are loaded under ``digest`` only.
        offline: Touch no network.
        refresh: Ask for new versions of it now, also if that was done within ``resolution_max_age``.
        index: Index file that pins the release.
        lock: Lock file that names the release; with ``offline``, nothing is asked for and no process is started.

    Raises:
        UsageError: A malformed reference, or the name is taken.
        NotFoundError, TransportError: It cannot be had.
        TrustError, PackageError: It was refused.
        ModelError: It does not fit the model. The model is as it was, whatever was raised.
    """
    check_flags(head=head, activate=activate, dependencies=dependencies, offline=offline, refresh=refresh)
    settings = load_settings()
    _check_arguments(ref, model, dtype, index, lock)
    check_pinned_by(ref, index, lock)
    target = _device(device)
    offline = offline or settings.offline
    wanted = _Wanted(settings, head, target, dtype, policy, offline, refresh, index, lock, dependencies)
    if is_hub(ref):
        found = fetch_hub(str(ref), policy=policy, offline=offline, refresh=refresh, settings=settings)
        if isinstance(found, Checkpoint) and CARD not in found.digests:
            return _load_checkpoint(found, model, name, activate, wanted)
        about = about_of(found)
    elif is_folder(ref) and not (expand(ref) / CARD).exists() and is_foreign(expand(ref)):
        if model is None:
            hint = "pass model=, or write a card: adaptergit card make"
            raise UsageError("this checkpoint does not say which weights it was trained in", where=str(ref), hint=hint)
        return _load_foreign(expand(ref), model, name, activate, wanted, None)
    else:
        try:
            about = wanted.obtain(ref)
        except LegacyError as error:
            file, entry = legacy_file(error, policy=policy, offline=offline, settings=settings)
            # Whoever pins these very bytes has chosen to read the pickle in them, in a process of its own.
            with unpacked(file, allow_pickle=True) as folder:
                if model is None:
                    kind, options = model_class(Folder(folder))
                    made_by = (getattr(transformers(), kind), options)
                    model = base_model(NamedBase(entry.base_model), made_by, settings, offline, target)
                return _load_foreign(folder, model, name, activate, wanted, None)
    if model is None:
        model = base_for(about, settings, head=head, offline=offline, device=target)
    with _all_or_nothing(model) as panel:
        _load_into(panel, about, name, activate, replace(wanted, refresh=False), ())
    return model


def load_found(
    about: About,
    model: nn.Module,
    *,
    name: str | None = None,
    policy: str | None = None,
    offline: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
) -> None:
    """Load a package that was obtained before; see :func:`load`. What it depends on is obtained now."""
    wanted = _Wanted(load_settings(), True, None, None, policy, offline, False, index, lock, True)
    with _all_or_nothing(model) as panel:
        _load_into(panel, about, name, True, wanted, ())


def _load_into(
    panel: Panel, about: About, name: str | None, activate: bool, wanted: _Wanted, above: tuple[str, ...]
) -> str | None:
    """Load a package and what it depends on; return the adapter's name, if it is one adapter.

    Args:
        above: Names of the packages that asked for this one.
    """
    below = _below(panel, about, wanted, above) if wanted.dependencies else []
    if about.format != "adaptergit":
        _load_foreign(about.path, panel.model, name or about.card.name, activate, wanted, about)
        return name or about.card.name
    setup = _splice(panel, _setup(about, name), wanted, about)
    own = str(setup.composition) if setup.single else None
    missing = [n for fusion in setup.fusions.values() for n in fusion.children if n not in panel]
    if activate and not missing:
        composition = Stack(*below, own) if below and own is not None else setup.composition
        panel.activate(
            composition,
            None if setup.single else list(setup.heads),
            embeddings=None if setup.single else next(iter(setup.embeddings), None),
        )
    return own


def _below(panel: Panel, about: About, wanted: _Wanted, above: tuple[str, ...]) -> list[str]:
    """Load what a package depends on; return the names of adapters, the lowest first."""
    chain = (*above, about.card.name)
    of = about.verdict.manifest.repository if about.verdict else None if about.unsigned is None else ""
    names = []
    for reference in dependencies_of(about.card, wanted.settings, of=of):
        if len(chain) > DEPTH:
            raise PackageError(f"more than {DEPTH} adapters on top of each other: {' > '.join(chain)}")
        found = wanted.obtain(str(reference))
        mine = found.card.name
        if mine in panel:
            there = panel.about(mine)
            same = there is not None and there.verdict is not None and found.verdict is not None
            if not same or there.verdict.digest != found.verdict.digest:  # type: ignore[union-attr]
                hint = "load(…, dependencies=False) and stack it yourself"
                raise UsageError(f"the model has another {mine!r} than {about.card.name} was trained on", hint=hint)
            names.append(mine)
            continue
        loaded = _load_into(panel, found, None, False, replace(wanted, head=False), chain)
        names += [loaded] if loaded is not None else []
    return names


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[Panel]:
    """Give the model's panel; if anything goes wrong, take back whatever was added to it."""
    fresh = getattr(model, "adaptergit", None) is None
    panel = adapters(model)
    restore = panel.snapshot()
    try:
        yield panel
    except BaseException as error:
        restore()
        if fresh:
            panel.detach()
        if isinstance(error, RuntimeError | AssertionError) and not isinstance(error, AdaptergitError):
            raise UsageError(
                f"the adapter cannot be put there: {str(error).splitlines()[0]}", hint="check device= and dtype="
            ) from error
        raise


def _check_arguments(ref: object, model: object, dtype: torch.dtype | None, index: object, lock: object) -> None:
    if not isinstance(ref, str | Path):
        raise UsageError(f"expected a reference or a folder, not {type(ref).__name__}", hint='write "org/repo@adapter"')
    if isinstance(ref, str) and not ref.strip():
        raise UsageError("the reference is empty", hint='write "org/repo@adapter", or a folder: ./out')
    if model is not None:
        check_model(model)
    check_paths(index=index, lock=lock)
    if dtype is not None and dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"adapters compute in float64, float32, float16 or bfloat16, not in {dtype}")


def _device(device: str | torch.device | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{device!r} is not a device", hint="cpu, cuda, cuda:1, mps …") from error


def obtain(
    ref: str | Path,
    settings: Settings,
    *,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
) -> About:
    """Return a package whose every byte is checked, and touch no model; see :func:`load`."""
    if not is_folder(ref):
        asked: Any = {"policy": policy, "offline": offline, "refresh": refresh, "index": index, "lock": lock}
        return about_of(fetch(str(ref), settings=settings, **asked))
    folder = expand(ref)
    if policy is None or (policy == "unsigned" and not (folder / MANIFEST).exists()):
        return About(local_card(folder, settings.limits), folder, None, True)
    check_policy(policy)
    verdict, card = accepted(folder, Asked(settings, policy))
    return About(card, folder, verdict, True)


def base_for(
    about: About,
    settings: Settings,
    *,
    head: bool = True,
    offline: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """Make the base model a card names, of the class that the package's head belongs to.

    Raises:
        NotFoundError: It cannot be had.
        PackageError: The head is of no class of transformers.
    """
    if about.format == "adaptergit":
        kinds = class_for(_setup(about, None).heads.values() if head else ())
    else:
        kind, options = model_class(Folder(about.path, about.digests))
        kinds = getattr(transformers(), kind), options
    return base_model(about.card.base_model, kinds, settings, offline, device)


def about_of(found: Fetched | Checkpoint) -> About:
    """Return where something with a card came from."""
    if isinstance(found, Fetched):
        return About(found.card, found.path, found.verdict, found.from_store, weights=found.weights)
    return About(local_card(found.path), found.path, None, found.from_store, found.digests)


def _load_checkpoint(
    found: Checkpoint, model: nn.Module | None, name: str | None, activate: bool, wanted: _Wanted
) -> nn.Module:
    """Load a checkpoint of others that has no card: it may say which base model it was trained in."""
    folder = Folder(found.path, found.digests)
    if model is None:
        kind, options = model_class(folder)
        named = stated_base(found.path, found.digests)
        made_by = (getattr(transformers(), kind), options)
        model = base_model(named, made_by, wanted.settings, wanted.offline, wanted.device)
    if name is None and foreign_format(folder) == "peft":
        name = found.reference.name  # PEFT's checkpoints have no name of their own
    return _load_foreign(found.path, model, name, activate, wanted, None, found.digests)


def _load_foreign(
    path: Path,
    model: nn.Module,
    name: str | None,
    activate: bool,
    wanted: _Wanted,
    about: About | None,
    digests: Mapping[str, str] | None = None,
) -> nn.Module:
    """Load files in a format of others. Without a card, nothing says which weights they were trained in."""
    digests = about.digests if about is not None else digests
    folder = Folder(path, digests)
    if about is not None and (foreign_format(folder) != about.format or not is_single(folder)):
        raise PackageError(f"the files are not one adapter in the format {about.format!r}", where=str(path / CARD))
    with _all_or_nothing(model) as panel:
        if about is not None:
            base = about.card.base_model
            compare(Fingerprint.parse(base.fingerprint), panel.model, panel.anatomy, name=base.id)
        options: Any = {"device": wanted.device, "dtype": wanted.dtype, "head": wanted.head}
        loaded = load_folder(panel, path, name=name, digests=digests, about=about, **options)
        if about is not None and (found := panel.config(str(loaded.composition)).method) != about.card.method:
            where = str(path / CARD)
            raise PackageError(
                f"adapter.method is {about.card.method!r}, but the files hold {found!r}",
                where=where,
                hint=f"of your own: adaptergit card edit FOLDER adapter.method={found}",
            )
        if activate and (loaded.composition is not None or loaded.head is not None):
            chosen = loaded.composition if loaded.composition is not None else panel.active
            panel.activate(chosen, loaded.head)
    return model


def _setup(about: About, name: str | None) -> Setup:
    """Read what the card says the package holds."""
    try:
        setup = from_card(about.card.data, name)
    except (UsageError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise PackageError(f"adapter.config or head: {error}", where=str(about.path / CARD)) from error
    if name is not None and not setup.single and name not in setup.heads:
        raise UsageError(f"the members of a {setup.method} keep their names", hint="load it without name=")
    return setup


def _splice(panel: Panel, whole: Setup, wanted: _Wanted, about: About) -> Setup:
    """Build on the meta device, read strictly, insert: the panel changes only in the last lines."""
    card = about.card
    setup, skipped = without_output(whole, panel.model)
    if not wanted.head:
        skipped += tuple(prefix for kind, _, prefix in whole.prefixes() if kind == "heads")
        setup = replace(setup, heads={})
    for kind, new, _ in setup.prefixes():
        if new in getattr(panel, "names" if kind == "adapters" else kind):
            hint = "load it under another name=" if setup.single else "load it into another model, or remove that one"
            raise UsageError(f"the model has {new!r} among its {kind} already", hint=hint)
    compare(Fingerprint.parse(card.base_model.fingerprint), panel.model, panel.anatomy, name=card.base_model.id)
    try:
        modules = built(panel, setup, [Site(**site) for site in card.data["adapter"].get("sites", ())])
    except (
        UsageError,
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
    ) as error:  # of values that no configuration has
        raise PackageError(f"adapter.config or head: {error}", where=str(about.path / CARD)) from error
    holder = {prefix: modules[kind, member] for kind, member, prefix in setup.prefixes()}
    digest = None if about.digests is None else about.digests.get(WEIGHTS, "")
    read_into(about.path / WEIGHTS, holder, digest=digest, held=about.weights, ignore=skipped)
    tokenizer = read_tokenizer(about.path, about.digests) if setup.embeddings else None
    inserted(
        panel,
        setup,
        modules,
        tokenizer=tokenizer,
        dtype=wanted.dtype,
        device=wanted.device,
        about=replace(about, weights=None),
    )
    return setup
