"""Pickled weights, made into safetensors by a process of its own: ``python unpickle.py IN OUT``.

A pickle is a program. ``weights_only`` restricts it to tensors; the process that runs it has little memory, time and
disk, and knows nothing of its parent's environment, should that restriction have a hole.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from adaptergit.errors import PackageError

_SECONDS = 120
_MEMORY = 6 << 30
"""Of address space, besides what the file needs; PyTorch alone maps several GiB."""


def unpickle(source: Path, target: Path, *, where: str) -> None:
    """Write the tensors of a pickled file to a safetensors file.

    Args:
        source: The pickle.
        target: The file to write.
        where: What people call the pickle.

    Raises:
        PackageError: It holds anything but tensors by name, or needs too much.
    """
    kept = ("PATH", "PYTHONPATH", "SYSTEMROOT", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    # -P, and whole paths: a person may well stand in the folder of the checkpoint, and modules in it are not ours.
    found = [str(Path(__file__).resolve().parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in found if path and Path(path).is_absolute())
    # As a file, not with -m: that would start transformers too.
    command = [sys.executable, "-P", str(Path(__file__).resolve()), str(source.resolve()), str(target.resolve())]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"reading the pickle took more than {_SECONDS} s", where=where) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it was stopped: it needed too much"]
        reason = "".join(char for char in said[-1] if char.isprintable())[:300]
        raise PackageError(
            f"the pickle cannot be made safetensors: {reason}", where=where, hint="ask whoever made it for safetensors"
        )


def _main(source: str, target: str) -> None:
    size = Path(source).stat().st_size
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        if sys.platform == "linux":  # macOS knows the limit, and refuses to set it
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + 4 * size, _MEMORY + 4 * size))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * size + (1 << 20), 4 * size + (1 << 20)))
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own words end with the advice to read it without that restriction.
        named = re.search(r"GLOBAL (\S+)", str(error))
        sys.exit(f"it calls for {named[1]}, and weights are tensors" if named else "it holds more than tensors by name")
    except (RuntimeError, ValueError, TypeError, EOFError, KeyError, AttributeError) as error:
        sys.exit(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    ):
        sys.exit("it holds more than tensors by name")
    save_file({key: value.detach().contiguous().clone() for key, value in found.items()}, target, {"format": "pt"})


if __name__ == "__main__":
    _main(*sys.argv[1:])
