"""Other people's checkpoints on a Hub, which nobody signed: identified by their bytes, kept by their identity."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, TrustError, UsageError
from adaptergit.hf.checkpoints import SMALL_FILES, WEIGHT_FILES, Accepted, changed, identity_of, judge, wanted
from adaptergit.hf.reference import HubReference
from adaptergit.hf.wanted import Found, Memory, Wanted, remember
from adaptergit.indexes import revoked
from adaptergit.package import CARD, File
from adaptergit.pins import known_checkpoints, known_revocations, known_signers, pin_checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """An unsigned checkpoint that the policy accepts."""

    reference: HubReference
    """What was asked for."""
    commit: str
    """Where it was found; empty if only its digest is known."""
    identity: str
    """sha256 of the list of its files."""
    path: Path
    """Folder of its files, kept by their identity."""
    files: tuple[File, ...]
    """With size and sha256 each."""
    level: str
    """The policy that accepted it."""
    steps: tuple[str, ...]
    """What was checked, in order, for people."""
    from_store: bool
    """True when no network was touched."""
    served_by: str = ""
    """The address that sent it; empty if it was kept here."""

    @property
    def digests(self) -> dict[str, str]:
        """What the files must be, byte for byte, when they are read."""
        return {file.path: file.sha256 for file in self.files}

    @property
    def pinned(self) -> HubReference:
        """The reference to exactly these bytes."""
        return self.reference.at(self.commit or self.reference.revision, self.identity)


def fetch_checkpoint(one: Wanted, found: Found) -> Checkpoint:
    """Fetch what tells the identity, let the policy decide, and fetch the weights."""
    listed, limits = found.listing.files, one.settings.limits
    names = wanted(listed, pickles=one.pickles)
    _check_complete(one, found, names)
    for name in names:
        limit = SMALL_FILES.get(name, limits.checkpoint_bytes)
        if listed[name].size > limit:
            told = f"{listed[name].size} bytes, the limit is {limit}"
            raise PackageError(told, where=f"{found.address}/{name}")
    if (total := sum(listed[name].size for name in names)) > limits.checkpoint_bytes:
        raise PackageError(f"{total} bytes, the limit is {limits.checkpoint_bytes}", where=found.address)
    with one.store.workspace() as folder:
        inner = folder / "files"
        inner.mkdir()
        digests = {name: listed[name].sha256 or found.save(name, inner) for name in names}
        files = tuple(File(name, listed[name].size, digests[name]) for name in names)
        identity = identity_of(files)
        _judged_unsigned(one, found.commit, identity, files)
        if not _is_kept(one, identity):
            for name in names:
                if not (inner / name).exists():
                    found.save(name, inner)
            one.kept.add(inner, files)
    done = used_checkpoint(one, found.commit, identity, one.kept.files(identity), found.hub.endpoint)
    remember(one.key, Memory(found.commit, identity, time.time()))
    return done


def _check_complete(one: Wanted, found: Found, names: Sequence[str]) -> None:
    """Refuse a folder that holds no checkpoint, and say what it holds."""
    reference, there = one.reference, found.listing.files
    weights = [name for name in names if name not in SMALL_FILES]
    if "adapter_setup.json" in there:
        raise UsageError(
            "this is a set-up of several adapters", where=found.address, hint=f"name one of its folders: {reference}/…"
        )
    pickled = sorted(set(WEIGHT_FILES.values()) & set(there))
    if not weights and pickled:
        raise PackageError(
            f"the weights are pickled ({', '.join(pickled)}), and loading a pickle can run code",
            where=found.address,
            hint=f"adaptergit convert {reference} DIR --to adaptergit --allow-pickle makes safetensors of them, in a "
            "process of its own",
        )
    if not weights or not any(name.endswith("_config.json") or name == CARD for name in names):
        inside = ", ".join(found.listing.folders[:10])
        raise NotFoundError(
            "there is no adapter: neither a signed package nor a checkpoint of AdapterHub or PEFT",
            where=found.address,
            hint=f"perhaps in one of its folders: {inside}" if inside else None,
        )


def _judged_unsigned(one: Wanted, commit: str, identity: str, files: Sequence[File]) -> Accepted:
    """Let the policy decide on an identity."""
    reference, settings = one.reference, one.settings
    signers = [*known_signers(settings), *one.word.signers]
    pinned = known_checkpoints(settings).get(reference.place, frozenset())
    try:
        return judge(
            reference,
            identity,
            commit,
            one.level,
            pinned=pinned,
            signed_by={signer.key.fingerprint for signer in signers if signer.names(reference.principal)},
            revocations=[*known_revocations(settings), *revoked(settings)],
        )
    except TrustError as error:
        for before in pinned - {identity}:
            with suppress(PackageError):
                error.add_note(f"different since then: {', '.join(changed(one.kept.files(before), files))}")
        raise


def _is_kept(one: Wanted, identity: str) -> bool:
    try:
        return one.kept.find(identity) is not None and bool(one.kept.files(identity))
    except PackageError:
        return False


def used_checkpoint(one: Wanted, commit: str, identity: str, files: tuple[File, ...], served_by: str) -> Checkpoint:
    """Judge a checkpoint whose bytes were just compared, say what there is to say, and remember a first use."""
    accepted = _judged_unsigned(one, commit, identity, files)
    for told in accepted.warnings:
        # A registry of its own: told on every load, not once per process, and still under the caller's filters.
        warnings.warn_explicit(told, AdaptergitWarning, __file__, 1, registry={})
    if accepted.pin:
        pin_checkpoint(one.settings, one.reference.place, identity)
    path = one.kept.find(identity)
    assert path is not None
    steps = (*accepted.steps, f"{len(files)} files are exactly those")
    return Checkpoint(one.reference, commit, identity, path, files, accepted.level, steps, not served_by, served_by)
