"""What the maintainers of an index do: begin one, sign, change who maintains it, recover, revoke, yank."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from adaptergit.errors import AdaptergitError, NotFoundError, TrustError, UsageError, did_you_mean
from adaptergit.index.documents import (
    INDEX_NAME,
    RECOVERY_NAMESPACE,
    ROOT_NAMESPACE,
    SNAPSHOT_NAMESPACE,
    Recovery,
    Root,
    parse_root,
    parse_snapshot,
    signed_by,
    split_signatures,
)
from adaptergit.index.history import listings
from adaptergit.index.repository import IndexRepository, Proof
from adaptergit.index.repository import replace as write
from adaptergit.index.rules import broken_by
from adaptergit.resources import resource
from adaptergit.trust import PublicKey, SigningKey, sign

T = TypeVar("T")
_ROOT_DAYS = 365


def init_index(
    folder: Path,
    name: str,
    *,
    maintainers: Sequence[PublicKey],
    online: Sequence[PublicKey],
    threshold: int,
    keys: Sequence[SigningKey],
    snapshot_days: int = 14,
    now: datetime | None = None,
) -> Root:
    """Write a new index into a folder: the template, and a first root signed by the keys that are here.

    Args:
        folder: Empty, or holding nothing of the template's names.
        name: What the index calls itself.
        maintainers: Whose signatures make a root.
        online: Keys that sign snapshots, usually in CI.
        threshold: How many maintainers must sign.
        keys: Maintainers' keys that sign now; others sign later with :func:`sign_root`.
        snapshot_days: How long a snapshot counts.
        now: For the root's expiry, a year later.

    Raises:
        UsageError: Something is there already, or no maintainer's key is here.
    """
    template = resource("index_repo_template")
    taken = [item.name for item in template.iterdir() if (folder / item.name).exists()]
    if taken:
        raise UsageError(
            f"there is something already: {', '.join(sorted(taken))}", where=str(folder), hint="name a new folder"
        )
    if not INDEX_NAME.fullmatch(name):
        hint = "--name community: small letters and digits, and between them . _ -; 64 at most"
        raise UsageError(f"{name!r} cannot be the name of an index", hint=hint)
    if not set(maintainers) & {key.public for key in keys}:
        raise UsageError("none of the keys is a maintainer's", hint="name one with --key")
    expires = (now or datetime.now(UTC)).replace(microsecond=0) + timedelta(days=_ROOT_DAYS)
    root = Root(name, 1, expires, threshold, tuple(maintainers), tuple(online), snapshot_days)
    data = root.to_bytes()
    signatures = [sign(data, key, namespace=ROOT_NAMESPACE) for key in keys]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(str(template), folder, dirs_exist_ok=True)
    index = IndexRepository(folder)
    root = parse_root(data)
    index.write_root(root, signatures)
    readme = folder / "README.md"
    readme.write_text(
        readme.read_text("utf-8").replace("INDEX_NAME", name).replace("ROOT_DIGEST", root.digest), "utf-8"
    )
    return root


def rotate_root(
    index: IndexRepository,
    keys: Sequence[SigningKey],
    *,
    maintainers: Sequence[PublicKey] | None = None,
    online: Sequence[PublicKey] | None = None,
    threshold: int | None = None,
    now: datetime | None = None,
) -> Root:
    """Write the next root, signed by the keys that are here; enough old and new maintainers must sign before it counts.

    Raises:
        NotFoundError, TrustError: There is no root to follow.
    """
    before = index.current_root()
    expires = (now or datetime.now(UTC)).replace(microsecond=0) + timedelta(days=_ROOT_DAYS)
    draft = replace(
        before,
        version=before.version + 1,
        expires=expires,
        maintainers=before.maintainers if maintainers is None else tuple(maintainers),
        online=before.online if online is None else tuple(online),
        threshold=before.threshold if threshold is None else threshold,
    )
    for key in keys:
        if key.public not in {*before.maintainers, *draft.maintainers}:
            raise UsageError(
                f"{key.public.fingerprint} is no maintainer of {before.index}",
                hint=_one_of({*before.maintainers, *draft.maintainers}),
            )
    data = draft.to_bytes()
    root = parse_root(data)
    index.write_root(root, [sign(data, key, namespace=ROOT_NAMESPACE) for key in keys])
    return root


def counts(index: IndexRepository, root: Root) -> bool:
    """Tell whether enough maintainers, of those before it and its own, have signed a root."""
    try:
        return index.current_root().version >= root.version
    except TrustError:
        return False


def _one_of(keys: Iterable[PublicKey]) -> str:
    return f"--key takes one of {', '.join(sorted(key.fingerprint for key in keys))}"


def sign_root(index: IndexRepository, version: int, keys: Sequence[SigningKey]) -> bool:
    """Add signatures to a root; return whether it counts now.

    Raises:
        NotFoundError: There is no such root.
        UsageError: A key that is no maintainer's.
    """
    path = index.root / "roots" / f"{version}.json"
    if not path.is_file():
        raise NotFoundError("there is no such root", where=str(path), hint="adaptergit index rotate writes the next")
    data = path.read_bytes()
    root = parse_root(data)
    have = split_signatures(path.with_name(f"{path.name}.sig").read_bytes())
    allowed = set(root.maintainers)
    if version > 1:
        allowed |= set(parse_root((index.root / "roots" / f"{version - 1}.json").read_bytes()).maintainers)
    for key in keys:
        if key.public not in allowed:
            raise UsageError(f"{key.public.fingerprint} is no maintainer of {root.index}", hint=_one_of(allowed))
        if key.public not in signed_by(data, have, ROOT_NAMESPACE, [key.public]):
            have.append(sign(data, key, namespace=ROOT_NAMESPACE))
    index.write_root(root, have)
    return counts(index, root)


def check_online(root: Root, key: SigningKey) -> None:
    """Refuse a key that may not sign snapshots.

    Raises:
        UsageError: It is none of the root's online keys.
    """
    if key.public not in root.online:
        raise UsageError(
            f"{key.public.fingerprint} is not an online key of {root.index}",
            where=f"root {root.version}",
            hint=_one_of(root.online),
        )


def sign_snapshot(index: IndexRepository, dist: Path, key: SigningKey, *, now: datetime | None = None) -> None:
    """Sign what was built.

    Args:
        index: The repository.
        dist: What was built.
        key: An online key.
        now: Give it a new time, and so a new expiry: for signing again what did not change.

    Raises:
        NotFoundError: Nothing was built.
        UsageError: Not an online key.
    """
    path, root = dist / "snapshot.json", index.current_root()
    if not path.is_file():
        raise NotFoundError("nothing was built", where=str(path), hint="adaptergit index build")
    check_online(root, key)
    snapshot = parse_snapshot(path.read_bytes())
    if now is not None:
        moment = now.astimezone(UTC).replace(microsecond=0)
        snapshot = replace(
            snapshot,
            version=max(snapshot.version + 1, int(moment.timestamp())),
            created=moment,
            expires=moment + timedelta(days=root.snapshot_days),
        )
    data = snapshot.to_bytes()
    signature = sign(data, key, namespace=SNAPSHOT_NAMESPACE)
    write(path, data)
    write(path.with_name("snapshot.json.sig"), signature)


def recover(
    index: IndexRepository,
    principal: str,
    new: Sequence[PublicKey],
    keys: Sequence[SigningKey],
    *,
    reason: str,
    now: datetime | None = None,
) -> Recovery:
    """Give a publisher who lost theirs a new key, on the maintainers' word; the source file is changed with it.

    Raises:
        NotFoundError: There is no such source.
        TrustError: Fewer maintainers' keys than the root asks for.
    """
    from adaptergit.index.documents import check_recovery
    from adaptergit.index.sources import SourceKey, retired

    source, root = index.source(principal), index.current_root()
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    recovery = Recovery(root.index, principal, tuple(new), moment, reason)
    data = recovery.to_bytes()
    signatures = {f"{n}.sig": sign(data, key, namespace=RECOVERY_NAMESPACE) for n, key in enumerate(keys)}
    try:
        check_recovery(data, b"".join(signatures.values()), root)
    except TrustError as error:
        error.hint = error.hint or "sign with the keys of as many maintainers: --key for each"
        raise
    index.write_proofs(principal, [*index.proofs(principal), Proof("recovery", data, signatures)])
    # What the index saw from the old keys stays; nothing new by them is taken.
    kept = tuple(retired(key, moment) for key in source.keys if key.public not in new)
    write(index.root / source.path, replace(source, keys=(*(SourceKey(key) for key in new), *kept)).to_yaml())
    return recovery


def yank_entry(index: IndexRepository, principal: str, adapter: str, version: str, reason: str | None) -> None:
    """Withdraw a release from the index, or, without a reason, take that back.

    Raises:
        NotFoundError: It is not listed.
    """
    entries = index.entries(principal)
    hits = [entry for entry in entries if (entry.name, entry.version) == (adapter, version)]
    if not hits:
        hint = did_you_mean(f"{adapter}=={version}", (f"{entry.name}=={entry.version}" for entry in entries))
        what, where = f"{principal}@{adapter}=={version} is not listed", str(index.entries_path(principal))
        raise NotFoundError(what, where=where, hint=hint)
    index.write_entries(principal, [replace(e, yanked=reason) if e in hits else e for e in entries])


@dataclass(frozen=True)
class Sound:
    """How sound an index is."""

    sources: int
    releases: int
    problems: Mapping[str, str]
    """Files that cannot be read as they should, and why."""
    changed: Mapping[str, str]
    """Where something that was listed was changed or taken away: by file and commit."""


def check_index(index: IndexRepository, *, since: str | None = None) -> Sound:
    """Read everything strictly, and compare with what was listed before: every commit, and what is not committed.

    Args:
        index: The repository.
        since: Commit from which on it is compared; default: the first.

    Raises:
        UsageError: No such commit.
    """
    problems: dict[str, str] = {}

    def read(where: str, reading: Callable[[], T]) -> T | None:
        try:
            return reading()
        except (AdaptergitError, OSError) as error:
            problems[where] = error.what if isinstance(error, AdaptergitError) else str(error)
            return None

    read("roots/", index.current_root)
    read("policy.yaml", index.policy)
    read("revoked.jsonl", index.revoked)
    sources = releases = 0
    for principal in index.principals():
        sources += read(f"sources/{principal}.yaml", lambda: index.source(principal)) is not None  # noqa: B023 - called at once
        read(f"rotations/{principal}.jsonl", lambda: index.proofs(principal))  # noqa: B023 - called at once
        entries = read(f"entries/{principal}.jsonl", lambda: index.entries(principal)) or []  # noqa: B023 - called at once
        releases += len(entries)
        named = [(entry.name, entry.version) for entry in entries]
        if len(set(named)) != len(named):
            problems[f"entries/{principal}.jsonl"] = "a release is listed twice"
    changed = {
        where: f"{rule.id}: {why}" for where, listing in listings(index.root, since) for rule, why in broken_by(listing)
    }
    return Sound(sources, releases, problems, changed)
