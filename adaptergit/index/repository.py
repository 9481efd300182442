"""An index repository on disk: what people edit, what the crawl writes, what is signed.

::

    roots/<n>.json  roots/<n>.json.sig               who maintains it
    policy.yaml                                      what it takes
    sources/<host>/<org>/<repo>.yaml                 people, by pull request
    entries/<host>/<org>/<repo>.jsonl                the crawl: one line per release, never changed but for ``yanked``
    rotations/<host>/<org>/<repo>.jsonl              the crawl: what publishers rotated; maintainers: recoveries
    revoked.jsonl                                    maintainers
    dist/                                            built: what users fetch
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptergit.errors import NotFoundError, PackageError, TrustError, did_you_mean
from adaptergit.index.documents import Root, first_root, next_root, parse_root
from adaptergit.index.entry import Entry, read_lines, sort_key
from adaptergit.index.sources import SourceFile
from adaptergit.package import canonical, schemas, yamlfile
from adaptergit.trust import Revocation, SignedRotation, parse_revocations

_MAX_ENTRIES_BYTES = 256 * 2**20


@dataclass(frozen=True)
class IndexPolicy:
    """What an index takes."""

    licenses: tuple[str, ...] = ()
    max_release_bytes: int = 200 * 2**20
    waiting_hours: int = 72
    hosts: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    distinct: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proof:
    """A rotation or a recovery, as it was found, with what signs it."""

    kind: str
    """``rotation`` or ``recovery``."""
    data: bytes
    signatures: Mapping[str, bytes] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Serialise to one line."""
        found = {
            self.kind: self.data.decode(),
            "signatures": {name: value.decode() for name, value in sorted(self.signatures.items())},
        }
        return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> Proof:
        """Build it of plain data.

        Raises:
            PackageError: It is none.
        """
        kind = "rotation" if "rotation" in raw else "recovery"
        try:
            signatures = {str(name): value.encode() for name, value in raw["signatures"].items()}
            return cls(kind, raw[kind].encode(), signatures)
        except (KeyError, AttributeError) as error:
            raise PackageError("neither a rotation nor a recovery", where=where) from error

    @property
    def rotation(self) -> SignedRotation:
        """As the trust room takes it."""
        return SignedRotation(self.data, self.signatures)


@dataclass(frozen=True)
class IndexRepository:
    """A folder with an index in it."""

    root: Path

    def sources(self) -> Iterator[SourceFile]:
        """Yield every source, in the order of their names.

        Raises:
            PackageError, TrustError: With the file that is none.
        """
        for principal in self.principals():
            yield self.source(principal)

    def principals(self) -> list[str]:
        """Return the names of all sources."""
        below = self.root / "sources"
        return sorted(
            path.relative_to(below).as_posix().removesuffix(".yaml") for path in below.rglob("*.yaml") if path.is_file()
        )

    def source(self, principal: str) -> SourceFile:
        """Read one source.

        Raises:
            NotFoundError: There is none.
            PackageError, TrustError: It is malformed, or lies in another place than its name says.
        """
        path = self.root / "sources" / f"{principal}.yaml"
        if not path.is_file():
            raise NotFoundError(
                f"the index has no source {principal}",
                where=str(self.root),
                hint=did_you_mean(principal, self.principals()),
            )
        found = SourceFile.from_yaml(path.read_bytes(), where=str(path))
        if found.repository != principal:
            raise PackageError(f"the file is of {found.repository}", where=str(path), hint=f"move it to {found.path}")
        return found

    def entries(self, principal: str) -> list[Entry]:
        """Return what is listed of a source.

        Raises:
            PackageError: With the line that is no entry of it.
        """
        path = self.entries_path(principal)
        if not path.is_file():
            return []
        if path.stat().st_size > _MAX_ENTRIES_BYTES:
            raise PackageError(f"more than {_MAX_ENTRIES_BYTES} bytes", where=str(path))
        found = read_lines(path.read_bytes(), str(path))
        for entry in found:
            if entry.principal != principal:
                raise PackageError(f"{entry.id} is of another source", where=str(path))
        return found

    def entries_path(self, principal: str) -> Path:
        """Where the releases of a source are listed."""
        return self.root / "entries" / f"{principal}.jsonl"

    def write_entries(self, principal: str, entries: list[Entry]) -> None:
        """List the releases of a source; the file is replaced in one step."""
        lines = [entry.to_line() for entry in sorted(entries, key=sort_key)]
        replace(self.entries_path(principal), b"".join(lines))

    def proofs(self, principal: str) -> list[Proof]:
        """Return the rotations and recoveries of a source.

        Raises:
            PackageError: With the line that is none.
        """
        path = self.root / "rotations" / f"{principal}.jsonl"
        if not path.is_file():
            return []
        found = []
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                where = f"{path}:{number}"
                found.append(Proof.from_dict(canonical.loads(line, where=where, limit=2**20), where))
        return found

    def write_proofs(self, principal: str, proofs: list[Proof]) -> None:
        """Keep rotations and recoveries; the file is replaced in one step."""
        lines = sorted({proof.to_line() for proof in proofs})
        replace(self.root / "rotations" / f"{principal}.jsonl", b"".join(lines))

    def policy(self) -> IndexPolicy:
        """Read ``policy.yaml``; without it, the defaults.

        Raises:
            PackageError: Naming line and field.
        """
        path = self.root / "policy.yaml"
        if not path.is_file():
            return IndexPolicy()
        document = yamlfile.loads(path.read_bytes(), where=str(path), limit=2**20)
        for where, message in schemas.problems("policy", document.data):
            raise PackageError(
                f"{schemas.dotted(where) or 'document'}: {message}", where=f"{path}:{document.line(where)}"
            )
        values: dict[str, Any] = {key: value for key, value in document.data.items() if key != "schema"}
        found: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return IndexPolicy(**found)

    def revoked(self) -> bytes:
        """Return ``revoked.jsonl`` as it is, after reading it strictly.

        Raises:
            TrustError, PackageError: A line that cannot be understood.
        """
        path = self.root / "revoked.jsonl"
        data = path.read_bytes() if path.is_file() else b""
        parse_revocations(data, source=str(path))
        return data

    def revoke(self, one: Revocation) -> None:
        """Add a revocation, unless an equal one is there."""
        lines = self.revoked().decode("utf-8").split("\n")
        if one.line() not in lines:
            kept = [line for line in lines if line.strip()]
            replace(self.root / "revoked.jsonl", "".join(f"{line}\n" for line in [*kept, one.line()]).encode())

    def current_root(self) -> Root:
        """Return the newest root, after following every step from the first.

        Raises:
            NotFoundError: There is no root.
            TrustError: A step that is not signed by enough maintainers, or is not there.
        """
        data, signatures = self._root_files(1)
        root = first_root(data, signatures, parse_root(data).digest)
        while (self.root / "roots" / f"{root.version + 1}.json").is_file():
            data, signatures = self._root_files(root.version + 1)
            root = next_root(root, data, signatures)
        # Without this, one file that is lost brings back keys that were replaced.
        there = [int(path.stem) for path in (self.root / "roots").glob("*.json") if path.stem.isdecimal()]
        if max(there) > root.version:
            lost = f"roots/{root.version + 1}.json"
            raise TrustError(
                f"roots/{max(there)}.json is there, and {lost} is not",
                where=str(self.root),
                hint=f"bring it back: git restore {lost} {lost}.sig",
            )
        return root

    def _root_files(self, version: int) -> tuple[bytes, bytes]:
        path = self.root / "roots" / f"{version}.json"
        try:
            return path.read_bytes(), path.with_name(f"{path.name}.sig").read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(
                "the index has no signed root", where=str(path), hint="adaptergit index init"
            ) from error

    def write_root(self, root: Root, signatures: list[bytes]) -> Path:
        """Write a version of the root and what signs it."""
        path = self.root / "roots" / f"{root.version}.json"
        replace(path, root.data)
        replace(path.with_name(f"{path.name}.sig"), b"".join(signatures))
        return path


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
