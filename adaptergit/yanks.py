"""Releases that were withdrawn: asking who was, remembering it, and telling those who use one all the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from adaptergit.errors import AdaptergitWarning, NotFoundError, TransportError, UsageError, printable
from adaptergit.indexes import Word
from adaptergit.reference import Reference, Source
from adaptergit.settings import Settings, cache_dir
from adaptergit.store import Known, Store

_PATIENCE = 30.0
Answers = Mapping[tuple[str, str], frozenset[str]]
"""Versions by publisher and adapter, of those that could be asked."""


def noted(known: Known, version: str, yanked: bool | None, *, own: bool) -> Known:
    """Return what is known of an adapter after somebody said whether a release was withdrawn.

    Args:
        known: What was known before.
        version: Of the release.
        yanked: What was said; None: nothing.
        own: The repository itself said so. Nobody else can take a mark back.
    """
    if yanked is None or (yanked is False and not own):
        return known
    marked = {*known.yanked, version} if yanked else {*known.yanked} - {version}
    return replace(known, yanked=tuple(sorted(marked)))


def warn_if_yanked(reference: Reference, version: str, known: Known, word: Word) -> None:
    """Tell a person who is given a release that its publisher, or an index, withdrew."""
    if version not in known.yanked and version not in word.yanked(reference.adapter):
        return
    listed = word.releases(reference.adapter).get(version)
    why = f": {printable(listed[0].yanked)}" if listed and listed[0].yanked else " by its publisher"
    # A registry of its own: told on every load, not once per process, and still under the caller's filters.
    told = f"{reference.adapter} {version} was yanked{why}"
    warnings.warn_explicit(told, AdaptergitWarning, __file__, 1, registry={})


def ask_for_yanks(references: Iterable[Reference], settings: Settings) -> Answers:
    """Ask every repository, once, which releases of some adapters were withdrawn, and remember it.

    A pinned release is fetched without looking at anything else; so it is asked here, where there is time for it. A
    repository that cannot be asked is no obstacle.
    """
    from adaptergit.git import Remote, list_yanked

    wanted: dict[Source, list[str]] = {}
    for reference in references:
        wanted.setdefault(reference.source, []).append(reference.adapter)
    store = Store(cache_dir())
    answers: dict[tuple[str, str], frozenset[str]] = {}
    for source, adapters in wanted.items() if not settings.offline else ():
        limits = replace(settings.limits, fetch_seconds=min(_PATIENCE, settings.limits.fetch_seconds))
        with suppress(TransportError, NotFoundError, UsageError):
            found = list_yanked(Remote.of(source, allow_http=settings.allow_http), adapters, limits)
            for adapter, versions in found.items():
                answers[source.publisher, adapter] = versions
                yanked = tuple(sorted(versions))
                store.remember(source.publisher, adapter, partial(replace, yanked=yanked))
    return answers
