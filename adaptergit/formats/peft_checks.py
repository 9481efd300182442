"""What a checkpoint of PEFT's says it is, checked before it is read: other numbers than PEFT's are not ours to give."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from adaptergit.errors import PackageError
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.methods import LoRA, WeightForm

# Starts that take a part out of the base model's own weights and begin the adapter with it.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS = {
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA of parameters that are no layer's",
}


def check_variant(raw: Mapping[str, Any], where: str) -> None:
    """Refuse what computes otherwise than a LoRA does.

    Raises:
        PackageError: It is a variant of LoRA.
    """
    for field, name in _VARIANTS.items():
        if raw.get(field):
            raise PackageError(f"{name} is not supported: {field}={str(raw[field])[:80]}", where=where)


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


def is_target(raw: Mapping[str, Any], path: str, *, linear: bool) -> bool:
    """Tell whether a checkpoint's configuration names a module, as PEFT decides it.

    Args:
        raw: The configuration.
        path: From the model that PEFT wrapped.
        linear: Whether "all-linear" means it.
    """
    wanted, saved = raw.get("target_modules"), raw.get("modules_to_save") or ()
    if _matches(raw.get("exclude_modules"), path):
        return False
    if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in saved):
        return False
    if isinstance(wanted, str):
        return linear if wanted.lower() == "all-linear" else _matches(wanted, path)
    return _matches(wanted, path) and (path in (wanted or ()) or _in_layers(raw, path))


def _matches(names: str | Iterable[str] | None, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _in_layers(raw: Mapping[str, Any], path: str) -> bool:
    """Tell whether the first number in a path is one of ``layers_to_transform``."""
    layers, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern") or ()
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    starts = [rf"(?:^|.*?\.){pattern}" for pattern in patterns] or [r".*?\.[^.]*"]
    found = next(filter(None, (re.match(rf"{start}\.(\d+)\.", path) for start in starts)), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def check_none_missing(missing: Collection[str], where: str) -> None:
    """Refuse a checkpoint that lacks what its configuration names.

    Raises:
        PackageError: Something is missing.
    """
    if missing:
        raise PackageError(
            f"{len(missing)} of what its configuration names have no tensors: {', '.join(sorted(missing)[:3])}…",
            where=where,
            hint="get the checkpoint again; or the model is of another class than the one that it was made with",
        )
