"""The user's pins, which this library appends to: keys in ``known_publishers`` (OpenSSH allowed-signers lines), and
unsigned checkpoints in ``known_checkpoints``."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path

from adaptergit.durable import disk_errors, prepared_file, replace_file
from adaptergit.errors import AdaptergitError, AdaptergitWarning, NotFoundError, StorageError, TrustError, UsageError
from adaptergit.locks import exclusively
from adaptergit.package.names import PRINCIPALS
from adaptergit.reference import Source, expand
from adaptergit.settings import Settings, load_settings
from adaptergit.trust import (
    MANIFEST_NAMESPACE,
    AllowedSigner,
    PublicKey,
    Revocation,
    format_signer,
    parse_allowed_signers,
    parse_public_key,
    parse_revocations,
)

_REMOVED = "removed by hand"
"""Why a key that a rotation brought counts no longer: until it is added by hand."""
_IDENTITY = re.compile(r"sha256:[0-9a-f]{64}")


def known_signers(settings: Settings) -> list[AllowedSigner]:
    """Read the user's allowed-signers file and pins.

    Raises:
        TrustError: A line cannot be understood.
    """
    signers = []
    for path in (settings.allowed_signers_path, settings.pins_path):
        if path.is_file():
            signers += parse_allowed_signers(_read(path), source=str(path))
    return signers


def pin_key(repository: str, key: str) -> AllowedSigner:
    """Let a key sign for a repository, or for every repository that a glob matches.

    Which rotation of the repository was followed is forgotten: a person has decided anew.

    Args:
        repository: A principal such as ``github.com/acme/adapters``, or a glob; ``//gitbox/adapters`` where the host
            has no dot.
        key: A public key line, or the path of a ``.pub`` file.

    Raises:
        UsageError: Not the name of a repository.
        TrustError: Not a public key.
    """
    settings = load_settings()
    repository = _with_host(repository, settings)
    if not PRINCIPALS.fullmatch(repository):
        raise UsageError(
            f"{repository!r} is not the name of a repository",
            hint=_meant(repository) or "write host/org/repo, or a pattern such as github.com/acme/*",
        )
    signer = AllowedSigner((repository,), public_key(key), (MANIFEST_NAMESPACE,))
    before = known_signers(settings)
    add_pin(settings, signer)
    _withdraw_removal(settings, signer)
    pattern = AllowedSigner((repository,), signer.key)
    forgotten = [name for name in _known_rotations(settings) if pattern.names(name)]
    if forgotten:
        _remove(settings.rotations_path, lambda line: line.partition(" ")[0] in forgotten, repository)
    for followed in forgotten:
        gone = {one.key for one in known_revocations(settings) if one.holds_for(followed)}
        others = {one.key.fingerprint for one in before if one.names(followed)} - {signer.key.fingerprint, *gone}
        if others:
            warnings.warn(
                f"{', '.join(sorted(others))} may sign for {followed} too: take away what is not the publisher's with "
                "adaptergit trust remove",
                AdaptergitWarning,
                stacklevel=2,
            )
    warn_of_revocations(signer, known_revocations(settings))
    return signer


def _meant(repository: str) -> str | None:
    """Say what an address is called, or one with a port: pins go by host and path."""
    with contextlib.suppress(UsageError):
        address = repository if "://" in repository else f"https://{repository}"
        address = re.sub(r"(/[^/@]+)@[^/]*$", r"\1", address)  # an adapter's key is its repository's
        meant = Source.named(address).principal
        if meant is None:
            return "a folder has no public name: trust the one it was published under, which adaptergit info shows"
        return f"did you mean {meant}?" if meant != repository else None
    return None


def warn_of_revocations(signer: AllowedSigner, revocations: Iterable[Revocation]) -> None:
    """Warn that a key was revoked for what a new pin is about."""
    for one in revocations:
        limited = one.since is not None and one.repository is None  # what was seen before still counts
        if one.speaks_of(signer.key.fingerprint, signer.principals[0]) and not limited:
            told = f"{one.key} is {one}" + ("" if one.severity == "warn" else ": it does not count, pinned or not")
            warnings.warn(told, AdaptergitWarning, stacklevel=3)


def principal_of(repository: str, settings: Settings) -> str:
    """Return the name that pins go by, however a repository was named: by its address, or without its host.

    Raises:
        UsageError: An address that is none.
    """
    if "://" in repository or ("@" in repository and ":" in repository):
        return Source.named(repository).principal or repository
    return _with_host(repository, settings)


def _with_host(repository: str, settings: Settings) -> str:
    if repository.startswith("//"):
        repository = repository[2:]
    elif re.fullmatch(r"[A-Za-z0-9_-]+/[^/.*?][^/]*", repository):
        repository = f"{settings.default_host}/{repository}"
    host, slash, path = repository.partition("/")
    return f"{host.lower()}{slash}{path.removesuffix('.git')}"  # as a repository's address is read


def public_key(key: str) -> PublicKey:
    """Read a public key line, or the ``.pub`` file of that name.

    Raises:
        NotFoundError: No such file.
        TrustError: Not a public key.
    """
    path = expand(key)
    is_line = len(key.split()) > 1
    if not is_line and not path.is_file():
        raise NotFoundError("no such key file", where=key, hint="give a public key line in quotes, or a .pub file")
    if is_line:
        return parse_public_key(key)
    try:
        return parse_public_key(path.read_text("utf-8", errors="replace"))
    except TrustError as error:  # of a file that is no key, nothing is shown
        what = "this file holds no public key" if "is not a public key" in error.what else error.what
        raise TrustError(what, where=str(path), hint=error.hint) from error


def unpin_repository(repository: str) -> int:
    """Remove the pin of a repository, or a glob, as ``adaptergit trust ls`` shows it.

    Raises:
        UsageError: Several keys are pinned for it.
        NotFoundError: There is no such pin.
    """
    settings = load_settings()
    path, name = settings.pins_path, principal_of(repository, settings)
    pinned = parse_allowed_signers(_read(path), source=str(path)) if path.is_file() else []
    keys = sorted({one.key.fingerprint for one in pinned if one.principals == (name,)})
    if len(keys) > 1:
        raise UsageError(f"{name} has {len(keys)} keys", hint=f"adaptergit trust remove {' or '.join(keys)}")
    if not keys:
        raise NotFoundError(f"no pin of {name}", where=str(path), hint="adaptergit trust ls names what is pinned")
    return unpin_key(keys[0], only=name)


def unpin_key(fingerprint: str, *, only: str | None = None) -> int:
    """Remove every pin of a key, or the one of ``only`` this repository; return how many there were.

    For repositories with other keys, or rotations that were followed, it counts no longer until it is added by hand: a
    rotation could bring it back. Added for one of those that a glob matches, it may count for the others again, too.

    Raises:
        NotFoundError: There was none.
    """
    settings = load_settings()
    path = settings.pins_path
    lines = _read(path).split("\n") if path.is_file() else []

    def doomed(line: str) -> bool:
        signers = parse_allowed_signers(line, source=str(path))
        return bool(signers) and signers[0].key.fingerprint == fingerprint and only in (None, *signers[0].principals)

    pinned = [parse_allowed_signers(line, source=str(path))[0] for line in lines if doomed(line)]
    others = [one for one in known_signers(settings) if one.key.fingerprint != fingerprint]
    followed = {name for name in _known_rotations(settings) if any(one.names(name) for one in pinned)}
    shared = {name for one in pinned for name in one.principals if any(_overlap(other, name) for other in others)}
    names = sorted(name for name in shared | followed if PRINCIPALS.fullmatch(name))
    removals = [Revocation(fingerprint, reason=_REMOVED, repository=name) for name in names]
    remember(settings, (), removals)
    return _remove(path, doomed, fingerprint)


def _withdraw_removal(settings: Settings, signer: AllowedSigner) -> None:
    """Let a key that was removed by hand count again, as a person says so."""

    def removal(one: Revocation) -> bool:
        named = one.repository is not None and _overlap(signer, one.repository)
        return named and one.reason == _REMOVED and one.key == signer.key.fingerprint

    path = settings.revocations_path
    if any(map(removal, known_revocations(settings))):
        _remove(
            path, lambda line: any(map(removal, parse_revocations(line.encode(), source=str(path)))), str(signer.key)
        )


def _overlap(signer: AllowedSigner, pattern: str) -> bool:
    """Tell whether a line is about something that a name, or a glob, matches."""
    return any(_meet(name, pattern) for name in signer.principals)


def _meet(one: str, other: str) -> bool:
    """Tell whether there is a name that two globs match."""
    # Of each end of ``other``: whether it and the end of ``one`` that was looked at meet; at first, an empty one.
    ends = [not other[at:].strip("*") for at in range(len(other) + 1)]
    for char in reversed(one):
        longer = [char == "*" and ends[-1]]
        for at in reversed(range(len(other))):
            if "*" in (char, other[at]):  # it is nothing here, or one character more
                longer.append(ends[at] or longer[-1])
            else:
                longer.append(ends[at + 1] and (char == other[at] or "?" in (char, other[at])))
        ends = longer[::-1]
    return ends[0]


def known_checkpoints(settings: Settings) -> dict[str, frozenset[str]]:
    """Read the unsigned checkpoints that were pinned on first use: identities by place.

    Raises:
        TrustError: A line cannot be understood.
    """
    path = settings.checkpoints_path
    found: dict[str, frozenset[str]] = {}
    for number, line in enumerate(_read(path).split("\n") if path.is_file() else (), 1):
        place, *rest = line.split() or [""]
        if not place or place.startswith("#"):
            continue
        if len(rest) != 1 or not _IDENTITY.fullmatch(rest[0]):
            hint = "a line is host/org/repo@revision sha256:…"
            raise TrustError("this pin cannot be understood", where=f"{path}:{number}", hint=hint)
        found[place] = found.get(place, frozenset()) | {rest[0].removeprefix("sha256:")}
    return found


def pin_checkpoint(settings: Settings, place: str, identity: str) -> None:
    """Remember what a place holds, unless it is remembered."""
    _append(settings.checkpoints_path, f"{place} sha256:{identity}")


def unpin(what: str) -> int:
    """Remove every pin of a key, or of an unsigned checkpoint; return how many there were.

    Args:
        what: A key's fingerprint, a repository, or ``host/org/repo[/folder]@revision``, as ``adaptergit trust ls``
            shows it.

    Raises:
        NotFoundError: There was none.
    """
    if what.startswith("SHA256:"):
        return unpin_key(what)
    if "@" not in what:
        return unpin_repository(what)
    return _remove(load_settings().checkpoints_path, lambda line: line.split()[:1] == [what], what)


def known_revocations(settings: Settings) -> list[Revocation]:
    """Read the user's revocations.

    Raises:
        TrustError: A line cannot be understood.
    """
    path = settings.revocations_path
    try:
        return parse_revocations(path.read_bytes(), source=str(path)) if path.is_file() else []
    except AdaptergitError as error:
        error.hint = error.hint or "mend that line; without it, what it revoked would count again"
        raise


def revoke(what: str, *, since: datetime | None = None, severity: str = "refuse", reason: str = "") -> Revocation:
    """Let a key, or one release, no longer count on this machine.

    Args:
        what: A key's fingerprint (``SHA256:…``), or ``sha256:`` and a manifest's digest.
        since: For a key: releases that this machine saw before then still count.
        severity: ``refuse`` or ``warn``.
        reason: Shown whenever it matters.

    Raises:
        UsageError: Neither a fingerprint nor a digest, or an unknown severity.
    """
    settings = load_settings()
    path = settings.revocations_path
    digest = what.removeprefix("sha256:") if what.startswith("sha256:") else None
    one = Revocation(None if digest else what, digest, since, severity, reason, str(path))
    try:
        (parsed,) = parse_revocations(one.line().encode(), source=str(path))
    except TrustError as error:
        hint = error.hint and f"{error.hint}, or sha256: and the digest that adaptergit info shows"
        raise UsageError(f"{what!r}: {error.what}", hint=hint) from error
    remember(settings, (), [parsed])
    return parsed


def known_rotation(settings: Settings, principal: str) -> str | None:
    """Return the digest of the rotation of a repository that was followed last, or None.

    Raises:
        TrustError: A line cannot be understood.
    """
    return _known_rotations(settings).get(principal)


def _known_rotations(settings: Settings) -> dict[str, str]:
    path, found = settings.rotations_path, {}
    for number, line in enumerate(_read(path).split("\n") if path.is_file() else (), 1):
        if not line.strip():
            continue
        name, _, digest = line.partition(" ")
        if not _IDENTITY.fullmatch(digest):
            hint = "a line is host/org/repo sha256:…"
            raise TrustError("this rotation cannot be understood", where=f"{path}:{number}", hint=hint)
        found[name] = digest.removeprefix("sha256:")  # the last line counts
    return found


def remember(
    settings: Settings,
    signers: Sequence[AllowedSigner] = (),
    revocations: Sequence[Revocation] = (),
    *,
    followed: tuple[str, str] | None = None,
    first: AllowedSigner | None = None,
) -> None:
    """Add pins and revocations, and which rotation was followed: all, or none of them.

    Args:
        settings: Where.
        signers: Keys to pin.
        revocations: What no longer counts.
        followed: A repository, and the digest of its rotation that was followed last.
        first: A key to pin on first use of its repository.

    Raises:
        TrustError: It is the first use no more: somebody pinned another key for that repository meanwhile.
        StorageError: The disk is full, or may not be written to.
    """
    lines = [one.line() for one in revocations]
    for line in lines:
        parse_revocations(line.encode(), source="a revocation")  # a line that cannot be read would stop everything
    rotated = [] if followed is None else [f"{followed[0]} sha256:{followed[1]}"]
    # If the machine stops in between: the rotation that was followed brings the rest again, and without the key that
    # it takes away nobody could follow it; a key that is taken away counts no longer before another does.
    changes = [
        (settings.rotations_path, rotated),
        (settings.revocations_path, lines),
        (settings.pins_path, [format_signer(one) for one in (*signers, *((first,) if first else ()))]),
    ]
    with contextlib.ExitStack() as stack:
        steps = []
        for path, new in changes:
            if not new:
                continue  # nobody waits for a lock for nothing
            stack.enter_context(_locked(path))
            if first is not None and path == settings.pins_path:
                _check_first(first, settings)
            if text := _with_lines(_read(path) if path.is_file() else "", new):
                steps.append(stack.enter_context(_prepared(path, text)))
        for step in steps:
            step()


def _check_first(pin: AllowedSigner, settings: Settings) -> None:
    """Refuse a second key on first use: two releases may have been judged at once."""
    (name,) = pin.principals
    there = [one.key for one in known_signers(settings) if one.names(name)]
    if there and pin.key not in there:
        raise TrustError(
            f"it is signed by {pin.key.fingerprint}, and {there[0].fingerprint} was pinned for {name} a moment ago",
            hint="one of them is not the publisher's: ask them which one is (adaptergit trust ls)",
        )


@contextmanager
def all_remembered(settings: Settings) -> Iterator[None]:
    """Take back what is remembered inside, if not all of it is; no other process remembers anything meanwhile."""
    with contextlib.ExitStack() as stack:
        before = {}
        for path in (settings.rotations_path, settings.revocations_path, settings.pins_path):
            stack.enter_context(_locked(path))
            before[path] = path.read_bytes() if path.is_file() else None
        try:
            yield
        except BaseException:
            for path, data in before.items():
                with contextlib.suppress(OSError, StorageError):  # the others all the same
                    if data is not None:
                        replace_file(path, data, mode=0o600)
                    else:
                        path.unlink(missing_ok=True)
            raise


def add_pin(settings: Settings, signer: AllowedSigner) -> None:
    """Add one line to the user's pins, unless an equal one is there; the file is replaced in one step."""
    _append(settings.pins_path, format_signer(signer))


def _append(path: Path, line: str) -> None:
    with _locked(path):
        if text := _with_lines(_read(path) if path.is_file() else "", [line]):
            _write(path, text)


def _with_lines(text: str, lines: Iterable[str]) -> str:
    """Return a text with lines that it has not yet; empty if it has all of them."""
    have = text.split("\n")
    new = "".join(f"{line}\n" for line in dict.fromkeys(lines) if line not in have)
    separator = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{separator}{new}" if new else ""


def _remove(path: Path, doomed: Callable[[str], bool], what: str) -> int:
    with _locked(path):
        lines = _read(path).split("\n") if path.is_file() else []
        kept = [line for line in lines if not doomed(line)]
        if len(kept) == len(lines):
            raise NotFoundError(f"no pin of {what}", where=str(path), hint="see: adaptergit trust ls")
        _write(path, "\n".join(kept))
    return len(lines) - len(kept)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TrustError(
            f"not UTF-8 at byte {error.start}", where=str(path), hint="convert the file to UTF-8"
        ) from error


def _locked(path: Path) -> AbstractContextManager[None]:
    """Let one process at a time change the pins: two at once would lose a line. The lock lies beside them.

    Whoever shares them shares it.
    """
    path = path.resolve()
    with contextlib.suppress(OSError):  # to be told of where it is written
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return exclusively(path.parent / "locks", path.name)


def _write(path: Path, text: str) -> None:
    with _prepared(path, text) as put:
        put()


@contextmanager
def _prepared(path: Path, text: str) -> Iterator[Callable[[], None]]:
    """Write a file beside its place, and give what puts it there in one step, which needs no more room."""
    path = path.resolve()  # of a link that a person made, what it points to
    hint = "free some space, or choose another folder with ADAPTERGIT_CONFIG_DIR"
    with disk_errors("your settings", path, hint):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with prepared_file(path, text.encode(), mode=0o600) as put:
            yield put
