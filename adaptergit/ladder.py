"""Every way to one release, best first. What cannot be had is asked for elsewhere; what is refused ends the search.

L1 the tree that something pinned · L2 the version's tag · L3 the branch, where a repository lost its tags · L4 the
archive that a forge makes of the tag · L5 mirrors: other git repositories, and static folders. (L0 is the store, which
was looked at before.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adaptergit.durable import scratch
from adaptergit.errors import AdaptergitError, NotFoundError, PackageError, StorageError, TransportError
from adaptergit.git import Listing, Remote, fetch_release, fetch_rotations, list_versions
from adaptergit.git.fetch import fetch_from_branch
from adaptergit.git.objects import Judge
from adaptergit.reference import Reference, Source, expand
from adaptergit.settings import Limits, Settings
from adaptergit.trust import SignedRotation
from adaptergit.trust.rotation import MAX_LISTED_BYTES, MAX_ROTATIONS, parse_rotations
from adaptergit.web import StaticMirror, archive_urls, fetch_archive
from adaptergit.web.download import Download

_SILENT = re.compile("Operation too slow|timed out|no end within", re.IGNORECASE)


@dataclass(frozen=True)
class Got:
    """What is known of a package that was fetched, besides its bytes."""

    tree: str = ""
    """Oid of its tree; empty if it did not come through git."""
    yanked: bool | None = None
    """Whether whoever sent it says that it was withdrawn; None: nothing was said."""


@dataclass(frozen=True)
class Way:
    """One way to a release."""

    source: str
    """Who is asked."""
    fetch: Callable[[Path], Got]
    """Write the package's files into an empty folder."""
    kind: str = "git"
    """``git``, ``branch``, ``archive`` or ``mirror``."""

    def after(self, failed: Sequence[tuple[Way, AdaptergitError]], *, pinned: bool) -> bool:
        """Tell whether it is worth going, after what the ways before it ended with.

        A repository that answered that it has no such version is believed, unless the release is pinned: then its
        bytes may lie elsewhere. One that could not be reached is not asked again for its branch, and one that kept
        silent not for archives: its mirrors must have their turn.
        """
        answered = any(way.kind == "git" and isinstance(error, NotFoundError) for way, error in failed)
        if self.kind == "branch":
            return not failed or (answered and pinned)
        if self.kind == "archive":
            return not answered and not any(way.kind == "git" and _SILENT.search(str(error)) for way, error in failed)
        return not answered or pinned or self.kind == "git"


@dataclass(frozen=True)
class Listed:
    """What somebody says there is of an adapter."""

    listing: Listing
    source: str
    """Who says so."""
    failed: AdaptergitError | None = None
    """Why the repository itself could not be asked; None: it was. What other mirrors said is in its notes."""


def ways(
    reference: Reference,
    version: str | None,
    settings: Settings,
    *,
    tree: str | None = None,
    tagged: str | None = None,
    mirrors: tuple[str, ...] = (),
    judges: tuple[Judge, Judge],
) -> Iterator[Way]:
    """Yield every way to a release.

    Args:
        reference: What is wanted.
        version: Of the release, if it is known.
        settings: Limits, and the user's mirrors.
        tree: Git oid of its tree, if something pinned it.
        tagged: Git oid of what its tag is of, if the repository itself just said so.
        mirrors: More addresses, for example from a lock file.
        judges: Decide on manifest and signatures before the weights are fetched, where that can be done: one on what
            the repository sends, one on what a mirror sends.
    """
    (judge, judge_copy), source, adapter = judges, reference.source, reference.adapter
    yield from _in_git(source, adapter, version, tree, settings, judge, tagged)
    if version is not None:
        for url in archive_urls(source, adapter, version):
            yield Way(url, _archive(url, settings), "archive")
    for url in mirrors_of(source, settings, mirrors):
        if url.endswith("/"):
            yield Way(url, _static(url, reference, version, settings, judge_copy), "mirror")
        else:
            for way in _in_git(Source.parse(url), adapter, version, tree, settings, judge_copy):
                if way.kind == "git":
                    yield Way(way.source, way.fetch, "mirror")


def released(reference: Reference, settings: Settings) -> Listed:
    """Return the versions of an adapter, as the repository itself says, or, if it cannot be asked, a mirror.

    Raises:
        TransportError, NotFoundError: Nobody can be reached, or has it. What mirrors said is in the error's notes.
    """
    source, adapter = reference.source, reference.adapter
    settings = replace(settings, limits=settings.limits.started())
    try:
        remote = Remote.of(source, allow_http=settings.allow_http)
        return Listed(list_versions(remote, adapter, settings.limits), source.url)
    except StorageError:
        raise
    except (TransportError, NotFoundError) as error:
        for url in mirrors_of(source, settings):
            try:
                return Listed(_listing(url, source, adapter, settings), url, error)
            except StorageError:
                raise
            except (TransportError, NotFoundError) as other:
                error.add_note(f"then: {other}")
        raise


def _listing(url: str, source: Source, adapter: str, settings: Settings) -> Listing:
    if url.endswith("/"):
        shelf = StaticMirror(url, _download(settings)).shelf(source.principal or "", adapter)
        return Listing({one.version: one.tree for one in shelf.releases}, frozenset(shelf.yanked))
    remote = Remote.of(Source.parse(url), allow_http=settings.allow_http)
    listing = list_versions(remote, adapter, settings.limits)
    if not listing.versions:
        raise NotFoundError(f"the mirror has no {adapter}", where=url)
    return listing


def rotations_of(source: Source, settings: Settings, more: tuple[str, ...] = ()) -> tuple[list[SignedRotation], bool]:
    """Ask a repository, or, if it cannot be asked, all its mirrors, which keys came after those that are known.

    What they say is signed by those keys, or it says nothing. Where nobody can be asked, none did.

    Returns:
        What they say, and whether the repository itself did.
    """
    with suppress(TransportError, PackageError, NotFoundError):
        return rotations_at(Remote.of(source, allow_http=settings.allow_http), settings.limits), True
    found = []
    for url in mirrors_of(source, settings, more):
        with suppress(TransportError, PackageError, NotFoundError):
            if url.endswith("/"):
                data = StaticMirror(url, _download(settings)).rotations(source.principal or "", MAX_LISTED_BYTES)
                found += parse_rotations(data, url)
            else:
                remote = Remote.of(Source.parse(url), allow_http=settings.allow_http)
                found += rotations_at(remote, settings.limits, of=source.principal)
    return found, False


def rotations_at(remote: Remote, limits: Limits, *, of: str | None = None) -> list[SignedRotation]:
    """Return the rotations that a git repository holds, or, of a mirror, those of the repository that it copies.

    Raises:
        TransportError: It cannot be reached.
        PackageError: There are more than anybody follows.
    """
    with scratch() as folder:
        found = fetch_rotations(remote, limits, beside=folder, most=MAX_ROTATIONS, of=of)
    return list(map(SignedRotation.of, found))


def mirrors_of(source: Source, settings: Settings, more: tuple[str, ...] = ()) -> list[str]:
    """Return the mirrors of a repository: the user's first. A local path has none."""
    found = (
        [_address(url.replace("{repository}", source.principal)) for url in settings.mirrors_for(source.principal)]
        if (source.principal)
        else []
    )
    return list(dict.fromkeys([*found, *(url for url in more if url != source.url)]))


def _address(url: str) -> str:
    """A folder of this machine may be written as a path."""
    return url if "://" in url or not url.startswith(("/", "~")) else f"{expand(url).resolve().as_uri()}/"


def _in_git(
    source: Source,
    adapter: str,
    version: str | None,
    tree: str | None,
    settings: Settings,
    judge: Judge,
    tagged: str | None = None,
) -> Iterator[Way]:
    remote = Remote.of(source, allow_http=settings.allow_http)

    def release(target: Path) -> Got:
        # A pinned release is fetched in one request: its digest says what it must be.
        phases = judge if tree is None else None
        found = fetch_release(
            remote, adapter, target,
            version=version, tree=tree, tagged=tagged, limits=settings.limits, judge=phases,
        )  # fmt: skip
        return Got(found.tree, found.yanked)

    def branch(target: Path) -> Got:
        return Got(fetch_from_branch(remote, adapter, target, limits=settings.limits).tree)

    if version is not None or tree is not None:
        yield Way(source.url, release)
    yield Way(f"{source.url} (branch)", branch, "branch")


def _archive(url: str, settings: Settings) -> Callable[[Path], Got]:
    def fetch(target: Path) -> Got:
        fetch_archive(url, target, settings.limits, allow_http=settings.allow_http)
        return Got()

    return fetch


def _static(
    url: str,
    reference: Reference,
    version: str | None,
    settings: Settings,
    judge: Judge,
) -> Callable[[Path], Got]:
    def fetch(target: Path) -> Got:
        mirror = StaticMirror(url, _download(settings))
        shelf = mirror.shelf(reference.source.principal or "", reference.adapter)
        # A digest says it all: whoever pinned it finds out what version it is of.
        digest = reference.digest
        fitting = [
            one for one in shelf.releases if (one.manifest_sha256 == digest if digest else one.version == version)
        ]
        if not fitting:
            raise NotFoundError(f"the mirror has no {reference.adapter} {version or ''}", where=url)
        mirror.fetch(fitting[0], target, settings.limits, judge)
        return Got(fitting[0].tree, fitting[0].version in shelf.yanked)

    return fetch


def _download(settings: Settings) -> Download:
    return Download(settings.allow_http, settings.limits.seconds_left, settings.limits.deadline)
