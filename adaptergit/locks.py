"""Letting one process at a time do something. Correctness never rests on these locks, only economy and politeness."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

_SECONDS = 600.0
_SOFT_SECONDS = 30.0
"""Whoever was killed left its file behind, and not every filelock sees that."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What file systems say whose server cannot lock. Where there are no locks at all, filelock itself takes a file."""


@contextmanager
def exclusively(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of ``key``; lock files live in ``folder``.

    Where the file system cannot lock, a file that is there or not is the lock; where that cannot be either, go on
    without one. A thread may take a lock again that it holds.
    """
    path = folder / hashlib.sha256(key.encode()).hexdigest()
    lock: FileLock | SoftFileLock | None = None
    with suppress(OSError, Timeout):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(path: Path) -> FileLock | SoftFileLock:
    lock = FileLock(path, timeout=_SECONDS, is_singleton=True)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        soft = SoftFileLock(path.with_suffix(".soft"), timeout=_SOFT_SECONDS, is_singleton=True)
        soft.acquire()
        return soft
    return lock
