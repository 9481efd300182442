"""The rules of an index, as values: what CI checks, what a pull request is told, and what the docs say is one text.

A rule looks at a *proposal* (a source that somebody wants to add or change) or at a *release* (found by the crawl,
fetched and verified before). It returns nothing, or why it is broken, in words for the person who can mend it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Generic, TypeVar

from packaging.version import Version

from adaptergit.errors import AdaptergitError
from adaptergit.index.entry import Entry
from adaptergit.index.repository import IndexPolicy
from adaptergit.index.sources import SourceFile
from adaptergit.package.names import is_reserved
from adaptergit.reference import Source, check_adapter_name
from adaptergit.trust import PublicKey

_MAX_HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Proposal:
    """A source somebody wants to add or change."""

    path: str
    """Of the file, from the top of the index."""
    data: bytes
    """Its content; empty if it is to be removed."""
    source: SourceFile | None
    """None if it cannot be read."""
    problem: str
    """Why it cannot be read."""
    before: SourceFile | None
    """What the index has of it."""
    others: frozenset[str]
    """Principals of all other sources."""
    policy: IndexPolicy
    announced: frozenset[PublicKey] | None
    """Keys in ``.adaptergit/allowed_signers`` of the repository itself; None if it cannot be reached."""
    unreachable: str = ""
    followed: frozenset[PublicKey] = frozenset()
    """Keys that a rotation of the old ones, or a recovery, leads to."""
    peers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Fingerprints that other indexes list for the same repository, by their address."""
    proposed: datetime | None = None
    """When it was first proposed; None on a laptop."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Release:
    """A release that was fetched and verified."""

    entry: Entry
    folder: Path
    version: str
    """Of its tag."""
    past: tuple[Entry, ...]
    """What the index lists of the adapter."""
    policy: IndexPolicy


T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """One thing an index insists on."""

    id: str
    docs: str
    """For people, in one or two sentences."""
    check: Callable[[T], str | None]
    """Returns why it is broken, or None."""


# --- sources ----------------------------------------------------------------------------------------------------------


def _schema(one: Proposal) -> str | None:
    if one.source is not None and one.source.legacy and (one.before is None or not one.before.legacy):
        return "only maintainers add an archive that nobody signs (legacy)"
    return one.problem or None


def _place(one: Proposal) -> str | None:
    if one.source is not None and one.path != one.source.path:
        return f"the file of {one.source.repository} belongs at {one.source.path}"
    return None


def _host(one: Proposal) -> str | None:
    if one.source is None:
        return None
    host = one.source.repository.partition("/")[0]
    if one.policy.hosts and not any(fnmatchcase(host, glob) for glob in one.policy.hosts):
        return f"this index takes repositories on {', '.join(one.policy.hosts)}, not on {host}"
    return None


def _address(one: Proposal) -> str | None:
    if one.source is None:
        return None
    for url in (one.source.url, *one.source.mirrors):
        parsed = Source.parse(url.rstrip("/"))
        if parsed.kind in ("path",) or url.startswith("file:"):
            return f"{url} is a place on somebody's own machine"
    return None


def _reachable(one: Proposal) -> str | None:
    return one.unreachable or None


def _proof(one: Proposal) -> str | None:
    if one.source is None or one.announced is None:
        return None
    signing = [key for key in one.source.keys if key.valid_before is None or key.valid_before > one.now]
    missing = [key.public.fingerprint for key in signing if key.public not in one.announced]
    if missing:
        return (
            f"{one.source.repository} does not announce {', '.join(missing)} in .adaptergit/allowed_signers: only who "
            "can push there may enrol a key (adaptergit init writes the file; commit and push it)"
        )
    return None


def _rekeyed(one: Proposal) -> str | None:
    if one.source is None or one.before is None:
        return None
    allowed = {key.public for key in one.before.keys} | one.followed
    foreign = [key.public.fingerprint for key in one.source.keys if key.public not in allowed]
    if foreign:
        return (
            f"{', '.join(foreign)}: a key of a source that is listed changes by a rotation that the old key signed "
            "(adaptergit rotate), or by a recovery that the index's maintainers signed"
        )
    if one.source.threshold < one.before.threshold:
        return f"the threshold may not go down from {one.before.threshold} to {one.source.threshold}"
    return None


def _reserved(one: Proposal) -> str | None:
    if one.source is None or one.before is not None:
        return None
    hit = next((glob for glob in one.policy.reserved if fnmatchcase(one.source.repository, glob)), None)
    return f"names like {hit} are reserved in this index" if hit else None


def _alike(one: Proposal) -> str | None:
    if one.source is None or one.before is not None:
        return None
    mine = one.source.repository
    for other in sorted(one.others):
        if mine != other and _skeleton(mine) == _skeleton(other):
            return f"{mine} can be taken for {other}, which is listed: it differs in case or in letters that look alike"
    for other in sorted(one.others):
        same_owner = mine.rpartition("/")[0] == other.rpartition("/")[0]
        if not same_owner and 0 < _distance(_bare(mine), _bare(other)) <= (2 if len(_bare(mine)) > 12 else 1):
            return f"{mine} is hard to tell from {other}, which is listed and belongs to somebody else"
    return None


def _peers(one: Proposal) -> str | None:
    if one.source is None:
        return None
    mine = {key.public.fingerprint for key in one.source.keys}
    for peer, theirs in one.peers.items():
        if theirs and not theirs & mine:
            return f"the index {peer} lists {one.source.repository} with other keys: {', '.join(sorted(theirs))}"
    return None


def _waiting(one: Proposal) -> str | None:
    if one.before is not None or one.proposed is None:
        return None
    until = one.proposed + timedelta(hours=one.policy.waiting_hours)
    if one.now < until:
        return f"a new source waits {one.policy.waiting_hours} hours for objections: until {until:%Y-%m-%d %H:%M} UTC"
    return None


def _removed(one: Proposal) -> str | None:
    if not one.data and not one.problem and one.before is not None:
        return "a source is not removed by pull request: maintainers revoke its keys, or yank its releases"
    return None


SCOPE = "A pull request of a publisher changes files below `sources/`, and nothing else."
SOURCE_RULES: tuple[Rule[Proposal], ...] = (
    Rule("schema", "The file is YAML as `schema/source.schema.json` describes it; unknown fields are errors.", _schema),
    Rule("place", "The file lies at `sources/<repository>.yaml`, spelt as the repository is.", _place),
    Rule("removed", "A pull request adds or changes sources; it never removes one.", _removed),
    Rule("host", "The repository is on a host that the index takes (`hosts` in `policy.yaml`).", _host),
    Rule("address", "`url` and `mirrors` are addresses that everybody can reach.", _address),
    Rule("reachable", "The repository can be listed with git, without credentials.", _reachable),
    Rule(
        "proof",
        "The repository announces every enrolled key in `.adaptergit/allowed_signers`: proof of control.",
        _proof,
    ),
    Rule(
        "rekeyed",
        "Keys of a listed source change only by a rotation or a recovery; its threshold never goes down.",
        _rekeyed,
    ),
    Rule("reserved", "The name is not reserved (`reserved` in `policy.yaml`).", _reserved),
    Rule(
        "alike",
        "The name cannot be taken for one that is listed: by case, letters that look alike, or a typing error or two.",
        _alike,
    ),
    Rule("peers", "Other indexes (`peers` in `policy.yaml`) do not list the repository with other keys.", _peers),
    Rule("waiting", "A new source waits `waiting_hours` for objections.", _waiting),
)


# --- releases ---------------------------------------------------------------------------------------------------------


def _name(one: Release) -> str | None:
    try:
        check_adapter_name(one.entry.name)
    except AdaptergitError as error:
        return error.what
    return f"{one.entry.name!r} is no file name on Windows" if is_reserved(one.entry.name) else None


def _version(one: Release) -> str | None:
    if one.entry.version != one.version:
        return f"the tag says {one.version}, the manifest {one.entry.version}"
    newest = max((Version(entry.version) for entry in one.past), default=None)
    if newest is not None and Version(one.version) <= newest:
        return f"{one.version} is not newer than {newest}, which is listed"
    return None


def _chain(one: Release) -> str | None:
    if not one.past:
        return None
    digests = {entry.manifest_sha256 for entry in one.past}
    if one.entry.previous not in digests:
        return "its manifest does not name one that is listed as the release before it"
    return None


def _size(one: Release) -> str | None:
    if one.entry.size > one.policy.max_release_bytes:
        return f"{one.entry.size} bytes, this index takes {one.policy.max_release_bytes}"
    return None


def _license(one: Release) -> str | None:
    parts = re.split(r"\s+(?:AND|OR|WITH)\s+|[()]", one.entry.license)
    named = [part.strip() for part in parts if part.strip()]
    allowed = {license.casefold() for license in one.policy.licenses}
    foreign = [part for part in named if allowed and part.casefold() not in allowed]
    if foreign:
        return f"{', '.join(foreign)} is none of the licences this index takes: {', '.join(one.policy.licenses)}"
    return None


def _weights(one: Release) -> str | None:
    """The header, read as plain JSON: nothing of the weights themselves is looked at."""
    for path in sorted(one.folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            head = stream.read(8)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            total = path.stat().st_size
            if not 2 <= size <= min(_MAX_HEADER_BYTES, total - 8):
                return f"{path.name}: the header is not one of a safetensors file"
            try:
                header = json.loads(stream.read(size))
                ends = sorted(tuple(v["data_offsets"]) for key, v in header.items() if key != "__metadata__")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return f"{path.name}: the header is not one of a safetensors file"
        at = 0
        for start, end in ends:
            if start != at or end < start:
                return f"{path.name}: tensors overlap, or there is a hole between them"
            at = end
        if at != total - 8 - size:
            return f"{path.name}: {total - 8 - size - at} bytes belong to no tensor"
    return None


RELEASE_RULES: tuple[Rule[Release], ...] = (
    Rule("name", "The adapter's name is 1 to 64 of `a-z 0-9 . _ -` and can be a file name everywhere.", _name),
    Rule("version", "The version is that of the tag, and newer than every one that is listed.", _version),
    Rule("chain", "`previous` names a release that is listed: the history has no gap and no fork.", _chain),
    Rule("size", "All files together are no larger than `max_release_bytes`.", _size),
    Rule("license", "The licence is an SPDX expression of licences that the index takes (`licenses`).", _license),
    Rule(
        "weights",
        "Every safetensors file has a well-formed header: tensors one after the other, nothing between or after.",
        _weights,
    ),
)


def broken_by(one: Proposal | Release) -> list[tuple[Rule[Proposal] | Rule[Release], str]]:
    """Return every rule that a proposal or a release breaks, and why."""
    found: list[tuple[Rule[Proposal] | Rule[Release], str]] = []
    if isinstance(one, Proposal):
        found += [(rule, why) for rule in SOURCE_RULES if (why := rule.check(one)) is not None]
    else:
        found += [(rule, why) for rule in RELEASE_RULES if (why := rule.check(one)) is not None]
    return found


def comment(path: str, one: Proposal) -> str:
    """Return what a pull request is told of one file, as Markdown."""
    broken = {rule.id: why for rule, why in broken_by(one)}
    verdict = "**can be merged**" if not broken else f"**{len(broken)} to mend**"
    rows = []
    for rule in SOURCE_RULES:
        unknown = one.source is None and rule.id not in ("schema", "removed")
        unknown |= rule.id == "waiting" and one.before is None and one.proposed is None
        if rule.id in broken:
            rows.append(f"| ❌ | `{rule.id}` | {_cell(broken[rule.id])} |")
        else:
            rows.append(f"| {'➖' if unknown else '✅'} | `{rule.id}` | {'not checked' if unknown else rule.docs} |")
    return "\n".join([f"### `{_cell(path)}`: {verdict}", "", "| | rule | |", "|---|---|---|", *rows, ""])


def documentation() -> str:
    """Return the page about the rules, as Markdown."""
    parts = ["# The rules of an index", "", f"`scope`: {SCOPE}", ""]
    tables: Iterable[tuple[str, Iterable[Rule[Proposal] | Rule[Release]]]] = (
        ("Sources, in a pull request", SOURCE_RULES),
        ("Releases, in every crawl (after the signature and every byte were verified)", RELEASE_RULES),
    )
    for title, rules in tables:
        parts += [f"## {title}", "", "| rule | |", "|---|---|", *(f"| `{r.id}` | {r.docs} |" for r in rules), ""]
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Somebody else's text in a table of ours: no new cells, lines, links, mentions or HTML."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return re.sub(r"([|\\`*_\[\]<>@#!])", r"\\\1", plain)


_LOOKALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "_": "-", ".": "-", "~": "-"})


def _skeleton(name: str) -> str:
    """The same for names that look alike (after UTS 39, for the letters a repository's name may have)."""
    folded = name.casefold().replace("rn", "m").replace("vv", "w").replace("cl", "d")
    return re.sub(r"-+", "-", folded.translate(_LOOKALIKE))


def _bare(name: str) -> str:
    return name.partition("/")[2].casefold()


def _distance(a: str, b: str, limit: int = 3) -> int:
    """Damerau-Levenshtein distance (optimal string alignment), or ``limit`` if it is at least that."""
    if abs(len(a) - len(b)) >= limit:
        return limit
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return min(row[-1], limit)
