"""What the weights of a package are, told by the headers of its safetensors files alone: nothing is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adaptergit.errors import DAMAGED_WEIGHTS, PackageError, TransportError
from adaptergit.package.foreign import check_header_of

SETUP = "adapter_setup.json"
"""Marks a set-up of AdapterHub's: its members are in folders."""
_BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "F32": 32, "I32": 32, "U32": 32}
_BITS |= {"F64": 64, "I64": 64, "U64": 64, "C64": 64}
# Where, in the names that others give, a module of the model ends and the adapter in it begins.
_BEGINS = re.compile(
    r"\.(adapters|adapter_fusion_layer|loras|refts|prefix_tunings|gates|(lora|ia3|hada|lokr|oft|boft|hra|vera|fourierft|"
    r"miss|ln_tuning|prompt)_|modules_to_save|token_adapter|trainable_tokens)"
)
_OURS = re.compile(
    r"(?:(?:adapters|fusions)\.\d+\.)?(?:\d+\.)?blocks\.(\d+)\.(\w+)"
    r"(?:\.(q|k|v|qkv|o|up|gate|down)(?:$|\.(?!weight|bias|W|b$)))?"
)
_ONCE = re.compile(r"(?:^|\.)(embedding|prompt|shared|invertible_adapters|shared_parameters|prompt_tunings)\.")
_THEIRS = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Tensor:
    """One tensor in a file."""

    name: str
    """In the file."""
    file: Path
    dtype: str
    """As safetensors calls it: ``F32``, ``BF16`` …"""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * _BITS.get(self.dtype, 8) // 8

    @property
    def part(self) -> str:
        """``head``, ``fusion``, ``embeddings`` or ``adapter``: what it belongs to."""
        start = self.name.partition(".")[0]
        if start in ("head", "heads") or "head" in self.file.name:
            return "head"
        if start == "embeddings":
            return "embeddings"
        fusion = start == "fusions" or "adapter_fusion_layer" in self.name
        return "fusion" if fusion else "adapter"


def place_of(name: str) -> tuple[int | None, str]:
    """Return the block that a tensor or a place acts in, None outside of blocks, and where in it.

    >>> place_of("blocks.3.ffn.down.weight"), place_of("blocks.0.attention.q.lora_A")
    ((3, 'ffn'), (0, 'attention.q'))
    >>> place_of("base_model.model.encoder.layer.1.attention.self.query.lora_A.weight")
    (1, 'attention.self.query')
    """
    if (match := _OURS.match(name)) is not None:
        return int(match[1]), ".".join(part for part in match.group(2, 3) if part)
    path = _BEGINS.split(name)[0].removeprefix("base_model.model.")
    if (match := _THEIRS.search(path)) is not None:
        return int(match[1]), match[2]
    if (match := _ONCE.search(name)) is not None:
        return None, match[1]
    return None, path if path != name else name.rpartition(".")[0] or name


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all safetensors files of a folder by name, after the file's where two have the same.

    Raises:
        PackageError: One is not a safetensors file.
    """
    found: dict[str, Tensor] = {}
    for path in files_of(folder):
        if path.suffix == ".safetensors":
            with opened(path) as file:
                for name in sorted(file.keys()):
                    part = file.get_slice(name)
                    key = f"{path.relative_to(folder).as_posix()}:{name}" if name in found else name
                    found[key] = Tensor(name, path, str(part.get_dtype()), tuple(part.get_shape()))
    return found


def files_of(folder: Path) -> list[Path]:
    """Return the files of a package folder, and for a set-up of AdapterHub's those in its folders."""
    inside = folder.glob("*/*") if (folder / SETUP).is_file() else ()
    return sorted(path for path in (*folder.glob("*"), *inside) if path.is_file())


@contextmanager
def opened(path: Path, framework: str = "np") -> Iterator[Any]:
    """Open a safetensors file; its tensors are read one by one, when they are asked for.

    Raises:
        PackageError: It is none.
        TransportError: It cannot be read.
    """
    check_header_of(path)
    try:
        file = safe_open(str(path), framework=framework)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PackageError(f"not a valid safetensors file: {error}", where=str(path), hint=DAMAGED_WEIGHTS) from error
    except OSError as error:
        # safetensors calls a file that may not be read one that is not there.
        hidden = path.exists() and not os.access(path, os.R_OK)
        raise TransportError(f"cannot be read: {'Permission denied' if hidden else error}", where=str(path)) from error
    try:
        with file:
            yield file
    except SafetensorError as error:  # anything else is its reader's: a comparison may run out of memory
        raise PackageError(f"not a valid safetensors file: {error}", where=str(path), hint=DAMAGED_WEIGHTS) from error


def placement(names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return in which blocks something acts, by place; ``()`` for places outside of blocks.

    Args:
        names: Of tensors, or keys of places.
    """
    found: dict[str, set[int]] = {}
    for name in names:
        block, where = place_of(name)
        found.setdefault(where, set()).update(() if block is None else (block,))
    return {where: tuple(sorted(blocks)) for where, blocks in sorted(found.items())}
