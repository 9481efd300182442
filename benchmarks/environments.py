"""Where each contender runs: an interpreter and a path. ``make test-peers`` and ``make bench`` make them.

``ADAPTERGIT_ADAPTERS_PYTHON`` and ``ADAPTERGIT_PEFT_PYTHON`` name others, as in the tests.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PEERS = ROOT / ".venv-peers"


@dataclass(frozen=True)
class Environment:
    """What starts a contender."""

    module: str
    """Its file in ``contenders``."""
    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


def environment(contender: str) -> Environment | None:
    """Return where a contender runs, or None if it is not installed."""
    here = {"PYTHONPATH": str(ROOT)}
    if contender in ("ours", "plain"):
        return Environment(contender, (sys.executable,), here)
    oldest = ROOT / ".venv-oldest" / "bin" / "python"
    if contender == "ours on 4.57":
        return Environment("ours", (str(oldest),), here) if oldest.exists() else None
    if contender == "adapters":
        return _peer("adapterhub", "adapters", oldest)
    if contender == "peft on 4.57":
        return _peer("peft_library", "peft", oldest)
    if contender == "peft":
        found = _peer("peft_library", "peft", Path(sys.executable))
        if found is None and importlib.util.find_spec("peft") is not None:
            return Environment("peft_library", (sys.executable,))
        return found
    raise ValueError(f"nobody here is called {contender!r}")


def _peer(module: str, package: str, python: Path) -> Environment | None:
    given = os.environ.get(f"ADAPTERGIT_{package.upper()}_PYTHON")
    if given:
        return Environment(module, tuple(given.split()))
    if not (python.exists() and (_PEERS / package).is_dir()):
        return None
    return Environment(module, (str(python),), {"PYTHONPATH": str(_PEERS / package)})
