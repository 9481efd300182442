"""The rules of sources: what somebody may add to an index, or change in it, by pull request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from adaptergit.index.names import alike
from adaptergit.index.repository import IndexPolicy
from adaptergit.index.rule import Rule
from adaptergit.index.sources import SourceFile, looser
from adaptergit.reference import Source
from adaptergit.trust import PublicKey


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
    kin: frozenset[str]
    """Those of them that are called alike and enrolled a key of this one: the same publisher."""
    policy: IndexPolicy
    announced: frozenset[PublicKey] | None
    """Keys in ``.adaptergit/allowed_signers`` of the repository itself; None if it cannot be reached."""
    unreachable: str = ""
    followed: frozenset[PublicKey] = frozenset()
    """Keys that a rotation of the old ones, or a recovery, leads to."""
    original: SourceFile | None = None
    """What the index has of the repository that it says it is a copy of."""
    signed: frozenset[PublicKey] = frozenset()
    """Keys of the listed source that count now and signed the change."""
    listed: Mapping[str, datetime] = field(default_factory=dict)
    """When the newest listed release that a key signed was first seen, by the key's fingerprint."""
    peers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Fingerprints that other indexes list for the same repository, by their address."""
    proposed: datetime | None = None
    """When it was first proposed; None on a laptop."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


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
            return f"{url} is a place on somebody's own machine: push to a server, or name it with --url"
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
    earlier = {key.public: key for key in one.before.keys}
    for key in one.source.keys:
        if key.public not in one.followed and key.public in earlier and looser(key, earlier[key.public]):
            return f"the key {key.public.fingerprint} would count for longer than it did: its users refuse that"
    if one.source.threshold < one.before.threshold:
        return f"the threshold may not go down from {one.before.threshold} to {one.source.threshold}"
    return None


def _signed(one: Proposal) -> str | None:
    if one.source is None or one.before is None or one.source == one.before:
        return None
    if not one.before.keys:
        return "only maintainers change an archive that nobody signs (legacy)"
    if len(one.signed) >= one.before.threshold:
        return None
    keys = ", ".join(key.public.fingerprint for key in one.before.keys)
    return (
        f"a change of a source that is listed is signed by {one.before.threshold} of its keys ({keys}, or what came "
        f"after them by a rotation), this one by {len(one.signed)}: adaptergit index submit --sign-with KEY"
    )


def _retired(one: Proposal) -> str | None:
    if one.source is None or one.source.legacy:
        return None
    left = one.source.counting(one.now)
    if len(left) < one.source.threshold:
        return f"{one.source.threshold} must sign a release, and {len(left)} of its keys count now: nobody could sign"
    kept = {key.public: key for key in one.source.keys}
    for fingerprint, seen in one.listed.items():
        key = next((key for public, key in kept.items() if public.fingerprint == fingerprint), None)
        was = one.before and next((key for key in one.before.keys if key.public.fingerprint == fingerprint), None)
        if key is None and was is not None:
            return f"a listed release is signed by {fingerprint}: keep it, with valid_before"
        if key is not None and key.valid_before is not None and key.valid_before <= seen:
            return f"{fingerprint} would stop counting before a release of {seen:%Y-%m-%d %H:%M} UTC that is listed"
    return None


def _tracks(one: Proposal) -> str | None:
    if one.source is None or one.source.tracks is None:
        return None
    if one.source.tracks == one.source.repository:
        return "a repository is no copy of itself"
    if one.original is not None and one.original.tracks is not None:
        return f"{one.source.tracks} is a copy itself: name the original, {one.original.tracks}"
    if one.listed:
        return f"{one.source.repository} has releases of its own that are listed: a copy lists none"
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
    if any(fnmatchcase(mine, glob) for glob in one.policy.distinct):
        return None
    for other in sorted(one.others - one.kin):
        if (why := alike(mine, other)) is not None and other != one.source.tracks:
            return f"{mine} can be taken for {other}, which is listed and belongs to somebody else: {why}"
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
    if one.source is None or one.source == one.before or one.proposed is None:
        return None
    until = one.proposed + timedelta(hours=one.policy.waiting_hours)
    if one.now < until:
        return f"it waits {one.policy.waiting_hours} hours for objections: until {until:%Y-%m-%d %H:%M} UTC"
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
    Rule(
        "signed",
        "A change of a listed source is signed by as many keys as a release (`sources/<repository>.yaml.sig`).",
        _signed,
    ),
    Rule(
        "retired",
        "As many keys as must sign count now, and a key that signed what is listed counts at least until then.",
        _retired,
    ),
    Rule("tracks", "A copy names the original (`tracks`), and has no releases of its own that are listed.", _tracks),
    Rule("reserved", "The name is not reserved (`reserved` in `policy.yaml`).", _reserved),
    Rule(
        "alike",
        "The name cannot be taken for another publisher's that is listed: by case, letters that look alike, a typing "
        "error, or the host alone. A copy says so with `tracks`; `distinct` in `policy.yaml` lets names pass.",
        _alike,
    ),
    Rule("peers", "Other indexes (`peers` in `policy.yaml`) do not list the repository with other keys.", _peers),
    Rule("waiting", "What is proposed waits `waiting_hours` for objections.", _waiting),
)
