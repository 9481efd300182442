"""The manifest: the document that names every byte of a package and that the publisher signs.

The bytes are written once, signed, and verified as they are; they are parsed only after that and never
serialised again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from adaptergit.errors import PackageError
from adaptergit.package import canonical, schemas
from adaptergit.package.names import fold, is_reserved
from adaptergit.package.version import check_version

SCHEMA = "adaptergit.manifest/1"
MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class File:
    """One file of the package."""

    path: str
    size: int
    """Bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""


@dataclass(frozen=True)
class BaseModel:
    """The model the adapter was trained in."""

    id: str
    revision: str | None
    fingerprint: str
    """See ``adaptergit.splice.fingerprint``."""


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest. ``schema/manifest.schema.json`` describes every field."""

    repository: str
    """The principal, for example ``github.com/acme/adapters``."""
    name: str
    version: str
    created: str
    license: str
    method: str
    base_model: BaseModel
    files: tuple[File, ...]
    previous: str | None
    """Digest of the previous version's manifest: a hash chain per adapter."""

    def to_bytes(self) -> bytes:
        """Serialise to the bytes that are signed.

        Raises:
            PackageError: A field breaks the schema.
        """
        data = canonical.dumps({"schema": SCHEMA, **asdict(self), "files": [asdict(f) for f in self.files]})
        self.from_bytes(data, where="manifest.json")
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "manifest.json") -> Manifest:
        """Parse strictly; call only with bytes whose signature or digest was checked.

        Raises:
            PackageError: Naming the file and the field.
        """
        raw = canonical.loads(data, where=where, limit=MAX_BYTES)
        for field, message in schemas.problems("manifest", raw):
            raise PackageError(f"{schemas.dotted(field) or 'document'}: {message}", where=where)
        manifest = cls._build(raw)
        try:
            datetime.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError as error:
            raise PackageError(f"created: {manifest.created!r} is no time", where=where) from error
        check_version(manifest.version, where=where)
        paths = [f.path for f in manifest.files]
        if paths != sorted(paths):
            raise PackageError("files: not sorted by path", where=where)
        if len({fold(path) for path in paths}) != len(paths):
            raise PackageError("files: two paths are equal when case is ignored", where=where)
        for path in paths:
            if path.startswith("manifest.json") or path == "model.sig" or is_reserved(path):
                raise PackageError(f"files: {path!r} may not be listed", where=where)
        return manifest

    @classmethod
    def _build(cls, raw: Mapping[str, Any]) -> Manifest:
        fields = {key: value for key, value in raw.items() if key != "schema"}
        fields["base_model"] = BaseModel(**raw["base_model"])
        fields["files"] = tuple(File(**item) for item in raw["files"])
        return cls(**fields)
