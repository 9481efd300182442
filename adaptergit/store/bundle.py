"""The file that a bundle is: an uncompressed tar of a folder, the same bytes whoever writes it, its contents first.

::

    bundle.json    {"schema": "adaptergit.bundle/1", "files": [{path, size, sha256}]}: all that follows
    …              a static mirror (``mirror.py``), and what is said of its releases

A bundle without contents, as they were made before, is read too; it is whole if the end of the archive is there.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from adaptergit.errors import NotFoundError, PackageError
from adaptergit.package import canonical
from adaptergit.package.archive import BoundedMember
from adaptergit.progress import tell
from adaptergit.settings import Limits
from adaptergit.store.mirror import MARK, SIGNERS

SCHEMA = "adaptergit.bundle/1"
CONTENTS, REVOKED, INDEXES = "bundle.json", "revoked.jsonl", "indexes"
_NAMES = (CONTENTS, MARK, SIGNERS, REVOKED)
_PARTS = ("releases", "packages", "rotations", INDEXES)
_MAX_FILES = 100_000
_MAX_CONTENTS_BYTES = 32 * 2**20
_END = bytes(1024)
"""Two empty blocks end an archive."""
_AGAIN = "copy it once more from where it was made"


def pack(folder: Path, file: Path) -> None:
    """Write a folder to a new tar file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files: list[dict[str, Any]] = [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": _sha256(path)}
        for path in paths
    ]
    contents = (json.dumps({"schema": SCHEMA, "files": files}, indent=1, sort_keys=True) + "\n").encode()
    with tarfile.open(file, "w") as archive:
        first = tarfile.TarInfo(CONTENTS)
        first.size = len(contents)
        archive.addfile(_anonymous(first), io.BytesIO(contents))
        done, total = 0, sum(one["size"] for one in files)
        for path, one in zip(paths, files, strict=True):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_anonymous)
            done += one["size"]
            tell(str(file), done, total)


def unpack(file: Path, folder: Path, limits: Limits) -> None:
    """Write the files of a bundle below ``folder``: plain files with plain names in the places there are.

    Raises:
        NotFoundError: No such file.
        PackageError: Not a bundle, or not all of one.
    """
    if not file.is_file():
        raise NotFoundError(
            "there is no such bundle", where=str(file), hint="name the file that adaptergit bundle export wrote"
        )
    found: dict[str, tuple[int, str]] = {}
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:", tarinfo=BoundedMember) as archive:
            for number, member in enumerate(archive):
                path = PurePosixPath(member.name)
                known = (len(path.parts) == 1 and path.name in _NAMES) or path.parts[:1][0] in _PARTS
                plain = all(part not in ("", ".", "..") and "\\" not in part for part in path.parts)
                where = f"{file}: {member.name[:200]}"
                if not (member.isreg() and not member.issparse() and known and plain) or path.is_absolute():
                    raise PackageError(f"a bundle holds plain files below {', '.join(_PARTS)}", where=where)
                if member.size > limits.file_bytes or number > _MAX_FILES:
                    raise PackageError("too many files, or one that is too large", where=where)
                found[path.as_posix()] = member.size, _extract(archive, member, folder.joinpath(*path.parts), where)
                tell(str(file), archive.offset, size)
            tell(str(file), size, size)
    except (tarfile.TarError, EOFError, ValueError, IndexError) as error:
        raise PackageError(f"not a bundle, or not all of one: {error}", where=str(file), hint=_AGAIN) from error
    if found.pop(CONTENTS, None):
        _check_contents((folder / CONTENTS).read_bytes(), found, str(file))
    elif not _has_end(file):
        raise PackageError("the bundle is cut off: its end is missing", where=str(file), hint=_AGAIN)
    if MARK not in found:
        raise PackageError(
            f"not a bundle: it holds no {MARK}",
            where=str(file),
            hint="name the file that adaptergit bundle export wrote",
        )


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, where: str) -> str:
    """Write one file; return its sha256."""
    content, digest = archive.extractfile(member), hashlib.sha256()
    assert content is not None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as written:
            while block := content.read(1 << 20):
                written.write(block)
                digest.update(block)
    except (FileExistsError, NotADirectoryError) as error:
        raise PackageError("the bundle holds this file twice", where=where) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise PackageError("a name that is too long", where=where) from error
    return digest.hexdigest()


def _check_contents(data: bytes, found: Mapping[str, tuple[int, str]], where: str) -> None:
    """Refuse a bundle that holds less, more or something else than was put into it."""
    raw = canonical.loads(data, where=f"{where}: {CONTENTS}", limit=_MAX_CONTENTS_BYTES)
    try:
        schema, files = raw["schema"], {str(one["path"]): (one["size"], one["sha256"]) for one in raw["files"]}
    except (KeyError, TypeError, IndexError) as error:
        raise PackageError("this lists no files", where=f"{where}: {CONTENTS}") from error
    if schema != SCHEMA:
        raise PackageError(
            f"a bundle of {schema!r}; this reads {SCHEMA}", where=where, hint="a newer adaptergit may read it"
        )
    if missing := [path for path in files if path not in found]:
        text = (
            f"the bundle is cut off: {len(missing)} of its {len(files)} files are missing, {missing[0][:200]!r} first"
        )
        raise PackageError(text, where=where, hint=_AGAIN)
    if other := sorted(path for path, what in found.items() if files.get(path) != what):
        raise PackageError(f"{other[0][:200]!r} is not what the bundle was made with", where=where, hint=_AGAIN)


def _has_end(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-min(len(_END), file.stat().st_size), os.SEEK_END)
        return stream.read() == _END


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes whoever writes them, whenever."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o644
    return member


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
