"""Writing to this machine's disk: whole or not at all, there after a power cut, and clear about what is wrong."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from adaptergit.errors import StorageError

_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENOTDIR)

WRITABLE_TO_SYNC = os.name != "posix"
"""Windows makes only that durable which could be written to."""


@contextmanager
def disk_errors(what: str, where: Path, hint: str) -> Iterator[None]:
    """Turn a full disk, or one that may not be written to, into an error that says so.

    Raises:
        StorageError: The disk is full, damaged or read-only, or there is a file where a folder must be.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FAULTS:
            named = Path(str(error.filename or where))
            if error.errno == errno.EACCES and named.is_file() and not named.is_relative_to(where):  # read meanwhile
                said = f"cannot read {named.name}: {error.strerror}"
                raise StorageError(said, where=str(named), hint="look at who may read it") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # there is space enough
                hint = hint.replace("free some space", "look at who may write there")
            if error.errno == errno.ENOTDIR:
                hint = hint.replace("free some space, or ", "there is a file where a folder must be: ")
            raise StorageError(f"cannot write to {what}: {error.strerror}", where=str(where), hint=hint) from error
        raise


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder for what is thrown away.

    Raises:
        StorageError: The disk is full, damaged or read-only, or there is a file where a folder must be.
    """
    where = Path(tempfile.gettempdir())
    hint = "free some space, or choose another folder with TMPDIR"
    with (
        disk_errors("the folder for temporary files", where, hint),
        tempfile.TemporaryDirectory(prefix="adaptergit-") as folder,
    ):
        yield Path(folder)


@contextmanager
def scratch_file() -> Iterator[IO[bytes]]:
    """Give an empty file for what is thrown away.

    Raises:
        StorageError: See :func:`scratch`.
    """
    with scratch() as folder, (folder / "file").open("w+b") as file:
        yield file


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Put a file in place in one step, so that a reader sees the old one or the new one, also after a power cut.

    Who may read it is what the umask leaves of ``mode``, as for every other file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with prepared_file(path, data, mode=mode) as put:
        put()


@contextmanager
def prepared_file(path: Path, data: bytes, *, mode: int = 0o666) -> Iterator[Callable[[], None]]:
    """Write a file beside its place; give what puts it there in one step. What was not put in place is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

    def put() -> None:
        temporary.replace(path)
        sync(path.parent)

    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield put
    except OSError as error:
        if error.filename == str(temporary):  # people know the file by its own name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file or a folder durable, as far as the file system can."""
    folder = path.is_dir()
    if folder and os.name != "posix":
        return
    handle = os.open(path, os.O_RDWR if WRITABLE_TO_SYNC else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def remove_tree(path: Path) -> None:
    """Remove a folder, as far as that can be done now: Windows keeps what is read-only, NFS what somebody has open."""
    if os.name != "posix":
        for inside in path.rglob("*"):
            with suppress(OSError):
                inside.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
