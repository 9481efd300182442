"""Names: of repositories, and of files that a package may hold on every platform it may be unpacked on."""

from __future__ import annotations

import re

PRINCIPAL = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[A-Za-z0-9_.~][A-Za-z0-9_.~-]*)+")
"""A repository's public name: host and path."""
PRINCIPALS = re.compile(r"[a-z0-9*?][a-z0-9.*?-]*(/[A-Za-z0-9_.~*?-]+)+|\*")
"""Such a name, or a glob of them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_WINDOWS_DEVICES = re.compile(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def needs_host(name: str) -> bool:
    """Tell whether a name of two parts is read as org/repo: its first part is no host with a dot in it."""
    return name.count("/") == 1 and "." not in name.partition("/")[0]


def as_typed(principal: str) -> str:
    """Return a repository's public name as commands take it.

    On a host without a dot, a name of two parts would be read as org/repo; with two slashes before, as a network-path
    reference has them (RFC 3986, 4.2), it begins with the host.

    >>> as_typed("github.com/acme/adapters"), as_typed("gitbox/adapters.git")
    ('github.com/acme/adapters', '//gitbox/adapters.git')
    """
    return f"//{principal}" if needs_host(principal) else principal


def is_reserved(name: str) -> bool:
    """Tell whether some platform gives the name a meaning of its own, or strips its end."""
    return name.endswith(".") or _WINDOWS_DEVICES.fullmatch(name) is not None


def is_allowed(name: str) -> bool:
    """Tell whether ``name`` can be a file of a package: ASCII, flat, not hidden, no device name."""
    return _NAME.fullmatch(name) is not None and not is_reserved(name)


def fold(name: str) -> str:
    """Return the form in which two names must differ, as on case-insensitive file systems."""
    return name.casefold()
