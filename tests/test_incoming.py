"""How large a pack will be is told from its beginning, whatever is in it; what is no pack is nobody's error."""

from __future__ import annotations

import random
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import git
from hypothesis import given
from hypothesis import strategies as st

from adaptergit.git.incoming import Incoming


def pack(folder: Path, blobs: list[bytes]) -> bytes:
    """Return a pack of some blobs as git sends it, deltas and all."""
    git(folder, "init", "-q")
    oids = []
    for number, blob in enumerate(blobs):
        (folder / str(number)).write_bytes(blob)
        oids.append(git(folder, "hash-object", "-w", str(number)).strip())
    made = subprocess.run(
        ["git", "pack-objects", "--stdout", "--delta-base-offset", "-q"],
        input="".join(f"{oid} file\n" for oid in dict.fromkeys(oids)).encode(), cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    return made.stdout


def followed(folder: Path, data: bytes, ends: list[int]) -> list[tuple[int, int | None]]:
    """Return what was known of a file each time that it had grown to one of some sizes."""
    path, incoming, known = folder / "tmp_pack", Incoming(), []
    for end in ends:
        path.write_bytes(data[:end])
        incoming.follow(path)
        known.append((end, incoming.total))
    return known


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=6),
    large=st.integers(300_000, 400_000),
    at=st.integers(0, 6),
    seed=st.integers(0, 10),
    cuts=st.lists(st.floats(0, 1), max_size=8),
)
def test_it_is_known_as_soon_as_the_weights_begin(
    sizes: list[int], large: int, at: int, seed: int, cuts: list[float]
) -> None:
    drawn = random.Random(seed)
    small = [drawn.randbytes(size) for size in sizes]
    blobs = [*small, *(blob + b"more" for blob in small), b"x" * 5_000]  # what git sends as deltas, and compresses
    blobs.insert(at, drawn.randbytes(large))
    with tempfile.TemporaryDirectory() as name:
        data = pack(Path(name), blobs)
        ends = sorted({*(int(cut * len(data)) for cut in cuts), len(data)})
        known = followed(Path(name), data, ends)
        for end, total in known:
            assert total is None or total == pytest.approx(len(data), rel=0.1)
            assert total is not None or end <= len(data) - large
        assert known[-1][1] is not None


@given(st.binary(max_size=400), st.integers(0, 400))
def test_what_is_no_pack_is_left_to_git(data: bytes, end: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        followed(Path(name), data, sorted({min(end, len(data)), len(data)}))
        followed(Path(name), b"PACK\0\0\0\2\0\0\0\7" + data, [len(data) + 12])
