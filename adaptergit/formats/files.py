"""The files of a checkpoint in a format of others; where a manifest names them, of the very bytes that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from adaptergit.errors import DAMAGED_WEIGHTS, NotFoundError, PackageError
from adaptergit.package.foreign import check_header, check_header_of, config

_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class Folder:
    """A folder of a checkpoint."""

    path: Path
    digests: Mapping[str, str] | None = None
    """sha256 by name: only files that are named may be read, and only these very bytes. None: a person's own folder."""

    def __contains__(self, name: str) -> bool:
        return (self.path / name).is_file() and (self.digests is None or name in self.digests)

    def __str__(self) -> str:
        return str(self.path)

    def folders(self) -> list[Folder]:
        """Return what set-ups keep their members in, in the order of their names."""
        return [Folder(path) for path in sorted(self.path.iterdir()) if path.is_dir()] if self.digests is None else []

    def json(self, name: str) -> dict[str, Any]:
        """Read a small JSON object, strictly.

        Raises:
            NotFoundError, PackageError: It is not there, or not one.
        """
        return config(self._read(name, _MAX_CONFIG), where=str(self.path / name))

    def tensors(self, name: str, pickled: str) -> dict[str, torch.Tensor]:
        """Read a safetensors file; explain a pickle.

        Args:
            name: Of the file.
            pickled: The same as others may have written it.

        Raises:
            NotFoundError, PackageError: It is not there, or not one.
        """
        if name not in self and pickled in self:
            raise PackageError(
                "the weights are pickled, and loading a pickle can run code",
                where=str(self.path / pickled),
                hint="adaptergit convert --allow-pickle makes safetensors of it, in a process of its own",
            )
        if name in self:
            check_header_of(self.path / name)
        data = self._read(name, None)
        check_header(data, where=str(self.path / name))
        try:
            return load(data)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise PackageError(
                f"not a valid safetensors file: {error}", where=str(self.path / name), hint=DAMAGED_WEIGHTS
            ) from error

    def _read(self, name: str, limit: int | None) -> bytes:
        path = self.path / name
        if name not in self:
            raise NotFoundError("no such file", where=str(path))
        with path.open("rb") as stream:
            data = stream.read(-1 if limit is None else limit + 1)
        if limit is not None and len(data) > limit:
            raise PackageError(f"more than {limit} bytes", where=str(path))
        if self.digests is not None and hashlib.sha256(data).hexdigest() != self.digests[name]:
            raise PackageError("the file was changed while it was loaded", where=str(path))
        return data
