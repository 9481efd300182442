"""What a repository says it holds: versions, yanks, rotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from adaptergit.durable import scratch
from adaptergit.errors import NotFoundError, TransportError
from adaptergit.git.remote import OID, ROTATIONS, TAGS, YANKED, Remote, patiently
from adaptergit.git.runner import Git, init_bare
from adaptergit.package.version import is_version
from adaptergit.reference import is_adapter_name
from adaptergit.settings import Limits

_PATIENCE = 20.0


@dataclass(frozen=True)
class Listing:
    """What a repository says of one adapter."""

    versions: Mapping[str, str]
    """Commit oid of every released version."""
    yanked: frozenset[str] = frozenset()
    """Versions that were withdrawn: chosen only by those who name them."""


def list_versions(remote: Remote, adapter: str, limits: Limits) -> Listing:
    """Return the releases of ``adapter``.

    Raises:
        TransportError: The repository cannot be reached.
    """
    refs = list_refs(remote, (f"{TAGS}/{adapter}/", f"{YANKED}/{adapter}/"), limits)
    return _by_adapter(refs).get(adapter, Listing({}))


def list_all(remote: Remote, limits: Limits) -> tuple[dict[str, Listing], frozenset[str]]:
    """Return the releases of every adapter of a repository, by name, and the names of its rotations' tags.

    Raises:
        TransportError: The repository cannot be reached.
    """
    refs = list_refs(remote, (f"{TAGS}/", f"{YANKED}/", f"{ROTATIONS}/"), limits)
    start = f"{ROTATIONS}/"
    return _by_adapter(refs), frozenset(ref.removeprefix(start) for ref in refs if ref.startswith(start))


def list_yanked(remote: Remote, adapters: Sequence[str], limits: Limits) -> dict[str, frozenset[str]]:
    """Return the versions of some adapters that were withdrawn.

    Raises:
        TransportError: The repository cannot be reached.
    """
    found = _by_adapter(list_refs(remote, tuple(f"{YANKED}/{adapter}/" for adapter in adapters), limits))
    return {adapter: found.get(adapter, Listing({})).yanked for adapter in adapters}


def list_refs(remote: Remote, prefixes: tuple[str, ...], limits: Limits, *, git: Git | None = None) -> dict[str, str]:
    """Return the oids of all refs whose names begin with one of the prefixes, by name.

    Args:
        remote: Whom to ask.
        prefixes: Of full names.
        limits: Bounds on time.
        git: Of the user's own clone, where its configuration shall count.

    Raises:
        TransportError: The repository cannot be reached.
    """
    limits = limits.started()
    if remote.speaks_http:
        # Where that does not help, git is asked to: it has credentials, and speaks older protocols.
        with suppress(TransportError, NotFoundError):
            return _asked(remote, prefixes, limits)
    with scratch() as folder:
        # A clone knows its own settings: given twice, a header would be sent twice.
        asking, settings = (init_bare(folder), remote.settings) if git is None else (git, ())
        patterns = [f"{prefix}*" for prefix in prefixes]
        kinds = ["--tags", *(["--heads"] if any(one.startswith("refs/heads/") for one in prefixes) else [])]
        arguments = ("ls-remote", "--quiet", *kinds, "--refs", "--", remote.url, *patterns)

        def attempt(seconds: float) -> str:
            return asking.text(*arguments, protocols=remote.protocols, settings=settings, timeout=seconds)

        output = patiently(remote, limits, attempt)
    pairs = (line.partition("\t") for line in output.splitlines())
    return {ref: oid for oid, _, ref in pairs if OID.fullmatch(oid) and ref.startswith(prefixes)}


def _asked(remote: Remote, prefixes: tuple[str, ...], limits: Limits) -> dict[str, str]:
    from adaptergit.web.download import Download
    from adaptergit.web.refs import ask_refs

    # The repository's own address was judged before, also if it is plain http.
    download = Download((urlsplit(remote.url).hostname or "",), min(_PATIENCE, limits.seconds_left))
    found = ask_refs(remote.url, prefixes, download)
    return {ref: oid for ref, oid in found.items() if ref.startswith(prefixes)}


def _by_adapter(refs: Mapping[str, str]) -> dict[str, Listing]:
    versions: dict[str, dict[str, str]] = {}
    yanked: dict[str, set[str]] = {}
    for ref, oid in refs.items():
        for prefix in (TAGS, YANKED):
            adapter, _, version = ref.removeprefix(f"{prefix}/").partition("/")
            if not ref.startswith(f"{prefix}/") or not is_version(version) or not is_adapter_name(adapter):
                continue
            if prefix == TAGS:
                versions.setdefault(adapter, {})[version] = oid
            else:
                yanked.setdefault(adapter, set()).add(version)
    return {
        adapter: Listing(versions.get(adapter, {}), frozenset(yanked.get(adapter, ())))
        for adapter in versions.keys() | yanked.keys()
    }
