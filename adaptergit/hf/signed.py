"""Signed packages on a Hub: judged like every other release, of the same principal wherever their bytes come from."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from adaptergit.errors import AdaptergitWarning, PackageError, TrustError
from adaptergit.hf.client import Listed
from adaptergit.hf.reference import HubReference
from adaptergit.hf.wanted import Found, Memory, Wanted, recall, remember
from adaptergit.judge import Asked, history_of, judged, take_over, verified
from adaptergit.package import MANIFEST, File, Manifest
from adaptergit.package.folder import MODEL_SIGNATURE, check_sizes, read_bounded, signature_names
from adaptergit.package.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from adaptergit.reference import HUB, Reference, Source
from adaptergit.resolve import Fetched

_MAX_SMALL = 128 * 1024


def fetch_package(one: Wanted, found: Found) -> Fetched:
    """Fetch manifest and signatures, let the policy decide, and fetch the rest."""
    listed, limits = found.listing.files, one.settings.limits
    first = [name for name in (MANIFEST, MODEL_SIGNATURE, *signature_names(listed)) if name in listed]
    check_sizes({name: listed[name].size for name in first}, replace(limits, file_bytes=_MAX_SMALL), found.address)
    with one.store.workspace() as folder:
        inner = folder / "package"
        inner.mkdir()
        for name in first:
            found.save(name, inner)
        data = read_bounded(inner / MANIFEST, MAX_MANIFEST_BYTES)
        signatures = {name: (inner / name).read_bytes() for name in signature_names(first)}
        manifest = Manifest.from_bytes(data, where=f"{found.address}/{MANIFEST}")
        judged(data, signatures, found.address, _asked(one, manifest))
        check_place(one, manifest)
        for file in manifest.files:
            _check_listed(file, listed.get(file.path), found.address)
        check_sizes({file.path: file.size for file in manifest.files}, limits, found.address)
        for file in manifest.files:
            found.save(file.path, inner)
        fetched = accepted_package(one, inner, manifest, found.hub.endpoint)
        package = one.store.add(inner, limits)
    take_over(fetched.verdict, one.settings)
    who, name = one.reference.principal, manifest.name
    seen, vouched = (manifest.version, package.digest, ""), fetched.verdict.level != "unsigned"
    one.store.remember(who, name, lambda now: now.seeing(*seen, vouched=vouched))
    memory = Memory(found.commit, package.digest, time.time(), name)
    remember(one.key, memory)
    if not one.reference.folder and not _is_pinned(one.reference):
        remember(who, memory)
    return replace(fetched, path=package.path)


def accepted_package(one: Wanted, path: Path, manifest: Manifest, served_by: str) -> Fetched:
    """Verify every byte of a package folder, for this reference; remember nothing."""
    release = _release(one, manifest)
    verdict, card = verified(path, _asked(one, manifest))
    if manifest.version in one.word.yanked(manifest.name):
        told = f"{manifest.name} {manifest.version} was yanked"
        warnings.warn_explicit(told, AdaptergitWarning, __file__, 1, registry={})
    return Fetched(release, manifest.version, verdict.digest, path, "", card, verdict, not served_by, served_by)


def _asked(one: Wanted, manifest: Manifest) -> Asked:
    """Return what the package must answer to."""
    release = _release(one, manifest)
    listed = one.word.releases(release.adapter).get(manifest.version)
    expected = listed[0].manifest_sha256 if listed is not None else None
    return Asked(one.settings, one.policy, release, manifest.version, word=one.word, expected=expected)


def _release(one: Wanted, manifest: Manifest) -> Reference:
    """Return the same as a reference to a release: a folder names its adapter, a root holds only one."""
    reference = one.reference
    url = f"{reference.endpoint}/{reference.repository}"
    source = Source(f"{HUB}{reference.repository}", "url", url, reference.principal)
    name = reference.name if reference.folder else manifest.name
    return Reference(source, name, SpecifierSet(), reference.digest)


def check_place(one: Wanted, manifest: Manifest) -> None:
    """Refuse a signed package of the same publisher that does not belong here."""
    reference = one.reference
    if reference.version is not None and Version(reference.version) != Version(manifest.version):
        raise TrustError(
            f"the tag {reference.revision} is of {reference.version}, but the manifest is of {manifest.version}",
            where=reference.place,
            hint="somebody moved a tag: ask the publisher",
        )
    if _is_pinned(reference):
        return  # who pins has chosen
    before = None if reference.folder else recall(reference.principal)
    if before is not None and before.name != manifest.name:
        raise TrustError(
            f"{reference.principal} held {before.name!r} when this machine had it before, and now {manifest.name!r}",
            hint="ask the publisher, then write the reference with #sha256:…",
        )
    if reference.revision is None:
        had = [past.version for past in history_of(_release(one, manifest)) if past.chained]
        newest = max(had, key=Version, default=manifest.version)
        if Version(newest) > Version(manifest.version):
            raise TrustError(
                f"{reference.place} holds {manifest.name} {manifest.version}, but this machine had {newest} from it",
                hint="releases do not disappear: ask the publisher; "
                f"what is named is given: {reference.at(reference.tag(manifest.version))}",
            )


def _is_pinned(reference: HubReference) -> bool:
    return reference.digest is not None or reference.commit is not None


def _check_listed(file: File, listed: Listed | None, where: str) -> None:
    """Refuse what cannot be the file that the manifest names, before it is fetched."""
    if listed is None:
        raise PackageError("the manifest lists this file, but it is not there", where=f"{where}/{file.path}")
    if listed.size != file.size or listed.sha256 not in (None, file.sha256):
        raise PackageError("this is not the file that the manifest lists", where=f"{where}/{file.path}")
