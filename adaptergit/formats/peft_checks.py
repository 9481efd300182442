"""What a checkpoint of PEFT's says it is, checked before it is read: other numbers than PEFT's are not ours to give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptergit.errors import PackageError

# Starts that take a part out of the base model's own weights and begin the adapter with it.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_start(raw: Mapping[str, Any], where: str) -> None:
    """Refuse a LoRA whose start changed the weights of the base model, which it was trained on top of.

    Raises:
        PackageError: It did.
    """
    start = raw.get("init_lora_weights")
    if not isinstance(start, str) or not start.lower().startswith(_CHANGES_BASE):
        return
    hint = "in PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…) makes a plain LoRA of it"
    raise PackageError(
        f"init_lora_weights={start!r} changes the weights of the base model, which stay as they are here",
        where=where,
        hint="merge it in PEFT" if start.lower() == "loftq" else hint,
    )
