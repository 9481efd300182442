"""What a training leaves behind that did not reach its end: checkpoints to go on from, or nothing; and clear errors."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from adaptergit.durable import disk_errors
from adaptergit.training.resume import BEGUN, is_whole

_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def leaving(output: Path, checkpoints: Path, *, mine: bool) -> Iterator[None]:
    """Around all that is written: half a checkpoint goes, and so does a folder without any.

    Args:
        output: Folder of the package.
        checkpoints: Folder of the checkpoints.
        mine: This is the process that writes.

    Raises:
        StorageError: The disk is full, damaged or read-only.
    """
    try:
        with (
            disk_errors("the output folder", output, "free some space, or choose another folder"),
            _system_errors(output),
        ):
            yield
    finally:
        if mine and (checkpoints / BEGUN).is_file():  # else what is there is of others
            _tidy(checkpoints)


@contextmanager
def _system_errors(output: Path) -> Iterator[None]:
    """Libraries that write with code of their own have errors of their own, too."""
    try:
        yield
    except SafetensorError as error:
        if (found := _NUMBER.search(str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
    except RuntimeError as error:  # torch.save does not say what was wrong
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        near = next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
        number = errno.ENOSPC if shutil.disk_usage(near).free < 2**20 else errno.EIO
        raise OSError(number, os.strerror(number)) from error


def _tidy(checkpoints: Path) -> None:
    for folder in checkpoints.glob("checkpoint-*"):
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
    if not any(checkpoints.glob("checkpoint-*")):  # nothing to go on from
        shutil.rmtree(checkpoints, ignore_errors=True)
