"""What the indexes a person has added say, for resolving, verifying and searching."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptergit.errors import NotFoundError, TrustError, UsageError, did_you_mean
from adaptergit.index.client import Client
from adaptergit.index.entry import Entry
from adaptergit.index.shards import Known
from adaptergit.index.subscription import speakers
from adaptergit.reference import Reference
from adaptergit.settings import Settings, config_dir
from adaptergit.trust import AllowedSigner, Revocation, SignedRotation

_FILES = {".zip", ".safetensors", ".bin", ".pt", ".tar", ".json"}
"""What ends like this is meant to be a file."""


@dataclass(frozen=True)
class Word:
    """What all indexes together say of one repository."""

    known: tuple[Known, ...] = ()
    copies: tuple[str, ...] = ()
    """Addresses of repositories that say they are copies of it."""

    # The first index that knows a repository speaks for it: another could name keys, mirrors or releases of its own.

    @property
    def signers(self) -> list[AllowedSigner]:
        """Whose signatures count."""
        return [signer for one in self.known[:1] for signer in one.source.signers(one.index)]

    @property
    def threshold(self) -> int:
        """How many keys must sign."""
        return max((one.source.threshold for one in self.known[:1]), default=1)

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Where else the releases are."""
        return (*(url for one in self.known[:1] for url in one.source.mirrors), *self.copies)

    @property
    def rotations(self) -> list[SignedRotation]:
        """What its publisher rotated."""
        return [proof.rotation for one in self.known for proof in one.proofs if proof.kind == "rotation"]

    def yanked(self, adapter: str) -> set[str]:
        """Return the versions that any index marks as withdrawn: a warning counts, whoever gives it."""
        return {entry.version for one in self.known for entry in one.entries(adapter) if entry.yanked is not None}

    def releases(self, adapter: str) -> dict[str, tuple[Entry, str]]:
        """Return the releases of an adapter by version, each with the first index that lists it."""
        found: dict[str, tuple[Entry, str]] = {}
        for one in self.known:
            for entry in one.entries(adapter):
                other = found.get(entry.version)
                if other is None:
                    found[entry.version] = (entry, one.index)
                elif entry.yanked is not None and other[0].yanked is None:
                    found[entry.version] = (entry, one.index)  # a warning counts, whoever gives it
        return found

    def chosen(self, reference: Reference, yanked: Collection[str] = ()) -> tuple[Entry, str] | None:
        """Return the release that a reference means among those that are listed, or None if the list does not help.

        Args:
            reference: What is wanted.
            yanked: Versions that were withdrawn, whether or not the index has heard of it.

        Raises:
            TrustError: Two indexes list that version with different digests, and none is pinned.
        """
        listed = self.releases(reference.adapter)
        first = {entry.version for one in self.known[:1] for entry in one.entries(reference.adapter)}
        named = {
            version: item
            for version, item in listed.items()
            if version in first
            and ((item[0].yanked is None and version not in yanked) or str(reference.specifier) == f"=={version}")
            and reference.digest in (None, item[0].manifest_sha256)
            and not item[0].legacy
        }
        version = reference.newest(named)
        if version is None:
            return None
        if reference.digest is None:
            self._check_agreed(*named[version])
        return named[version]

    def _check_agreed(self, entry: Entry, index: str) -> None:
        for one in self.known:
            for other in one.entries(entry.name):
                if other.version == entry.version and other.manifest_sha256 != entry.manifest_sha256:
                    raise TrustError(
                        f"{entry.id}=={entry.version} is sha256:{entry.manifest_sha256} in the index {index}, and "
                        f"sha256:{other.manifest_sha256} in the index {one.index}: one of them was deceived",
                        hint="tell the maintainers of both; with # and the right one behind it, it is loaded, "
                        f"and so does adaptergit index remove {one.index}, or {index}, for good",
                    )


def client(settings: Settings) -> Client:
    """Return the person's indexes."""

    def opened(one: object) -> object:
        from adaptergit.index.places import place_of  # the network only where it is needed

        return place_of(one, settings)  # type: ignore[arg-type]

    return Client(settings, opened)  # type: ignore[arg-type]


def any_index() -> bool:
    """Tell, quickly, whether any index was added."""
    return (config_dir() / "indexes.json").is_file()


def word_on(principal: str | None, settings: Settings, *, offline: bool = False) -> Word:
    """Return what the indexes say of a repository; a local path is nobody."""
    if principal is None or not any_index():
        return Word()
    indexes = client(settings)
    known = indexes.known(principal, offline=offline or settings.offline)
    return Word(tuple(known), tuple(indexes.copies(principal)) if known else ())


def revoked(settings: Settings) -> Sequence[Revocation]:
    """Return what the indexes have revoked."""
    return client(settings).revocations() if any_index() else ()


def full_name(name: str, settings: Settings) -> str:
    """Return the reference that a bare adapter name means: for the command line only.

    The first index that knows an adapter of that name answers.

    Raises:
        UsageError: No index was added, or several adapters of the index have that name.
        NotFoundError: No index knows one.
    """
    bare = name.partition("#")[0]
    bare = bare[: next((at for at, char in enumerate(bare) if char in "=<>!~"), len(bare))]
    if Path(bare).suffix in _FILES:
        raise NotFoundError("no such file", where=bare, hint="an adapter is written org/repo@adapter")
    if not any_index():
        raise UsageError(
            f"{name!r} names no repository", hint="write org/repo@adapter, or add an index: adaptergit index add"
        )
    indexes = client(settings)
    every = indexes.subscriptions()
    alike: list[str] = []
    lost = [one.name for one in every if indexes.lost(one.name)]
    for one in every:
        database = indexes.database(one.name)
        try:
            found = [entry for entry in database.named(bare) if one in speakers(every, entry.principal)]
            alike += database.alike(bare) if not found else []
        finally:
            database.close()
        if len(found) == 1:
            return f"{found[0].address}{name.removeprefix(bare)}"
        if found:
            listed = "\n".join(f"    {entry.id}" for entry in found[:20])
            raise UsageError(
                f"{bare!r} is the name of {len(found)} adapters in the index {one.name}:\n{listed}",
                hint="write one of these",
            )
    update = f"what {', '.join(lost)} said is no longer here: adaptergit index update" if lost else None
    hint = update or did_you_mean(bare, sorted(alike)) or f"adaptergit search {bare}"
    what = f"no index knows an adapter named {bare!r}, and there is no file or folder of that name here"
    raise NotFoundError(what, hint=hint)
