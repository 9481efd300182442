"""Rotations: a repository's old key says which keys come after it.

A rotation is canonical JSON, signed like a manifest but in a namespace of its own::

    {"schema": "adaptergit.rotation/1", "repository": "github.com/acme/adapters", "effective": "2026-11-01T00:00:00Z",
     "add": ["ssh-ed25519 AAAA…"], "remove": ["SHA256:…"]}

It counts if as many keys signed it as the repository's releases need, all of them keys that count themselves when it is
read; so a chain of rotations is followed link by link. A key that is removed no longer counts for this repository, but
for releases of it that were seen before then. Nobody but the owner of a key that counts can name its successor: an
account that is taken over cannot. Once a key's removal is known, nothing else that it signed counts, whatever time it
states: it may be a thief's, who has only the old key. So a rotation that removes a key names every one that stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from adaptergit.errors import PackageError, TrustError
from adaptergit.package import canonical, schemas
from adaptergit.trust.allowed_signers import AllowedSigner
from adaptergit.trust.keys import PublicKey, parse_public_key
from adaptergit.trust.revocation import Revocation
from adaptergit.trust.sshsig import MANIFEST_NAMESPACE, parse_signature, verify_signature

ROTATION_NAMESPACE = "rotation.v1@adaptergit"
ROTATION = "rotation.json"
SCHEMA = "adaptergit.rotation/1"
MAX_BYTES = 64 * 1024
MAX_ROTATIONS = 64
"""Of one repository."""
_MOST = 4 * MAX_ROTATIONS
"""That are looked at: those of the repository, and those that indexes kept."""


@dataclass(frozen=True)
class Rotation:
    """Which keys a repository is signed with from now on."""

    repository: str
    add: tuple[PublicKey, ...]
    remove: tuple[str, ...]
    """Fingerprints."""
    effective: datetime

    def to_bytes(self) -> bytes:
        """Serialise to the bytes that are signed."""
        data = canonical.dumps(
            {
                "schema": SCHEMA,
                "repository": self.repository,
                "add": [key.line for key in self.add],
                "remove": list(self.remove),
                "effective": self.effective.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
        self.from_bytes(data)
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = ROTATION) -> Rotation:
        """Parse strictly.

        Raises:
            PackageError: Naming the field.
            TrustError: A key that is not accepted.
        """
        raw = canonical.loads(data, where=where, limit=MAX_BYTES)
        for field, message in schemas.problems("rotation", raw):
            raise PackageError(f"{schemas.dotted(field) or 'document'}: {message}", where=where)
        try:
            effective = datetime.strptime(raw["effective"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            if effective.year < 1970:
                raise ValueError(raw["effective"])
        except ValueError as error:
            raise PackageError(f"effective: {raw['effective']!r} is no time", where=where) from error
        return cls(raw["repository"], tuple(map(parse_public_key, raw["add"])), tuple(raw["remove"]), effective)


@dataclass(frozen=True)
class SignedRotation:
    """A rotation as it was found; nothing about it is verified yet."""

    data: bytes
    signatures: Mapping[str, bytes]
    """Armored SSHSIGs by file name."""


@dataclass(frozen=True)
class Change:
    """What a chain of rotations changes for those who knew a key at its start."""

    added: tuple[AllowedSigner, ...] = ()
    removed: tuple[Revocation, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


def follow(
    rotations: Iterable[SignedRotation],
    repository: str,
    signers: Sequence[AllowedSigner],
    revocations: Sequence[Revocation],
    now: datetime,
    *,
    threshold: int = 1,
) -> Change:
    """Follow the rotations of a repository from the keys that count to those that count from now on.

    A rotation that is malformed, of another repository or signed by keys that do not count is passed over: whoever can
    write to the repository can put one there.

    Args:
        rotations: As found.
        repository: The principal.
        signers: Whose keys count before.
        revocations: Keys whose word does not count, for rotations neither.
        now: Rotations that take effect later are not followed.
        threshold: How many different keys must have signed each.
    """
    waiting = sorted(
        (found for one in list(rotations)[:_MOST] if (found := _parsed(one, repository, now))),
        key=lambda item: item[0].effective,
    )
    threshold = max(1, threshold)
    known = [s for s in signers if s.names(repository)]
    gone = {one.key for one in revocations if one.severity == "refuse" and one.repository in (None, repository)}
    change = Change()
    while True:
        # Whatever time a rotation states: a key that no longer counts names no successor, or a thief would backdate.
        counting = {s.key for s in known if s.key.fingerprint not in gone and not s.refusal(MANIFEST_NAMESPACE, now)}
        possible = _reached(waiting, counting, threshold)
        ready = [(rotation, keys & counting) for rotation, keys in possible if len(keys & counting) >= threshold]
        clear = (one for one in ready if not _is_contradicted(one, possible, counting, threshold))
        if (first := next(clear, None)) is None:
            return change
        rotation, keys = first
        waiting = [item for item in waiting if item[0] != rotation]
        source = f"a rotation signed by {', '.join(sorted(key.fingerprint for key in keys))}"
        have = {s.key for s in known}
        added = tuple(
            AllowedSigner((repository,), key, (MANIFEST_NAMESPACE,), source=source)
            for key in rotation.add
            if key not in have
        )
        # A repository's owner says nothing of other repositories, nor of keys that never were its own.
        own = {s.key.fingerprint for s in known}
        removed = tuple(
            Revocation(key, None, rotation.effective, "refuse", "replaced by its owner", source, repository)
            for key in rotation.remove
            if key in own - gone
        )
        known += added
        gone |= set(rotation.remove) & own
        change = Change((*change.added, *added), (*change.removed, *removed))


def signed_in_a_chain(
    rotations: Iterable[SignedRotation], repository: str, keys: Iterable[PublicKey], now: datetime
) -> list[SignedRotation]:
    """Return the rotations that some chain from these keys leads to: the others nobody follows."""
    parsed = [(one, found) for one in rotations if (found := _parsed(one, repository, now)) is not None]
    reached = _reached([found for _, found in parsed], set(keys), 1)
    return [one for one, found in parsed if found in reached]


def _is_contradicted(one: _Parsed, possible: Sequence[_Parsed], counting: set[PublicKey], threshold: int) -> bool:
    """Tell whether something else that can be followed, and not by this rotation, removes a key that signed it.

    Then one of the two is a thief's, and nobody can tell which.
    """
    rotation, keys = one

    def removes(other: Rotation) -> bool:
        same = (other.add, other.remove) == (rotation.add, rotation.remove)
        return not same and any(key.fingerprint in other.remove for key in keys)

    if not any(removes(other) for other, _ in possible):
        return False
    without = [other for other in possible if other[0] != rotation]
    return any(removes(other) for other, _ in _reached(without, counting, threshold))


def _reached(rotations: Sequence[_Parsed], keys: set[PublicKey], threshold: int) -> list[_Parsed]:
    """Return the rotations that some chain from these keys leads to."""
    signed_by: dict[PublicKey, list[int]] = defaultdict(list)
    for number, (_, signers) in enumerate(rotations):
        for key in signers:
            signed_by[key].append(number)
    reach, new, counts = set[PublicKey](), list(keys), [0] * len(rotations)
    while new:
        key = new.pop()
        if key in reach:
            continue
        reach.add(key)
        for number in signed_by[key]:
            counts[number] += 1
            if counts[number] == threshold:
                new += rotations[number][0].add
    return [one for one, count in zip(rotations, counts, strict=True) if count >= threshold]


_Parsed = tuple[Rotation, frozenset[PublicKey]]


def _parsed(one: SignedRotation, repository: str, now: datetime) -> tuple[Rotation, frozenset[PublicKey]] | None:
    """Return a rotation of this repository and the keys that signed it validly, or None."""
    try:
        rotation = Rotation.from_bytes(one.data)
        if rotation.repository != repository or rotation.effective > now:
            return None
        keys = set()
        for armored in one.signatures.values():
            signature = parse_signature(armored)
            verify_signature(signature, one.data, ROTATION_NAMESPACE)
            keys.add(signature.key)
    except (PackageError, TrustError):
        return None
    return rotation, frozenset(keys)
