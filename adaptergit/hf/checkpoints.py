"""Unsigned checkpoints: which files are one, what identifies it, whose word is enough for it, and where it is kept.

::

    <cache>/checkpoints/<first two>/<identity>/files.json   canonical JSON: path, size and sha256 of each file
    <cache>/checkpoints/<first two>/<identity>/files/       the files

The identity is the sha256 of ``files.json``: the same bytes have it wherever they come from, and whoever serves them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptergit.durable import remove_tree
from adaptergit.errors import PackageError, TrustError
from adaptergit.hf.reference import HubReference
from adaptergit.package import CARD, README, WEIGHTS, File, canonical
from adaptergit.package.card import MAX_BYTES as MAX_CARD_BYTES
from adaptergit.package.folder import check_file
from adaptergit.trust import Revocation
from adaptergit.trust.revocation import of_release

SMALL_FILES = {
    "adapter_config.json": 1 << 20,
    "adapter_fusion_config.json": 1 << 20,
    "head_config.json": 1 << 20,
    README: 1 << 20,
    CARD: MAX_CARD_BYTES,
}
"""Bytes that each may have."""
WEIGHT_FILES = {
    WEIGHTS: "pytorch_adapter.bin",
    "adapter_model.safetensors": "adapter_model.bin",
    "model_adapter_fusion.safetensors": "pytorch_model_adapter_fusion.bin",
    "model_head.safetensors": "pytorch_model_head.bin",
}
"""Safetensors, and the pickle that may be there instead."""

_MAX_LIST = 64 * 1024


def wanted(names: Collection[str], *, pickles: bool = False) -> list[str]:
    """Return which files of a folder are the checkpoint; of pickles only those that nothing else stands for.

    Args:
        names: Everything in the folder.
        pickles: Take pickles too.
    """
    chosen = [name for name in SMALL_FILES if name in names]
    for name, pickled in WEIGHT_FILES.items():
        if name in names:
            chosen.append(name)
        elif pickles and pickled in names:
            chosen.append(pickled)
    return sorted(chosen)


def identity_of(files: Sequence[File]) -> str:
    """Return what identifies a checkpoint: the sha256 of the list of its files.

    >>> identity_of([File("adapter_config.json", 2, "44" * 32)])[:16]
    'fb8891645e72e6da'
    """
    return canonical.sha256(_listed(files))


def _listed(files: Sequence[File]) -> bytes:
    return canonical.dumps([asdict(file) for file in sorted(files, key=lambda file: file.path)])


@dataclass(frozen=True)
class Accepted:
    """Why a checkpoint may be used. There is none for a refusal: that is a :class:`TrustError`."""

    level: str
    steps: tuple[str, ...]
    """What was checked, in order, for people."""
    warnings: tuple[str, ...]
    pin: bool
    """Under ``tofu``: it is to be remembered."""


def judge(
    reference: HubReference,
    identity: str,
    commit: str,
    level: str,
    *,
    pinned: Collection[str],
    signed_by: Collection[str],
    revocations: Sequence[Revocation],
) -> Accepted:
    """Decide whether an unsigned checkpoint may be used. No input or output, no clock, no network.

    Args:
        reference: What was asked for.
        identity: Of what is there.
        commit: Where it is there, for people.
        level: ``enforce``, ``tofu``, ``digest`` or ``unsigned``.
        pinned: Identities that were remembered for this place.
        signed_by: Fingerprints of keys that are known to sign for the repository.
        revocations: Of the user and of indexes.

    Raises:
        TrustError: Refused, and why.
    """
    steps = [f"commit {commit} of {reference.principal}", f"its identity is sha256:{identity}"]
    exact = f"{reference.at(commit, identity)}"
    if reference.digest is not None and reference.digest != identity:
        raise _refusal(f"the identity is sha256:{identity}, you pinned sha256:{reference.digest}", steps)
    revoked = of_release(tuple(revocations), identity)
    for one in revoked:
        if one.severity == "refuse":
            raise _refusal(f"this checkpoint is {one}", steps, "use another one")
    told = [f"this checkpoint is {one}" for one in revoked]
    if level == "unsigned":
        told.append(f"{reference} was loaded unsigned: nobody vouches for these weights")
        return Accepted(level, tuple(steps), tuple(told), False)
    if level == "digest":
        if reference.digest is None:
            hint = f'write the reference with its digest, if you trust it: "{exact}"'
            raise _refusal("the policy 'digest' needs a pinned digest", steps, hint)
        return Accepted(level, (*steps, "that is the digest you pinned"), tuple(told), False)
    if signed_by:
        keys = ", ".join(sorted(signed_by))
        what = f"{reference.principal} is signed by {keys}, and this is not signed at all"
        raise _refusal(what, steps, "ask the publisher over another channel what happened")
    if level != "tofu":
        what = f"{reference} holds a checkpoint that nobody signed; its identity is sha256:{identity}"
        hint = f'pin exactly these bytes: "{exact}" with --policy digest; or remember them now: --policy tofu (policy=)'
        raise _refusal(what, steps, hint)
    if not pinned:
        note = f"first use of {reference.place}: pinned sha256:{identity}"
        return Accepted(level, (*steps, note), (*told, note), True)
    if identity not in pinned:
        before = ", ".join(f"sha256:{one}" for one in sorted(pinned))
        what = f"{reference.place} was pinned as {before}, and now it is sha256:{identity}"
        raise _refusal(what, steps, f"if that is right, forget the pin: adaptergit trust remove {reference.place}")
    return Accepted(level, (*steps, f"that is what was pinned for {reference.place}"), tuple(told), False)


def _refusal(what: str, steps: Sequence[str], hint: str | None = None) -> TrustError:
    refused = TrustError(what, hint=hint)
    refused.steps = tuple(steps)
    return refused


@dataclass(frozen=True)
class Kept:
    """A folder of checkpoints. Reading needs no lock, no network and no process."""

    root: Path

    def find(self, identity: str) -> Path | None:
        """Return the folder of a checkpoint's files, or None."""
        path = self._path(identity) / "files"
        return path if path.is_dir() else None

    def files(self, identity: str) -> tuple[File, ...]:
        """Return what a checkpoint's files must be, after comparing every byte.

        Raises:
            PackageError: It is damaged.
        """
        folder = self._path(identity)
        try:
            data = (folder / "files.json").read_bytes()
            if len(data) > _MAX_LIST or canonical.sha256(data) != identity:
                raise PackageError("the list of files was changed", where=str(folder))
            files = tuple(File(**one) for one in canonical.loads(data, where=str(folder), limit=_MAX_LIST))
            if {path.name for path in (folder / "files").iterdir()} != {file.path for file in files}:
                raise PackageError("files are missing, or too many", where=str(folder))
            for file in files:
                check_file(folder / "files" / file.path, file)
        except OSError as error:
            raise PackageError(f"cannot be read: {error.strerror}", where=str(folder)) from error
        return files

    def add(self, folder: Path, files: Sequence[File]) -> Path:
        """Move a folder of files, whose digests were just computed, to where its identity says.

        Args:
            folder: Gone afterwards.
            files: Exactly what is in it.
        """
        target = self._path(identity_of(files))
        target.parent.mkdir(parents=True, exist_ok=True)
        made = folder.parent / "kept"
        made.mkdir()
        (made / "files.json").write_bytes(_listed(files))
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.rename(made / "files")
        if target.exists():  # damaged, or another process was faster with the same bytes
            with suppress(PackageError):
                self.files(target.name)
                return target / "files"
            self.remove(target.name)
        try:
            made.rename(target)
        except OSError:
            self.files(target.name)  # another process was faster
        return target / "files"

    def remove(self, identity: str) -> None:
        """Forget a checkpoint; a process that has it open keeps its bytes."""
        with suppress(FileNotFoundError):
            doomed = Path(tempfile.mkdtemp(dir=self.root)) / identity
            self._path(identity).rename(doomed)
            remove_tree(doomed.parent)

    def _path(self, identity: str) -> Path:
        return self.root / identity[:2] / identity


def changed(before: Sequence[File], now: Sequence[File]) -> list[str]:
    """Return the names of files in which two checkpoints differ."""
    left: Mapping[str, str] = {file.path: file.sha256 for file in before}
    right: Mapping[str, str] = {file.path: file.sha256 for file in now}
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
