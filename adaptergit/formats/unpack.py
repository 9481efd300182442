"""Checkpoints as they lie around: a folder, or the zip file that AdapterHub served; safetensors, or pickled."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from adaptergit.errors import NotFoundError, PackageError, UsageError, what_is_there
from adaptergit.formats.adapterhub import FUSION_WEIGHTS
from adaptergit.formats.adapterhub import WEIGHTS as ADAPTERHUB_WEIGHTS
from adaptergit.formats.adapterhub_heads import HEAD_WEIGHTS
from adaptergit.formats.folders import is_foreign
from adaptergit.formats.peft import WEIGHTS as PEFT_WEIGHTS
from adaptergit.formats.unpickle import unpickle

PICKLES = {
    "pytorch_adapter.bin": ADAPTERHUB_WEIGHTS,
    "pytorch_model_head.bin": HEAD_WEIGHTS,
    "pytorch_model_adapter_fusion.bin": FUSION_WEIGHTS,
    "adapter_model.bin": PEFT_WEIGHTS,
}
_FILES, _BYTES = 1000, 2 << 30


@contextmanager
def unpacked(source: Path, *, allow_pickle: bool = False) -> Iterator[Path]:
    """Give a folder with a checkpoint whose weights are safetensors.

    Args:
        source: A folder, or a zip file of one.
        allow_pickle: Make safetensors of pickled weights; a folder is copied for that.

    Raises:
        NotFoundError, UsageError: There is no checkpoint.
        PackageError: Not a zip file, or one that holds what it should not; a pickle that is none of tensors.
    """
    if not source.exists():
        raise NotFoundError("no such file or folder", where=str(source), hint=what_is_there(source))
    with tempfile.TemporaryDirectory(prefix="adaptergit-") as temporary:
        folder = source
        if source.is_file():
            folder = Path(temporary) / "zip"
            _extract(source, folder)
            folder = _checkpoint(folder, source)
        pickled = [path for path in folder.rglob("*") if path.name in PICKLES] if allow_pickle else []
        if pickled and source.is_dir():
            copy = Path(temporary) / "copy"
            shutil.copytree(folder, copy, symlinks=False)
            pickled = [copy / path.relative_to(folder) for path in pickled]
            folder = copy
        for path in pickled:
            made = path.with_name(PICKLES[path.name])
            if not made.exists():
                unpickle(path, made, where=str(source / path.relative_to(folder)))
            path.unlink()
        yield folder


def _extract(source: Path, folder: Path) -> None:
    if not zipfile.is_zipfile(source):
        raise UsageError(
            "neither a folder nor a zip file",
            where=str(source),
            hint="name the folder that it is in, or unpack it and name that folder",
        )
    try:
        with zipfile.ZipFile(source) as archive:
            listed = archive.infolist()
            if len(listed) > _FILES or sum(item.file_size for item in listed) > _BYTES:
                raise PackageError(f"more than {_FILES} files or {_BYTES >> 30} GiB", where=str(source))
            for item in listed:
                path = PurePosixPath(item.filename)
                if item.is_dir():
                    continue
                if path.is_absolute() or ".." in path.parts or "\\" in item.filename or "\0" in item.filename:
                    raise PackageError(f"a file outside of the archive: {item.filename!r}", where=str(source))
                target = folder.joinpath(*path.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(item) as reader, target.open("xb") as writer:
                    _copy(reader, writer, item.file_size, str(source))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise PackageError(f"the zip file cannot be read: {error}", where=str(source)) from error


def _copy(reader: object, writer: object, size: int, where: str) -> None:
    """What the archive's list says is not what it unpacks to."""
    left = size
    while block := reader.read(min(1 << 20, left + 1)):  # type: ignore[attr-defined]
        left -= len(block)
        if left < 0:
            raise PackageError("a file is larger than the archive says", where=where)
        writer.write(block)  # type: ignore[attr-defined]


def _checkpoint(folder: Path, source: Path) -> Path:
    """Return the folder of an archive that holds the checkpoint: its top, or the only one inside that does."""
    if is_foreign(folder):
        return folder
    found = [path for path in sorted(folder.rglob("*")) if path.is_dir() and is_foreign(path)]
    outermost = [path for path in found if not any(other in path.parents for other in found)]
    if len(outermost) != 1:
        raise UsageError(
            f"{len(outermost) or 'no'} checkpoints in the archive",
            where=str(source),
            hint="unpack it and name a folder of one" if outermost else "one has an adapter_config.json",
        )
    return outermost[0]
