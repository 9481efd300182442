"""The rules of what is listed already: nothing of it changes, but for ``yanked``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from adaptergit.index.entry import Entry
from adaptergit.index.rule import Rule


@dataclass(frozen=True)
class Listing:
    """What an index listed of a source before, and what it lists now."""

    before: tuple[Entry, ...]
    now: tuple[Entry, ...]


def _kept(one: Listing) -> str | None:
    now = {(entry.name, entry.version) for entry in one.now}
    for entry in _signed(one.before):
        if (entry.name, entry.version) not in now:
            return f"{entry.name} {entry.version} was listed, and no longer is: yank it, or revoke it"
    return None


def _unchanged(one: Listing) -> str | None:
    now = {(entry.name, entry.version): entry for entry in one.now}
    for entry in _signed(one.before):
        other = now.get((entry.name, entry.version))
        if other is not None and replace(other, yanked=None) != replace(entry, yanked=None):
            names = [name for name, value in vars(entry).items() if name != "yanked" and getattr(other, name) != value]
            return f"{entry.name} {entry.version} is listed with another {', '.join(names)} than before"
    return None


def _signed(entries: Iterable[Entry]) -> list[Entry]:
    """Files of an archive are known by their digests only: what is said of them may be mended."""
    return [entry for entry in entries if not entry.legacy]


ENTRY_RULES: tuple[Rule[Listing], ...] = (
    Rule("kept", "What is listed stays listed.", _kept),
    Rule("unchanged", "Nothing of a listed release changes, but for `yanked`.", _unchanged),
)
