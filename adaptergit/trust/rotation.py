"""Rotations: a repository's old keys say which keys come after them.

A rotation is canonical JSON, signed like a manifest but in a namespace of its own::

    {"schema": "adaptergit.rotation/1", "repository": "github.com/acme/adapters", "previous": "9f86d0…",
     "add": ["ssh-ed25519 AAAA…"], "remove": ["SHA256:…"], "effective": "2026-11-01T00:00:00Z"}

Each names the digest of the one before it, the first one null: those of a repository are one chain, and whoever signs
one vouches for all before it. A person follows it from the keys that count for him, link by link, as far as enough of
those that count by then (as many as the repository's releases need) signed the link or one after it. What was removed
stays removed, whatever a key says later, or claims to have said before.

Where two follow the same one, and both are signed by keys that count, one is a thief's, and nobody can tell which: then
nothing is followed. Nobody but the owner of a key that counts can name its successor: an account that is taken over
cannot.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
MAX_LISTED_BYTES = 32 * 2**20
_MOST = 4 * MAX_ROTATIONS
"""Different ones that are looked at: those of the repository, and those that indexes kept."""
_MOST_SIGNATURES = 32
_MOST_ARMORED = 8192
"""Bytes of a signature; one by an RSA key of 16384 bits takes 6 kB."""


@dataclass(frozen=True)
class Rotation:
    """Which keys a repository is signed with from now on."""

    repository: str
    """Its public name, ``host/org/repo``."""
    add: tuple[PublicKey, ...]
    """Keys that sign from now on."""
    remove: tuple[str, ...]
    """Fingerprints."""
    effective: datetime
    """When it holds from."""
    previous: str | None = None
    """SHA-256 of the bytes of the rotation before it; None: it is the first."""

    def to_bytes(self) -> bytes:
        """Serialise to the bytes that are signed."""
        data = canonical.dumps(
            {
                "schema": SCHEMA,
                "repository": self.repository,
                "previous": self.previous,
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
        keys = tuple(map(parse_public_key, raw["add"]))
        return cls(raw["repository"], keys, tuple(raw["remove"]), effective, raw["previous"])


@dataclass(frozen=True)
class SignedRotation:
    """A rotation as it was found; nothing about it is verified yet."""

    data: bytes
    """The bytes that were signed."""
    signatures: Mapping[str, bytes]
    """Armored SSHSIGs by file name."""

    @property
    def digest(self) -> str:
        """What the rotation after it calls it."""
        return canonical.sha256(self.data)

    @property
    def mark(self) -> str:
        """What its tag is called below ``refs/tags/adapters-rotations/``."""
        return self.digest[:16]

    def with_signatures(self, other: SignedRotation) -> SignedRotation:
        """Return it with another copy's signatures too, as far as there is room."""
        found = dict(self.signatures)
        for armored in other.signatures.values():
            if armored not in found.values() and len(found) < _MOST_SIGNATURES:
                found[f"{ROTATION}.{canonical.sha256(armored)[:8]}.sig"] = armored
        return replace(self, signatures=found)

    def signers(self) -> frozenset[PublicKey]:
        """Return the keys that signed it validly; what is no valid signature is passed over."""
        return frozenset(key for armored in self.signatures.values() if (key := _signs(armored, self)) is not None)

    def line(self) -> str:
        """Return it as copies of releases hold it: one JSON object."""
        signatures = {name: armored.decode() for name, armored in sorted(self.signatures.items())}
        return json.dumps({"rotation": self.data.decode(), "signatures": signatures}, sort_keys=True)

    def files(self) -> dict[str, bytes]:
        """Return the files of its folder."""
        return {ROTATION: self.data, **self.signatures}

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> SignedRotation:
        """Read a rotation's folder: every other file is a signature."""
        return cls(files.get(ROTATION, b""), {name: data for name, data in files.items() if name != ROTATION})


@dataclass(frozen=True)
class Change:
    """What a chain of rotations changes for those for whom some keys counted."""

    added: tuple[AllowedSigner, ...] = ()
    """Keys that count from now on."""
    removed: tuple[Revocation, ...] = ()
    """Keys that no longer do."""
    path: tuple[SignedRotation, ...] = ()
    """What was followed, from the first rotation on."""
    beyond: tuple[SignedRotation, ...] = ()
    """What comes next and was not followed, as it is signed by keys that do not count."""
    contradiction: str = ""
    """Which rotations contradict each other, in words: then nobody is added or removed."""

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
    after: str | None = None,
    until: datetime | None = None,
    kept: Sequence[SignedRotation] = (),
) -> Change:
    """Follow the rotations of a repository from the keys that count to those that count from now on.

    A rotation that is malformed, of another repository, without the one before it, or signed by keys that do not count
    is passed over: whoever can write to the repository can put one there.

    Args:
        rotations: As found.
        repository: The principal.
        signers: Whose keys count before.
        revocations: Keys whose word does not count, for rotations neither.
        now: The time.
        threshold: How many different keys must have signed each.
        after: Digest of the one that was followed last: the chain up to it is taken as it is, and another is not
            followed.
        until: Rotations that take effect later are not followed; default: ``now``.
        kept: Those that were accepted before: what contradicts one of them that is followed is passed over.
    """
    if kept and (rotations := list(rotations)):
        before = follow(kept, repository, signers, revocations, now, threshold=threshold, after=after, until=until)
        rotations = extending(before.path, rotations)
    rotations = [*kept, *rotations]
    following = _linked(rotations, repository, until or now)
    settled = _up_to(after, following)
    if after is not None and not settled:
        gone_since = f"the rotation {after[:16]}, which was followed before, is not among the repository's any more"
        return Change(contradiction=gone_since)
    known = [s for s in signers if s.names(repository)]
    gone = {one.key for one in revocations if one.severity == "refuse" and one.holds_for(repository)}
    added: list[AllowedSigner] = []
    removed: list[Revocation] = []
    path: list[SignedRotation] = []
    while True:
        nexts = following[path[-1].digest if path else None]
        counting = {s.key for s in known if s.key.fingerprint not in gone and not s.refusal(MANIFEST_NAMESPACE, now)}
        endorsed = [link for link in nexts if link.digest in settled]
        endorsed = endorsed or [one for one in nexts if _endorsed(one, following, counting, max(1, threshold))]
        if not endorsed:
            return Change(tuple(added), tuple(removed), tuple(path), tuple(one.found for one in nexts))
        if len(endorsed) > 1:  # who was added before may be the thief: nobody is
            told = " and ".join(f"{one.found.mark} (signed by {_names(one.signers)})" for one in endorsed)
            return Change(path=tuple(path), contradiction=f"the rotations {told} follow the same one")
        (link,) = endorsed
        path.append(link.found)
        source = f"a rotation signed by {_names(link.signers)}"
        have = {s.key for s in known}
        new = [
            AllowedSigner((repository,), key, (MANIFEST_NAMESPACE,), source=source)
            for key in link.rotation.add
            if key not in have and key.fingerprint not in gone
        ]
        # A repository's owner says nothing of other repositories, nor of keys that never were its own.
        own = {s.key.fingerprint for s in (*known, *new)} - gone
        removed += [
            Revocation(key, None, link.rotation.effective, "refuse", "replaced by its owner", source, repository)
            for key in link.rotation.remove
            if key in own
        ]
        gone |= set(link.rotation.remove)
        known += new
        added += new


def _up_to(digest: str | None, following: _Following) -> set[str]:
    """Return the digests of a rotation and all before it; none if one is missing."""
    links = {link.digest: link for listed in following.values() for link in listed}
    found: set[str] = set()
    while digest is not None:
        if digest not in links:
            return set()
        found.add(digest)
        digest = links[digest].rotation.previous
    return found


def carried(rotations: Iterable[SignedRotation], repository: str) -> list[SignedRotation]:
    """Return what copies of a repository's releases hold of its rotations: its own, with the signatures that are valid.

    Whoever can push can put anything beside them, of any size and name.
    """
    found: dict[str, SignedRotation] = {}
    for one in rotations:
        rotation = _well_formed(one)
        if rotation is None or rotation.repository != repository:
            continue
        valid = SignedRotation(
            one.data, {name: armored for name, armored in one.signatures.items() if _signs(armored, one)}
        )
        if valid.signatures and (one.digest in found or len(found) < MAX_ROTATIONS):
            found[one.digest] = found.get(one.digest, SignedRotation(one.data, {})).with_signatures(valid)
    return list(found.values())


def parse_rotations(data: bytes, where: str) -> list[SignedRotation]:
    """Read rotations, one JSON object per line; nothing about them is verified yet, and names of files are not theirs.

    Raises:
        PackageError: With the line.
    """
    if len(data) > MAX_LISTED_BYTES:
        raise PackageError(f"more than {MAX_LISTED_BYTES} bytes", where=where)
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            raw = canonical.loads(line, where=f"{where}:{number}", limit=MAX_LISTED_BYTES)
            try:
                one = SignedRotation(raw["rotation"].encode(), {})
                given = {str(number): armored.encode() for number, armored in enumerate(raw["signatures"].values())}
            except (KeyError, TypeError, AttributeError) as error:
                raise PackageError("not a rotation with its signatures", where=f"{where}:{number}") from error
            found.append(one.with_signatures(SignedRotation(one.data, given)))
    return found


def extending(kept: Sequence[SignedRotation], found: Iterable[SignedRotation]) -> list[SignedRotation]:
    """Return what was found and does not contradict what was accepted before: the first one seen counts.

    Copies of what was accepted stay: they may have more signatures.
    """
    settled = {rotation.previous: one.digest for one in kept if (rotation := _well_formed(one)) is not None}
    return [
        one
        for one in found
        if (rotation := _well_formed(one)) is not None and settled.get(rotation.previous, one.digest) == one.digest
    ]


@dataclass(frozen=True)
class _Link:
    """A rotation that is well formed, with the keys that signed it validly."""

    found: SignedRotation
    digest: str
    rotation: Rotation
    signers: frozenset[PublicKey]


_Following = Mapping[str | None, Sequence[_Link]]
"""Rotations by the digest of the one before them."""


def _linked(rotations: Iterable[SignedRotation], repository: str, now: datetime) -> _Following:
    found: dict[str, SignedRotation] = {}
    for one in rotations:
        same = found.get(one.digest)
        if same is not None:  # perhaps with other signatures
            found[one.digest] = same.with_signatures(one)
        elif len(found) < _MOST:
            found[one.digest] = one
    links = {link.digest: link for one in found.values() if (link := _link(one, repository, now)) is not None}
    following: dict[str | None, list[_Link]] = defaultdict(list)
    for link in links.values():
        following[link.rotation.previous].append(link)
    return following


def _signs(armored: bytes, one: SignedRotation) -> PublicKey | None:
    """Return the key that signed a rotation, or None if that is no valid signature."""
    if len(armored) > _MOST_ARMORED:
        return None
    try:
        signature = parse_signature(armored)
        verify_signature(signature, one.data, ROTATION_NAMESPACE)
    except (PackageError, TrustError):
        return None
    return signature.key


def _well_formed(one: SignedRotation) -> Rotation | None:
    try:
        return Rotation.from_bytes(one.data)
    except (PackageError, TrustError):
        return None


def _link(one: SignedRotation, repository: str, now: datetime) -> _Link | None:
    rotation = _well_formed(one)
    if rotation is None or rotation.repository != repository or rotation.effective > now:
        return None
    return _Link(one, one.digest, rotation, one.signers())


def _endorsed(link: _Link, following: _Following, counting: set[PublicKey], threshold: int) -> bool:
    """Tell whether enough keys that count signed a rotation, or one that comes after it: that vouches for it."""
    todo = [link]
    while todo:  # no rounds: nobody can name a digest before it is there
        one = todo.pop()
        if len(one.signers & counting) >= threshold:
            return True
        todo += following[one.digest]
    return False


def _names(keys: Iterable[PublicKey]) -> str:
    return ", ".join(sorted(key.fingerprint for key in keys))
