"""What a checkpoint of PEFT's says it is, checked before it is read: other numbers than PEFT's are not ours to give."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from adaptergit.errors import PackageError
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.methods import LoRA, WeightForm

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


def check_biases(config: MethodConfig, biased: Collection[str], where: str) -> None:
    """Refuse tuned biases of layers whose output is multiplied: they are not in PEFT's product, but in ours.

    Args:
        config: Of the adapter.
        biased: Paths of layers that it acts on and that have tuned biases.
        where: What people call the checkpoint.

    Raises:
        PackageError: There are some.
    """
    if biased and multiplies(config):
        raise PackageError(
            f"a {config.method} with tuned biases of the same layers has no equivalent here: {min(biased)}.bias",
            where=where,
            hint="merge it in PEFT, or train it with bias='none'",
        )


def multiplies(config: MethodConfig) -> bool:
    """Tell whether an adapter does more to what a layer's matrix makes than to add to it."""
    if isinstance(config, LoRA):
        return config.use_dora
    return isinstance(config, WeightForm) and config.kind in ("oft", "boft", "hra")
