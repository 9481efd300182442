"""Letting one process at a time do something. Correctness never rests on these locks, only economy and politeness."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_SECONDS = 600.0


@contextmanager
def exclusively(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of ``key``; lock files live in ``folder``. Where locks do not work, go on without one.

    A thread may take a lock again that it holds.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / hashlib.sha256(key.encode()).hexdigest(), timeout=_SECONDS, is_singleton=True)
        lock.acquire()
    except (OSError, NotImplementedError, Timeout):
        yield
        return
    try:
        yield
    finally:
        lock.release()
