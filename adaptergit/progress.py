"""How far a download has come, told to whoever wants to know.

Who wants to know is not handed from function to function, but holds for everything done inside a ``with``: a load may
fetch an index, a lock file's releases and what an adapter depends on, by git, over HTTP or from the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from adaptergit.errors import UsageError

Watcher = Callable[[str, int, int | None], None]
"""Is given who sends, how many bytes have arrived, and of how many; None: that is not known."""

_watcher: ContextVar[Watcher | None] = ContextVar("adaptergit_watcher", default=None)


@contextmanager
def watching(report: Watcher) -> Iterator[None]:
    """Be told how far every download inside the ``with`` has come.

    An error that ``report`` raises ends the download, and is raised. It is called now and then, by whatever thread
    reads; each part of a release that is asked for by itself begins at 0 bytes.

    Args:
        report: Called with who sends, the bytes that have arrived, and how many there will be, or None.

    Raises:
        UsageError: It is no function.

    >>> with watching(lambda sender, done, total: print(sender, done, total)):
    ...     pass
    """
    if not callable(report):
        hint = "watching(lambda sender, done, total: print(done, total))"
        raise UsageError(f"expected a function, not {type(report).__name__}", hint=hint)
    token = _watcher.set(report)
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher | None:
    """Return who wants to know."""
    return _watcher.get()
