"""Which tests need POSIX: seen in what they, their fixtures and their parameters say, so that nobody has to mark them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import CodeType, FunctionType
from typing import Any

_WORDS = re.compile(
    r"#!/bin/|bin/sh|/dev/(?!null)|/etc/|/proc/|mkfifo|getuid|geteuid|statvfs|SIGKILL|SIGSTOP|SIGHUP|killpg|preexec_fn"
    r"|0o[0-7]{3}|\bpty\b|umask|sshd|nginx|symlink_to|\"umount\""
)


def needs_posix(item: Any) -> bool:
    """Tell whether a collected test, or anything of the tests that it uses, names what only POSIX has."""
    fixtures = [one.func for some in item._fixtureinfo.name2fixturedefs.values() for one in some]
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(_says(one, set()) for one in (item.function, *fixtures, *parameters))


def _says(thing: Any, seen: set[int]) -> bool:
    if id(thing) in seen:
        return False
    seen.add(id(thing))
    if isinstance(thing, str):
        return bool(_WORDS.search(thing))
    if isinstance(thing, dict | list | tuple):
        return any(_says(one, seen) for one in (thing.values() if isinstance(thing, dict) else thing))
    if is_dataclass(thing) and not isinstance(thing, type):
        return any(_says(one, seen) for one in vars(thing).values())
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if not isinstance(thing, FunctionType) or not _is_ours(thing):
        return False
    closed = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
    used = [thing.__globals__.get(name) for name in _names(thing.__code__)]
    return bool(_WORDS.search(inspect.getsource(thing))) or any(
        _says(one, seen) for one in (*closed, *used, *(thing.__defaults__ or ()))
    )


def _is_ours(function: FunctionType) -> bool:
    return function.__module__.startswith(("test_", "attacks_", "conftest", "serving", "terminal", "reading"))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
