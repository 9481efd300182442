"""How far something that takes a while has come, told to whoever wants to know.

Who wants to know is not handed from function to function, but holds for everything done inside a ``with``: a load may
fetch an index, a lock file's releases and what an adapter depends on, by git, over HTTP or from the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from adaptergit.errors import UsageError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Progress:
    """How far something has come."""

    what: str
    """Who sends, or is sent to: an address; or what is worked on."""
    done: int
    """So many of them are done."""
    total: int | None
    """Of how many; None: that is not known. Of what git receives, it is read off what has come: should a second large
    file follow, it grows."""
    unit: str = "bytes"
    """What is counted: ``bytes``, ``tensors``, ``releases`` …"""


Watcher = Callable[[Progress], None]

_watcher: ContextVar[Watcher | None] = ContextVar("adaptergit_watcher", default=None)


@contextmanager
def watching(report: Watcher) -> Iterator[None]:
    """Be told how far everything inside the ``with`` has come: downloads, pushes, conversions, comparisons.

    An error that ``report`` raises ends what is going on, and is raised. It is called now and then, by whatever thread
    does the work; each part of a release that is asked for by itself begins at 0 bytes.

    Args:
        report: Called with a :class:`Progress`.

    Raises:
        UsageError: It is no function.

    Examples:
        >>> with watching(lambda progress: print(progress.what, progress.done, progress.total)):
        ...     pass
    """
    if not callable(report):
        hint = "watching(lambda progress: print(progress.done, progress.total))"
        raise UsageError(f"expected a function, not {type(report).__name__}", hint=hint)
    token = _watcher.set(report)
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher | None:
    """Return who wants to know: other threads have to be told."""
    return _watcher.get()


def tell(what: str, done: int, total: int | None, unit: str = "bytes") -> None:
    """Tell whoever wants to know how far something has come."""
    if (report := _watcher.get()) is not None:
        report(Progress(what, done, total, unit))


def each(items: Collection[_T], what: str, unit: str) -> Iterator[_T]:
    """Go through something, and tell how far it is; before the first item too."""
    for done, item in enumerate(items):
        tell(what, done, len(items), unit)
        yield item
    tell(what, len(items), len(items), unit)
