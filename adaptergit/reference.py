"""References: how people and code name an adapter.

::

    reference := source "@" adapter [specifier] ["#sha256:" 64 hex]
    source    := [host "/"] org "/" repo | URL (https, http, ssh, file) | user@host:path | ./path | /path
    adapter   := [a-z0-9][a-z0-9._-]{0,63}
    specifier := PEP 440: ==1.2.0  >=1,<2  ~=1.2

The text is split at the *last* ``@``. A reference is an address: it says where to look. What is trusted is
decided later, by the digest and the signature of the manifest found there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from adaptergit.errors import UsageError

DEFAULT_HOST = "github.com"
HUB = "hf:"
"""What a reference to the Hugging Face Hub starts with."""

_ADAPTER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
_SEGMENT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_SCP = re.compile(r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:].*)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PATHS = ("./", "../", "/", "~/")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|(~|\.{1,2})?\\")
"""How paths begin there: with a drive, or with backslashes."""
_SCHEMES = ("https", "http", "ssh", "file")
_ADDRESS = "write host/org/repo, or an address as git takes it: https://host/acme/adapters.git"
_BEFORE_THE_PATH = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://[^/]*|[^/@:]+@[^/:]+:)")
_EXAMPLE = "write it like acme/adapters@sst2, acme/adapters@sst2==1.2.0 or https://host/acme/adapters.git@sst2"

SourceKind = Literal["hosted", "url", "scp", "path"]


@dataclass(frozen=True)
class Source:
    """A repository: where to fetch it (``url``) and who it is (``principal``)."""

    text: str
    """As it was written."""
    kind: SourceKind
    url: str
    """What git is given."""
    principal: str | None
    """``host/path``, without port, user and ``.git``; None for a local path, which is no identity."""

    @property
    def publisher(self) -> str:
        """Under what a machine remembers it: the principal, however it is reached; of a local path, the path."""
        return self.principal or self.url

    @classmethod
    def parse(cls, text: str, *, default_host: str = DEFAULT_HOST) -> Source:
        """Parse the part of a reference before the last ``@``.

        Raises:
            UsageError: The text is no repository.

        >>> Source.parse("acme/adapters").url
        'https://github.com/acme/adapters.git'
        >>> Source.parse("git@Codeberg.org:acme/adapters.git").principal
        'codeberg.org/acme/adapters'
        """
        local = _is_local(text)
        first = 0x20 if local else 0x21  # folders have blanks in their names
        odd = any(ord(c) < first or ord(c) == 0x7F or 0xD800 <= ord(c) < 0xE000 or not c.isprintable() for c in text)
        if not text or text.startswith("-") or odd or "::" in text:
            raise UsageError(f"{text!r} is not a repository", hint=_EXAMPLE)
        if "://" in text:
            return _parse_url(text)
        if local or text in (".", ".."):
            path = expand(text).resolve()
            return cls(text, "path", path.as_uri(), None)
        if match := _SCP.fullmatch(text):
            _check_path(text, match["path"])
            return cls(text, "scp", text, _principal(match["host"], match["path"]))
        return _parse_hosted(text, default_host)

    @classmethod
    def named(cls, text: str, *, default_host: str = DEFAULT_HOST) -> Source:
        """Parse the address of a repository that stands alone.

        Raises:
            UsageError: The text is no repository, or names an adapter in one.

        >>> Source.named("git@codeberg.org:acme/adapters.git").principal
        'codeberg.org/acme/adapters'
        """
        check_no_adapter(text)
        try:
            return cls.parse(text, default_host=default_host)
        except UsageError as error:
            if error.hint == _EXAMPLE:
                error.hint = _ADDRESS
            raise


def check_no_adapter(address: str) -> None:
    """Refuse a reference where a repository or a folder is asked for; a path means what it says.

    Raises:
        UsageError: It names an adapter.
    """
    local = _is_local(address) or (address.startswith("file://") and Path(url2pathname(address[7:])).exists())
    if not local and re.search(r"[^/@]@[^/@]+/?$", _BEFORE_THE_PATH.sub("", address)):
        raise UsageError(
            f"{address!r} names an adapter, and no repository", hint="leave out what begins with its last @"
        )


def _parse_url(text: str) -> Source:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # What Python says of it may be half of a password.
        raise UsageError(f"{text!r} is not a valid URL: its host, port or brackets are odd", hint=_EXAMPLE) from None
    if parts.scheme not in _SCHEMES:
        raise UsageError(
            f"{text!r}: the protocol {parts.scheme!r} is not allowed", hint=f"use one of {', '.join(_SCHEMES)}"
        )
    if parts.query or parts.fragment:
        raise UsageError(f"{text!r}: a repository URL has no '?' or '#'", hint=_EXAMPLE)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"{text!r}: write file:///absolute/path", hint=_EXAMPLE)
        return Source(text, "url", f"file://{parts.path}", None)
    if parts.password is not None or (parts.username is not None and parts.scheme != "ssh"):
        raise UsageError(
            f"{parts.scheme}://…@{parts.hostname}{parts.path}: a reference never holds credentials",
            hint="use git's credential helper",
        )
    if parts.username is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", parts.username):
        raise UsageError(f"{text!r}: {parts.username!r} is not a user name", hint=_EXAMPLE)
    host = parts.hostname
    if not host or not HOST.fullmatch(host) or port == 0 or not parts.path.strip("/"):
        raise UsageError(f"{text!r}: expected {parts.scheme}://host/path", hint=_EXAMPLE)
    _check_path(text, parts.path)
    return Source(text, "url", text, _principal(host, parts.path))


def _parse_hosted(text: str, default_host: str) -> Source:
    segments = text.split("/")
    if len(segments) < 2 or not all(segments):
        here = f"for what lies here, write ./{text}" if text and expand(text).exists() else _EXAMPLE
        raise UsageError(f"{text!r} is not org/repo", hint=here)
    host, path = (default_host, segments) if len(segments) == 2 else (segments[0], segments[1:])
    if not HOST.fullmatch(host):
        raise UsageError(f"{text!r}: {host!r} is not a host name", hint=_EXAMPLE)
    for segment in path:
        if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
            raise UsageError(f"{text!r}: {segment!r} is not a valid name in org/repo", hint=_EXAMPLE)
    joined = "/".join(path).removesuffix(".git")
    return Source(text, "hosted", f"https://{host.lower()}/{joined}.git", _principal(host, joined))


def _check_path(text: str, path: str) -> None:
    """Refuse paths that one server reads in another way than the principal they would give."""
    for segment in path.strip("/").split("/"):
        odd = not segment.isascii() or "%" in segment or "\\" in segment
        if segment in ("", ".", "..") or segment.startswith("-") or odd:
            raise UsageError(f"{text!r}: {segment!r} cannot be part of a repository's path", hint=_EXAMPLE)


def _principal(host: str, path: str) -> str:
    """Who publishes: host and path only, so that ssh, https and a non-standard port name the same publisher."""
    return f"{host.partition(':')[0].lower()}/{path.strip('/').removesuffix('.git')}"


@dataclass(frozen=True)
class Reference:
    """One parsed reference.

    Examples:
        >>> ref = Reference.parse("acme/adapters@ner>=1.2,<2")
        >>> ref.adapter, str(ref.specifier), ref.source.principal
        ('ner', '<2,>=1.2', 'github.com/acme/adapters')
    """

    source: Source
    """The repository."""
    adapter: str
    """Name of the adapter in it."""
    specifier: SpecifierSet
    """Empty: the newest release that is neither a pre-release nor yanked."""
    digest: str | None = None
    """sha256 of the signed manifest, 64 hexadecimal digits, when the caller pinned it."""

    @classmethod
    def parse(cls, text: str, *, default_host: str = DEFAULT_HOST) -> Reference:
        """Parse a reference.

        Raises:
            UsageError: With the part that is wrong and an example.
        """
        if is_hub(text):
            hint = "load, fetch_hub, convert and publish take it; elsewhere, use a git repository"
            raise UsageError(
                f"{text[:200]!r} is on the Hugging Face Hub, and here a git repository is needed", hint=hint
            )
        if not isinstance(text, str) or "@" not in text:
            address = isinstance(text, str) and "/" in text and "#" not in text
            hint = f"name an adapter in it: {text}@adapter" if address else _EXAMPLE
            raise UsageError(f"{text!r} is not a reference: it names no adapter", hint=hint)
        body, hash_mark, digest_text = text.partition("#")
        digest: str | None = None
        if hash_mark:
            digest = digest_text.removeprefix("sha256:")
            if not digest_text.startswith("sha256:") or not _DIGEST.fullmatch(digest):
                raise UsageError(
                    f"{text!r}: after '#' a reference holds sha256: and 64 lower-case hexadecimal digits",
                    hint="copy the digest that 'adaptergit info' prints",
                )
        source_text, _, tail = body.rpartition("@")
        named = source_text.rpartition("@")
        if named[1] and _ADAPTER.fullmatch(named[2]) and re.fullmatch(r"[0-9]+(\.[0-9]+)+[a-z0-9.]*", tail):
            raise UsageError(f"{text!r}: {tail!r} is no adapter", hint=f"a version is written {source_text}=={tail}")
        match = _ADAPTER.match(tail)
        if match is None:
            raise UsageError(
                f"{text!r}: {tail!r} is not an adapter name",
                hint="names are 1 to 64 of a-z 0-9 . _ - and start with a letter or digit",
            )
        adapter, specifier_text = match[0], tail[match.end() :]
        check_adapter_name(adapter)
        if specifier_text and specifier_text[0] not in "=<>!~":
            raise UsageError(
                f"{text!r}: {specifier_text!r} after the adapter name {adapter!r} is not a version specifier",
                hint="names are lower case; versions are written ==1.2.0, >=1,<2 or ~=1.2",
            )
        try:
            if len(specifier_text) > 200 or "===" in specifier_text:
                raise InvalidSpecifier(specifier_text)
            specifier = SpecifierSet(specifier_text)
        except (InvalidSpecifier, ValueError) as error:
            raise UsageError(
                f"{text[:200]!r}: {specifier_text[:80]!r} is not a version specifier",
                hint="write ==1.2.0, >=1,<2 or ~=1.2",
            ) from error
        return cls(Source.parse(source_text, default_host=default_host), adapter, specifier, digest)

    def newest(self, versions: Iterable[str]) -> str | None:
        """Return the newest fitting version: final releases first, pre-releases only where the specifier names one."""
        fitting = [v for v in versions if self.specifier.contains(v, prereleases=True)]
        final = [v for v in fitting if not Version(v).is_prerelease]
        allowed = final or (fitting if self.specifier.prereleases else [])
        return max(allowed, key=Version, default=None)

    def pinned(self, digest: str) -> Reference:
        """The same reference with its manifest digest fixed."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        """The reference as it can be parsed again."""
        digest = f"#sha256:{self.digest}" if self.digest else ""
        return f"{self.source.text}@{self.adapter}{self.specifier}{digest}"


def is_hub(text: Any) -> bool:
    """Tell whether a text names something on the Hugging Face Hub (``adaptergit.hf``); a path never does."""
    return isinstance(text, str) and text.startswith(HUB)


def is_folder(text: str | Path) -> bool:
    """Tell whether a person means a folder and not a reference.

    A text with ``@`` is a reference unless it is written as a path (``./``, ``../``, ``/``, ``~/``) and is a folder:
    what lies in the working directory never takes the place of ``org/repo@adapter``.
    """
    if is_hub(text):
        return False
    if not isinstance(text, str | Path):
        raise UsageError(
            f"expected a reference or a folder, not {type(text).__name__}", hint='write "org/repo@adapter"'
        )
    if isinstance(text, Path) or "@" not in text:
        return True
    return _is_local(text) and expand(text).is_dir()


def is_path(text: str | Path) -> bool:
    """Tell whether a person means a folder or a file and not a reference; see :func:`is_folder`."""
    return is_folder(text) or (_is_local(str(text)) and expand(text).exists())


def check_paths(**given: object) -> None:
    """Refuse arguments that are neither paths nor None.

    Raises:
        UsageError: With the name of one.
    """
    check_needed_paths(**{name: value for name, value in given.items() if value is not None})


def check_needed_paths(**given: object) -> None:
    """Refuse arguments that are no paths, None too.

    Raises:
        UsageError: With the name of one.
    """
    for name, value in given.items():
        if not isinstance(value, str | Path):
            raise UsageError(f"{name} must be a path, not {type(value).__name__}")


def check_pinned_by(ref: object, index: object, lock: object) -> None:
    """Refuse an index file or a lock file beside what neither can name.

    Raises:
        UsageError: The reference is of the Hub, or of a folder.
    """
    if index is None and lock is None:
        return
    if is_hub(ref):
        hint = f"write the commit and the digest: {ref}@<commit>#sha256:…"
        raise UsageError("neither an index file nor a lock file names what is on the Hub", hint=hint)
    if isinstance(ref, str | Path) and is_folder(ref):
        hint = "leave the file out, or name the release by its reference"
        raise UsageError("neither an index file nor a lock file names a folder", where=str(ref), hint=hint)


def check_flags(**given: object) -> None:
    """Refuse arguments that are neither True nor False: a text is always true.

    Raises:
        UsageError: With the name of one.
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, not {value!r}")


def expand(path: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder it means.

    Raises:
        UsageError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{str(path)!r}: {error}", hint="write the whole path") from error


def _is_local(text: str) -> bool:
    """Tell whether somebody means a place of this machine."""
    return text.startswith(_PATHS) or (os.name == "nt" and _WINDOWS.match(text) is not None)


def is_adapter_name(name: str) -> bool:
    """Tell whether ``name`` can name an adapter, a folder and a git tag."""
    return _ADAPTER.fullmatch(name) is not None and ".." not in name and not name.endswith((".", ".lock"))


def check_adapter_name(name: str) -> str:
    """Return ``name`` if it can name an adapter, a folder and a git tag.

    Raises:
        UsageError: It cannot, and why.
    """
    if not _ADAPTER.fullmatch(name):
        raise UsageError(
            f"{name!r} is not an adapter name", hint="use 1 to 64 of a-z 0-9 . _ - and start with a letter or digit"
        )
    # git check-ref-format refuses these inside refs/tags/adapters/<name>/<version>.
    if not is_adapter_name(name):
        raise UsageError(f"{name!r} cannot be part of a git tag", hint="no '..', no '.' or '.lock' at the end")
    return name
