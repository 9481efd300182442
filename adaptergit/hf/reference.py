"""How people and code name an adapter on the Hugging Face Hub.

::

    reference := "hf:" org "/" repo {"/" folder} ["@" revision] ["#sha256:" 64 hex]
    revision  := a branch, a tag or a commit; default: main

One folder of a repository holds one adapter. The host is that of ``HF_ENDPOINT``, https://huggingface.co by default.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from adaptergit.errors import UsageError
from adaptergit.package.version import is_version
from adaptergit.reference import HUB, is_hub

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EXAMPLE = "write it like hf:acme/bert-sst2, hf:acme/adapters/sst2@v1.0.0 or hf:acme/bert-sst2@<commit>#sha256:…"


@dataclass(frozen=True)
class HubReference:
    """One parsed reference.

    Examples:
        >>> ref = HubReference.parse("hf:acme/adapters/sst2@v1.0.0")
        >>> ref.repository, ref.folder, ref.revision, ref.principal
        ('acme/adapters', 'sst2', 'v1.0.0', 'huggingface.co/acme/adapters')
    """

    repository: str
    """``org/repo``."""
    folder: str = ""
    """Of the repository; empty: its root."""
    revision: str | None = None
    """Branch, tag or commit; None: the default branch."""
    digest: str | None = None
    """sha256 of the manifest, or identity of an unsigned checkpoint, when the caller pinned it."""
    endpoint: str = DEFAULT_ENDPOINT
    """Address of the Hub."""

    @classmethod
    def parse(cls, text: str, *, endpoint: str | None = None) -> HubReference:
        """Parse a reference.

        Args:
            text: Starting with ``hf:``.
            endpoint: Default: ``HF_ENDPOINT``, or https://huggingface.co.

        Raises:
            UsageError: With the part that is wrong and an example.
        """
        if not is_hub(text):
            raise UsageError(f"{str(text)[:200]!r} is no reference to the Hugging Face Hub", hint=_EXAMPLE)
        body, mark, digest = text.removeprefix(HUB).partition("#")
        if mark and not (digest.startswith("sha256:") and _DIGEST.fullmatch(digest.removeprefix("sha256:"))):
            raise UsageError(
                f"{text[:200]!r}: after '#' a reference holds sha256: and 64 lower-case hexadecimal digits",
                hint="copy the digest that 'adaptergit info' prints",
            )
        path, at, revision = body.partition("@")
        organisation, *rest = path.split("/")
        if not rest:
            raise UsageError(f"{text[:200]!r} names no org/repo", hint=_EXAMPLE)
        for name in (organisation, rest[0]):
            if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
                raise UsageError(f"{text[:200]!r}: {name[:100]!r} is not a name of the Hub", hint=_EXAMPLE)
        for segment in rest[1:]:
            if not _FOLDER.fullmatch(segment):
                raise UsageError(f"{text[:200]!r}: {segment[:100]!r} is not a folder's name", hint=_EXAMPLE)
        if at and (not _REVISION.fullmatch(revision) or ".." in revision or len(revision) > 200):
            raise UsageError(f"{text[:200]!r}: {revision[:100]!r} is no branch, tag or commit", hint=_EXAMPLE)
        return cls(
            f"{organisation}/{rest[0]}",
            "/".join(rest[1:]),
            revision or None,
            digest.removeprefix("sha256:") or None,
            _checked_endpoint(endpoint if endpoint is not None else default_endpoint()),
        )

    @property
    def principal(self) -> str:
        """Who publishes: ``host/org/repo``."""
        parts = urlsplit(self.endpoint)
        return f"{(parts.hostname or '').lower()}{parts.path.rstrip('/')}/{self.repository}"

    @property
    def name(self) -> str:
        """Last part of the path: what an adapter is called whose files do not say."""
        return (self.folder or self.repository).rpartition("/")[2]

    @property
    def commit(self) -> str | None:
        """The revision, if it is a commit and so never means anything else."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def version(self) -> str | None:
        """The release that the revision claims to be, if it is the tag of one."""
        stated = (self.revision or "").removeprefix(f"{self.folder}/").removeprefix("v")
        return stated if "." in stated and is_version(stated) else None

    @property
    def place(self) -> str:
        """What a first use is remembered under."""
        folder = f"/{self.folder}" if self.folder else ""
        return f"{self.principal}{folder}@{self.revision or DEFAULT_REVISION}"

    def tag(self, version: str) -> str:
        """Return the git tag of a release in this place."""
        return f"{self.folder}/v{version}" if self.folder else f"v{version}"

    def at(self, revision: str | None, digest: str | None = None) -> HubReference:
        """Return the reference to another revision of the same place, and the digest to be found there."""
        return replace(self, revision=revision, digest=digest)

    def __str__(self) -> str:
        """The reference as it can be parsed again."""
        folder = f"/{self.folder}" if self.folder else ""
        revision = f"@{self.revision}" if self.revision else ""
        digest = f"#sha256:{self.digest}" if self.digest else ""
        return f"{HUB}{self.repository}{folder}{revision}{digest}"


def default_endpoint() -> str:
    """Return where the Hub is: ``HF_ENDPOINT``, or https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT


def _checked_endpoint(text: str) -> str:
    where = "HF_ENDPOINT"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(
            f"not a valid URL: {error}", where=where, hint=f"write {DEFAULT_ENDPOINT}, or unset it"
        ) from error
    if parts.username is not None or parts.password is not None:
        raise UsageError("an address never holds credentials", where=where, hint="log in with: hf auth login")
    odd = not text.isascii() or not text.isprintable() or any(part in ("", ".", "..") for part in _segments(parts.path))
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0 or parts.query or parts.fragment or odd:
        raise UsageError(f"{text[:200]!r} is not the address of a Hub", where=where, hint="write https://host")
    return text.rstrip("/")


def _segments(path: str) -> list[str]:
    return path.strip("/").split("/") if path.strip("/") else []
