"""Versions: PEP 440, always in normal form, without epoch and local part."""

from __future__ import annotations

from functools import lru_cache

from packaging.version import InvalidVersion, Version

from adaptergit.errors import PackageError, UsageError

MAX_LENGTH = 64


@lru_cache(4096)
def is_version(text: str) -> bool:
    """Tell whether ``text`` is a version in normal form."""
    try:
        check_version(text)
    except PackageError:
        return False
    return True


def check_version(text: str, *, where: str | None = None) -> Version:
    """Parse a version that must already be in normal form.

    Raises:
        PackageError: Not PEP 440, or written in another form.
    """
    try:
        if len(text) > MAX_LENGTH:  # before parsing: Python refuses to read numbers of thousands of digits
            raise InvalidVersion(text[:MAX_LENGTH])
        version = Version(text)
    except InvalidVersion as error:
        raise PackageError(
            f"version: {text[:MAX_LENGTH]!r} is not a PEP 440 version", where=where, hint="write 1.2.0 or 2.0.0rc1"
        ) from error
    if str(version) != text or version.epoch or version.local:
        raise PackageError(
            f"version: {text!r} is not in normal form",
            where=where,
            hint=f"write {version.public.rpartition('!')[2]}",
        )
    return version


def check_named_version(text: str) -> None:
    """Refuse what a person gives for a version and is none.

    Raises:
        UsageError: Not PEP 440, or written in another form.
    """
    try:
        check_version(text)
    except PackageError as error:
        raise UsageError(error.what, hint=error.hint) from error
