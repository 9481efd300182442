"""Safetensors files: reading one into one piece of memory that its tensors share, and writing one.

The very bytes that are hashed are used, and nothing is copied. A file that nobody may write to, like those of the
store, is mapped: processes that load the same adapter share its memory, until they train it. Any other file could be
another one a moment later, and is read. Only what an adapter may be is read, floating-point tensors that fill the file
without gaps.
Format: https://github.com/huggingface/safetensors (eight bytes that say how long the header is, the header, the data).
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from adaptergit.errors import DAMAGED_WEIGHTS, PackageError
from adaptergit.package.canonical import TwiceError, refuse_surrogates, unique
from adaptergit.package.folder import mapped
from adaptergit.package.foreign import check_header_size

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ALIGNED = 64
"""Bytes; what begins at a multiple of them is read fastest."""
_DIMENSIONS = 64
"""PyTorch has no more, and the product of a million numbers takes minutes."""


def read_tensors(path: Path, *, digest: str | None = None, held: memoryview | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, in the order of the file.

    Args:
        path: The file.
        digest: sha256 it must have.
        held: Its content, if that was checked already.

    Raises:
        PackageError: It is another file, not a safetensors file, or holds what no adapter holds.
    """
    where = str(path)
    data = _content(path, digest) if held is None else held
    header = check_header_size(bytes(data[:8]), where=where)
    if len(data) < 8 + header:
        raise _damaged("it ends within the header", where)
    described, values = bytes(data[8 : 8 + header]), data[8 + header :]
    refuse_surrogates(described, where)
    if isinstance(data.obj, mmap.mmap) and (8 + header) % _ALIGNED:  # written by others
        values = torch.empty(len(values), dtype=torch.uint8).numpy().data
        values[:] = data[8 + header :]
    try:
        return _views(values, json.loads(described.decode("utf-8"), object_pairs_hook=unique), where)
    except TwiceError as error:
        raise PackageError(f"in the header, {error}", where=where) from error
    except (ValueError, RecursionError, RuntimeError, TypeError) as error:  # torch: a shape that it cannot count
        raise _damaged(f"in the header, {error}", where) from error


def _content(path: Path, digest: str | None) -> memoryview:
    """Return what is in a file; where it is read, what comes after the header lies at a multiple of ``_ALIGNED``."""
    with path.open("rb") as stream:
        data = mapped(stream)
        if data is None:
            size, start = os.fstat(stream.fileno()).st_size, stream.read(8)
            first = -(8 + int.from_bytes(start, "little")) % _ALIGNED
            data = torch.empty(first + size, dtype=torch.uint8).numpy().data[first:]
            data[: len(start)] = start
            if stream.readinto(data[8:]) != max(size - 8, 0) or stream.read(1):
                raise PackageError("the weights were changed while they were loaded", where=str(path))
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise PackageError("the weights were changed while they were loaded", where=str(path))
    return data


def _views(data: memoryview, entries: Any, where: str) -> dict[str, torch.Tensor]:
    """Return the tensors that a header describes.

    Raises:
        ValueError: It is no header of this data.
        PackageError: It is of tensors that no adapter has.
    """
    if not isinstance(entries, dict):
        raise ValueError("there is no JSON object")
    about = entries.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("the metadata is not text by text")
    found: dict[str, tuple[torch.dtype, list[int], int, int]] = {}
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
                if dtype not in DTYPES:
                    what = f"the tensor {name} has dtype {dtype}, expected one of {', '.join(DTYPES)}"
                    raise PackageError(what, where=where)
                if len(shape) > _DIMENSIONS or not all(type(one) is int and one >= 0 for one in (*shape, begin, end)):
                    raise ValueError(
                        f"the tensor {name} has the shape {str(shape)[:200]} and the offsets {begin} and {end}"
                    )
                if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
                    raise ValueError(
                        f"the tensor {name} of shape {shape} does not fill the bytes from {begin} to {end}"
                    )
                found[name] = DTYPES[dtype], shape, begin, end
            case _:
                raise ValueError(f"the tensor {name} is described by {entry!r}"[:200])
    spans = sorted((begin, end) for _, _, begin, end in found.values())
    if any(one[1] != other[0] for one, other in pairwise([(0, 0), *spans, (len(data), len(data))])):
        raise ValueError("the offsets of tensors overlap, leave bytes out, or end elsewhere than the file")
    return {name: _view(data, *one) for name, one in sorted(found.items(), key=lambda item: item[1][2:])}


def _view(data: memoryview, dtype: torch.dtype, shape: list[int], begin: int, end: int) -> torch.Tensor:
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    # Not slices of one tensor: a change of one would count as a change of all, and each would be saved with all.
    piece = torch.frombuffer(data, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)
    return (piece if begin % _ALIGNED == 0 else piece.clone()).reshape(shape)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file of tensors on any device, shared or not.

    Raises:
        OSError: The disk is full, or may not be written to.
    """
    whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    data = memoryview(save(whole, metadata={"format": "pt"}))
    header = int.from_bytes(data[:8], "little")
    blanks = -(8 + header) % _ALIGNED  # the format lets a header end in them
    with path.open("wb") as stream:
        stream.writelines([(header + blanks).to_bytes(8, "little"), data[8 : 8 + header], b" " * blanks])
        stream.write(data[8 + header :])


def is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether no value is infinite or not a number: then their sum is finite, unless it is too large itself."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _damaged(what: str, where: str) -> PackageError:
    return PackageError(f"not a valid safetensors file: {what}", where=where, hint=DAMAGED_WEIGHTS)
