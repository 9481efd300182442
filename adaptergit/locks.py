"""Letting one process at a time do something. Correctness never rests on these locks, only economy and politeness."""

from __future__ import annotations

import errno
import functools
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

_SECONDS = 600.0
_SOFT_SECONDS = 60.0
"""Whoever was killed left its file behind: after so long, it is taken away."""
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What file systems say that cannot lock, or whose server cannot."""


@contextmanager
def exclusively(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of ``key``; lock files live in ``folder``.

    Where the file system cannot lock, a file that is there or not is the lock; where that cannot be either, go on
    without one. A thread may take a lock again that it holds.
    """
    path = folder / hashlib.sha256(key.encode()).hexdigest()
    lock: FileLock | SoftFileLock | None = None
    with suppress(OSError, NotImplementedError, Timeout):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path) if _can_lock(folder) else _acquired_softly(path.with_suffix(".soft"))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(path: Path) -> FileLock:
    lock = FileLock(path, timeout=_SECONDS, is_singleton=True)
    lock.acquire()
    return lock


def _acquired_softly(path: Path) -> SoftFileLock:
    lock = SoftFileLock(path, timeout=_SOFT_SECONDS, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        path.unlink(missing_ok=True)  # else all who come later would wait as long
        raise
    return lock


@functools.cache
def _can_lock(folder: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has locks of another kind, everywhere
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    return True
