"""Export: an adapter of a model as a folder in the format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptergit.errors import UsageError
from adaptergit.formats.adapterhub_write import write_adapterhub
from adaptergit.formats.peft_write import write_peft
from adaptergit.formats.vllm import write_vllm
from adaptergit.splice.panel import adapters

WRITERS = {"adapterhub": write_adapterhub, "peft": write_peft, "vllm": write_vllm}


def export(model: Any, name: str, folder: str | Path, *, to: str) -> None:
    """Write an adapter so that another library computes the same with it.

    Args:
        model: With the adapter in its panel.
        name: Of the adapter; its head of the same name goes with it where the format has heads.
        folder: Created if missing.
        to: "adapterhub" (AdapterHub's ``adapters`` 1.3), "peft", or "vllm" (PEFT's, if vLLM and LoRAX serve it).

    Raises:
        UsageError: No such adapter or format, or it has no exact equivalent there; nothing is written.
    """
    if to not in WRITERS:
        raise UsageError(f"unknown format {to!r}", hint=", ".join(sorted(WRITERS)))
    WRITERS[to](adapters(model), name, Path(folder))
