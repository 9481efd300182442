"""What an adapter was trained on top of: the releases its card names, to be loaded with it."""

from __future__ import annotations

from dataclasses import replace

from adaptergit.errors import PackageError
from adaptergit.package import CARD, Card
from adaptergit.reference import Reference
from adaptergit.resolve import parse_reference
from adaptergit.settings import Settings

DEPTH = 8
"""Adapters on top of each other, at most."""

_WITHOUT = "load(…, dependencies=False) leaves it out; its publisher can mend the card in a new version"


def dependencies_of(card: Card, settings: Settings, *, of: str | None) -> list[Reference]:
    """Return the releases that a card names, pinned where it gives a digest.

    Args:
        card: Of the adapter.
        settings: Give the default host.
        of: The repository that the card came from, or None if it is of this machine: others may not name places of this
            machine, nor ask anybody without encryption but their own host.

    Raises:
        UsageError: A reference that is none.
        PackageError: A card from elsewhere names a folder of this machine, or a plain http address of another host.
    """
    found = []
    for entry in card.data.get("dependencies", ()):
        reference = parse_reference(str(entry["reference"]), settings)
        local = reference.source.kind == "path" or reference.source.url.startswith("file:")
        plain = reference.source.url.startswith("http:") and _host(reference.source.principal) != _host(of)
        if of is not None and plain:
            what = f"the dependency {reference} is asked for without https"
            raise PackageError(what, where=f"{card.name}/{CARD}", hint=_WITHOUT)
        if of is not None and local:
            what = f"the dependency {reference} is a place of this machine"
            raise PackageError(what, where=f"{card.name}/{CARD}", hint=_WITHOUT)
        digest = entry.get("digest")
        if digest is not None and reference.digest not in (None, digest):
            what = f"the dependency {reference} has two digests"
            raise PackageError(what, where=f"{card.name}/{CARD}", hint="write it once: in the reference, or as digest")
        found.append(replace(reference, digest=digest or reference.digest))
    return found


def _host(principal: str | None) -> str:
    return (principal or "").partition("/")[0]
