"""Publish to the Hugging Face Hub: a folder with weights and a card becomes a signed package in one commit, and a tag.

validate → look at what is there → pack with a model card → sign → commit on top of what was seen → tag. Until the Hub
has taken the commit, nothing has changed; if somebody else was faster, it takes none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from adaptergit.errors import AdaptergitError, NotFoundError, ReleaseError, UsageError, counted
from adaptergit.hf import HubReference
from adaptergit.hf.client import Hub, Listing, offline_by_environment
from adaptergit.hf.reference import DEFAULT_REVISION
from adaptergit.package import MANIFEST, README, Card, Manifest, canonical, is_generated
from adaptergit.package.folder import read_bounded, unlisted_names
from adaptergit.package.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from adaptergit.package.modelcard import render_model_card, with_front_matter
from adaptergit.package.readme import is_rendered
from adaptergit.package.version import is_version
from adaptergit.packing import Report, card_to_publish, check_weights, packed, sign_package
from adaptergit.publish import Release, signing_keys, tell_trust
from adaptergit.settings import load_settings

_MAX_README = 1 << 20


def publish_to_hub(
    path: str | Path,
    to: str,
    *,
    name: str | None = None,
    version: str | None = None,
    key: str | Path | None = None,
    cosigners: Sequence[str | Path] = (),
    model_signing_key: str | Path | None = None,
    dry_run: bool = False,
    report: Report = lambda _: None,
) -> Release:
    """Publish the adapter in a folder to the Hugging Face Hub; the repository is made if there is none.

    The token is the one that ``hf auth login`` keeps, or ``HF_TOKEN``.

    Args:
        path: Folder with ``card.yaml`` and the weights. It is not changed.
        to: ``hf:org/repo``, or a folder in it, which then names the adapter.
        name, version, key, cosigners, model_signing_key: See :func:`~adaptergit.publish.publish`.
        dry_run: Do everything but sign and write to the Hub.
        report: Called with one line per step.

    Raises:
        UsageError: The reference, the name or a key cannot be used.
        NotFoundError, PackageError: The folder or its card is not valid.
        TrustError: Signing failed.
        ReleaseError: The version exists or is too old, something else is there, or somebody else was faster.
        TransportError: The Hub cannot be reached, or refuses.
    """
    place, source, settings = HubReference.parse(to), Path(path), load_settings()
    if place.revision is not None or place.digest is not None:
        raise UsageError(f"{to!r}: a place to publish to has neither '@' nor '#'", hint=f"--to {place.at(None)}")
    card = card_to_publish(source, name, version)
    if place.folder and card.name != place.name:
        hint = f"--name {place.name}, or --to {place.at(None)}/{card.name}"
        raise UsageError(f"the folder is for {place.name!r}, the card is of {card.name!r}", where=to, hint=hint)
    signers = signing_keys(key, cosigners, model_signing_key, dry_run=dry_run)
    check_weights(source, card, report)
    if settings.offline or offline_by_environment():
        raise UsageError(
            "offline was asked for, and publishing needs the Hub", where=to, hint="unset ADAPTERGIT_OFFLINE"
        )
    hub = Hub.of(place.endpoint, settings)
    with tempfile.TemporaryDirectory(prefix="adaptergit-publish-") as temporary:
        there = _look(hub, place, Path(temporary))
        _check_version(there, place, card)
        folder = Path(temporary) / "package"
        folder.mkdir()
        previous = canonical.sha256(there.manifest) if there.manifest is not None else None
        manifest = packed(
            source,
            folder,
            card,
            repository=place.principal,
            previous=previous,
            address=None,
            readme=_readme(source, card, place, there, report),
            report=report,
        )
        if there.last is not None and there.last.version == card.version:
            return _only_tagged(hub, place, there, manifest, dry_run=dry_run, report=report)
        digest, tag = canonical.sha256((folder / MANIFEST).read_bytes()), place.tag(card.version)
        if dry_run:
            key_name = signers[0].public.fingerprint if signers else "a key you make with 'adaptergit keygen'"
            make = "" if there.commit else f"make {place.repository}, "
            report(f"dry run: would sign with {key_name}, {make}commit to {DEFAULT_REVISION}, tag {tag}")
        else:
            sign_package(folder, card, signers, model_signing_key, report)
            _push(hub, place, there, folder, card, report)
            tell_trust(place.principal, signers[0].public, report)
        signer = signers[0].public.fingerprint if signers else ""
        return _release(hub, place, manifest, digest, signer=signer, dry_run=dry_run)


@dataclass(frozen=True)
class _There:
    """What is on the Hub before."""

    commit: str | None
    """None: no repository."""
    listing: Listing
    manifest: bytes | None
    last: Manifest | None
    readme: bytes | None
    tags: frozenset[str]


def _look(hub: Hub, place: HubReference, scratch: Path) -> _There:
    try:
        commit = hub.commit(place.repository, None)
    except NotFoundError:
        return _There(None, Listing({}, ()), None, None, None, frozenset())
    try:
        listing = hub.listing(place.repository, place.folder, commit)
    except NotFoundError:  # no such folder yet
        listing = Listing({}, ())

    def read(name: str, limit: int) -> bytes | None:
        if name not in listing.files or listing.files[name].size > limit:
            return None
        path = f"{place.folder}/{name}" if place.folder else name
        hub.save(place.repository, path, commit, listing.files[name], scratch / name)
        return read_bounded(scratch / name, limit)

    manifest = read(MANIFEST, MAX_MANIFEST_BYTES)
    last = Manifest.from_bytes(manifest, where=hub.address(place.repository, MANIFEST)) if manifest else None
    return _There(commit, listing, manifest, last, read(README, _MAX_README), hub.tags(place.repository))


def _check_version(there: _There, place: HubReference, card: Card) -> None:
    """Refuse what would break a rule of releases."""
    last = there.last
    where = f"{place.at(None)}"
    if last is not None and (last.repository, last.name) != (place.principal, card.name):
        raise ReleaseError(
            f"there is {last.repository}@{last.name} already, and this is {place.principal}@{card.name}",
            where=where,
            hint=f"publish under that name, or into a folder of its own: --to {place.at(None)}/{card.name}",
        )
    if place.tag(card.version) in there.tags:
        raise ReleaseError(
            f"{card.name} {card.version} is published already", where=where, hint="releases never change"
        )
    prefix = place.tag("")
    tagged = [tag.removeprefix(prefix) for tag in there.tags if tag.startswith(prefix)]
    newest = max((text for text in tagged if is_version(text)), key=Version, default=None)
    if newest is not None and Version(newest) >= Version(card.version):
        hint = f"the next version is above {newest}"
        raise ReleaseError(f"{card.version} is older than {newest}, which is released", where=where, hint=hint)
    if newest is not None and (last is None or Version(newest) > Version(last.version)):
        held = f"{last.version}" if last is not None else "no package"
        hint = "somebody changed the branch: restore it first"
        raise ReleaseError(f"{newest} is tagged, but {DEFAULT_REVISION} holds {held}", where=where, hint=hint)
    if last is not None and Version(last.version) > Version(card.version):
        hint = f"the next version is above {last.version}"
        raise ReleaseError(f"{card.version} is older than {last.version}, which is there", where=where, hint=hint)


def _readme(source: Path, card: Card, place: HubReference, there: _There, report: Report) -> bytes:
    """Return the model card: the publisher's own README, else a person's on the Hub, else the card rendered."""
    own = source / README
    if own.is_file() and not is_generated(own):
        return with_front_matter(read_bounded(own, _MAX_README), card)
    if there.readme is not None and not is_rendered(there.readme.decode("utf-8", "replace")):
        report(f"the {README} of the repository is kept; one in {source} would take its place")
        return with_front_matter(there.readme, card)
    return render_model_card(card, str(place.at(place.tag(card.version))))


def _push(hub: Hub, place: HubReference, there: _There, folder: Path, card: Card, report: Report) -> None:
    commit = there.commit
    if commit is None:
        hub.create(place.repository)
        commit = hub.commit(place.repository, None)
        report(f"made {hub.address(place.repository)}")
    inside = f"{place.folder}/" if place.folder else ""
    files = {f"{inside}{path.name}": path for path in sorted(folder.iterdir())}
    ours = {file.path for file in there.last.files} | set(unlisted_names(there.listing.files)) if there.last else set()
    gone = sorted({f"{inside}{name}" for name in ours & there.listing.files.keys()} - files.keys())
    report(f"committing {counted(len(files), 'file')} to {DEFAULT_REVISION} of {hub.address(place.repository)}")
    done = hub.push(place.repository, files, gone, f"{card.name} {card.version}", commit)
    _tag(hub, place, card.version, done)
    report("the Hub has them")


def _only_tagged(
    hub: Hub, place: HubReference, there: _There, made: Manifest, *, dry_run: bool, report: Report
) -> Release:
    """Finish a release whose commit the Hub took, but not its tag."""
    assert there.last is not None and there.manifest is not None and there.commit is not None  # noqa: PT018
    if [(file.path, file.sha256) for file in there.last.files] != [(file.path, file.sha256) for file in made.files]:
        raise ReleaseError(
            f"{made.name} {made.version} is there already, with other files",
            where=hub.address(place.repository, place.folder),
            hint="releases never change: choose the next version",
        )
    report(f"{made.name} {made.version} is there already, only its tag is missing")
    if not dry_run:
        _tag(hub, place, made.version, there.commit)
    return _release(hub, place, there.last, canonical.sha256(there.manifest), signer="", dry_run=dry_run)


def _tag(hub: Hub, place: HubReference, version: str, commit: str) -> None:
    try:
        hub.tag(place.repository, place.tag(version), commit)
    except AdaptergitError as error:
        error.hint = f"the files are there, but not the tag {place.tag(version)}: publish again, and only that is done"
        raise


def _release(hub: Hub, place: HubReference, manifest: Manifest, digest: str, *, signer: str, dry_run: bool) -> Release:
    tag = place.tag(manifest.version)
    return Release(
        reference=str(place.at(tag, None if dry_run else digest)),
        repository=place.principal,
        name=manifest.name,
        version=manifest.version,
        digest="" if dry_run else digest,
        tree=None,
        tag=f"refs/tags/{tag}",
        branch=f"refs/heads/{DEFAULT_REVISION}",
        remote=hub.address(place.repository),
        files=manifest.files,
        signer=signer,
        previous=manifest.previous,
        dry_run=dry_run,
    )
