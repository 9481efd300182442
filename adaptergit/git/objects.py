"""Reading what was fetched. Nothing is checked out: every entry of a tree is judged, blobs become files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adaptergit.durable import scratch_file
from adaptergit.errors import PackageError, TransportError
from adaptergit.git.runner import Git
from adaptergit.package.folder import check_entry_name, check_sizes
from adaptergit.settings import Limits

_MAX_TREE_BYTES = 64 * 1024
_PLAIN = b"100644"
_KINDS = {b"120000": "a link", b"160000": "a submodule", b"40000": "a folder", b"100755": "an executable"}
Judge = Callable[[Path], Mapping[str, int]]
"""Looks at manifest and signatures, refuses or says how large each file may be."""


@dataclass(frozen=True)
class Missing:
    """What to do when a filter kept the large files back."""

    judge: Judge
    fetch: Callable[[Mapping[str, int], Mapping[str, str]], Git]
    """Of sizes and oids by name."""


def find_tree(git: Git, of: str) -> tuple[str, bytes] | None:
    """Return oid and content of the tree that something leads to, or None if it leads to none.

    Raises:
        PackageError: It is far too large for a package.
    """
    with _answers(git, "--batch", [f"{of}^{{tree}}"]) as output:
        oid, kind, size = (*output.readline(256).decode("ascii", "replace").split(), "", "")[:3]
        if kind != "tree":
            return None
        if int(size) > _MAX_TREE_BYTES:
            raise PackageError("the release's tree is far too large", where=f"release {oid[:12]}")
        return oid, _exactly(output, int(size))


def tree_oid(folder: Path, length: int) -> str:
    """Return the oid of the tree that a package folder is, in the format whose oids have so many digits."""
    made = hashlib.sha1 if length == 40 else hashlib.sha256

    def oid(kind: str, content: bytes) -> bytes:
        return made(b"%s %d\0%s" % (kind.encode(), len(content), content), usedforsecurity=False).digest()

    paths = sorted(folder.iterdir(), key=lambda path: path.name.encode())
    entries = (b"%s %s\0%s" % (_PLAIN, path.name.encode(), oid("blob", path.read_bytes())) for path in paths)
    return oid("tree", b"".join(entries)).hex()


def check_tree(folder: Path, oid: str, where: str) -> None:
    """Refuse what somebody says of a package's tree, if that is not what its files make.

    Raises:
        PackageError: It is another tree's.
    """
    if oid and tree_oid(folder, len(oid)) != oid:
        raise PackageError(f"it lists the tree {oid}, and the files of this release make another", where=where)


def extract(git: Git, tree: tuple[str, bytes], target: Path, limits: Limits, missing: Missing | None) -> dict[str, int]:
    """Write the blobs of a flat tree to files; return their sizes by name.

    Everything is judged by name, mode and size before a byte is written.

    Args:
        git: Holds the blobs, or all but the large ones.
        tree: From :func:`find_tree`.
        target: Existing empty folder.
        limits: Bounds on files and bytes.
        missing: Where the others come from.

    Raises:
        PackageError: The tree holds what a package may not hold.
        TransportError: A blob is not there.
    """
    where = f"release {tree[0][:12]}"
    oids = _entries(tree, limits, where)
    sizes = sizes_of(git, oids)
    later = {name: oid for name, oid in oids.items() if name not in sizes}
    if later and missing is None:
        raise TransportError(f"the server kept back {', '.join(later)}", where=where)
    check_sizes(sizes, limits, where)
    write_blobs(git, {name: oid for name, oid in oids.items() if name in sizes}, sizes, target)
    if later and missing is not None:
        stated = missing.judge(target)
        if unlisted := sorted(later.keys() - stated.keys()):
            raise PackageError(f"not listed in the manifest: {', '.join(unlisted)}", where=where)
        expected = {**sizes, **{name: stated[name] for name in later}}
        check_sizes(expected, limits, where)
        rest = missing.fetch(expected, later)
        found = sizes_of(rest, later)
        for name in later:
            if found.get(name) != stated[name]:
                raise PackageError(f"{name} has {found.get(name)} bytes, the manifest says {stated[name]}", where=where)
        write_blobs(rest, later, found, target)
        sizes |= found
    return sizes


def sizes_of(git: Git, oids: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes of the blobs that are here, by name."""
    with _answers(git, "--batch-check", oids.values()) as output:
        found = [output.readline(256).split() for _ in oids]
    return {
        name: int(fields[2])
        for name, fields in zip(oids, found, strict=True)
        if len(fields) == 3 and fields[1] == b"blob"
    }


def read_blobs(git: Git, objects: Mapping[str, str], most: int) -> Iterator[tuple[str, bytes]]:
    """Yield the blobs that are here and no larger than so many bytes, by name."""
    sizes = {name: size for name, size in sizes_of(git, objects).items() if size <= most}
    with _answers(git, "--batch", [objects[name] for name in sizes]) as output:
        for name, size in sizes.items():
            output.readline(256)
            yield name, _exactly(output, size)
            output.read(1)


def write_blobs(git: Git, oids: Mapping[str, str], sizes: Mapping[str, int], target: Path) -> None:
    """Write blobs to new files of their names."""
    if not oids:
        return
    with _answers(git, "--batch", oids.values()) as output:
        for name, oid in oids.items():
            _copy_blob(output, oid, sizes[name], target / name)


def _entries(tree: tuple[str, bytes], limits: Limits, where: str) -> dict[str, str]:
    """Return the oids of a flat tree of plain files by name."""
    oids: dict[str, str] = {}
    oid, content = tree
    width = len(oid) // 2
    while content:
        mode, _, rest = content.partition(b" ")
        raw_name, ended, rest = rest.partition(b"\0")
        if not ended or len(rest) < width:
            raise PackageError("the release's tree is damaged", where=where)
        name = raw_name.decode("utf-8", "replace")
        if mode != _PLAIN:
            what = _KINDS.get(mode, mode.decode("ascii", "replace"))
            raise PackageError(f"a package holds plain files only, this is {what}", where=f"{where}/{name}")
        check_entry_name(name, f"{where}/{name}")
        oids[name], content = rest[:width].hex(), rest[width:]
        if len(oids) > limits.files:
            raise PackageError(f"more than {limits.files} files", where=where)
    return oids


@contextmanager
def _answers(git: Git, mode: str, objects: Iterable[str]) -> Iterator[IO[bytes]]:
    """Ask for objects, one after the other."""
    with scratch_file() if git.trusted else tempfile.TemporaryFile(dir=git.directory) as wanted:
        wanted.write("".join(f"{one}\n" for one in objects).encode())
        wanted.seek(0)
        with git.stream("cat-file", mode, stdin=wanted) as output:
            yield output


def _copy_blob(output: IO[bytes], oid: str, size: int, target: Path) -> None:
    header = output.readline(256).decode("ascii", "replace").split()
    if header != [oid, "blob", str(size)]:
        raise TransportError(f"git answered {' '.join(header)!r} for the object {oid}")
    with target.open("xb") as file:
        remaining = size
        while remaining:
            block = output.read(min(remaining, 1 << 20))
            if not block:
                raise TransportError(f"git stopped {remaining} bytes early in the object {oid}")
            file.write(block)
            remaining -= len(block)
    target.chmod(0o644)
    output.read(1)


def _exactly(output: IO[bytes], size: int) -> bytes:
    found = output.read(size)
    if len(found) != size:
        raise TransportError(f"git stopped {size - len(found)} bytes early")
    return found
