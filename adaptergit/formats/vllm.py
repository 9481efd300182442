"""Write a LoRA as vLLM and LoRAX serve it: PEFT's files, of what their kernels compute."""

from __future__ import annotations

import shlex
from pathlib import Path

from adaptergit.errors import UsageError
from adaptergit.formats.adapterhub import CONFIG
from adaptergit.formats.files import Folder
from adaptergit.formats.peft_write import write_peft
from adaptergit.splice.methods import LoRA
from adaptergit.splice.panel import Panel

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be, <https://docs.vllm.ai/en/latest/features/lora.html>."""


def write_vllm(panel: Panel, name: str, folder: Path) -> None:
    """Write a LoRA adapter of a causal language model.

    They read one rank and one alpha for all layers and ignore patterns, and refuse DoRA, biases and whole modules.

    Raises:
        UsageError: It would not be served, or would compute something else; nothing is written.
    """
    config = panel.config(name)
    if type(config) is not LoRA:
        raise UsageError(
            f"vLLM serves LoRA adapters, and this is {config.method}",
            hint="train with --adapter lora; adaptergit predict runs this one",
        )
    if config.use_dora or config.use_gating or config.lora_bias:
        raise UsageError("vLLM serves LoRA without DoRA, gates or biases", hint="train with --adapter lora")
    if config.rank_pattern or config.alpha_pattern:
        raise UsageError("vLLM reads one rank and one alpha for all layers", hint="this one has patterns of them")
    if not hasattr(panel.model, "lm_head"):
        # Seldom needed, and slow to import.
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        kind = type(panel.model).__name__
        causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        raise UsageError(
            f"vLLM serves adapters of causal language models, and this is a {kind}",
            hint="it serves Llama and its kin; adaptergit serve and predict run this one"
            if causal
            else "load the base model with AutoModelForCausalLM (--model-class)",
        )
    if config.r > RANKS[-1]:
        raise UsageError(f"vLLM serves ranks up to {RANKS[-1]}, and this is {config.r}")
    write_peft(panel, name, folder, patterns=False)


def serve_command(folder: Path, name: str, base: str | None = None) -> str:
    """Return the command that serves a written adapter under a name, for people to copy.

    Args:
        folder: It was written to.
        name: For requests to ask for.
        base: Where the base model is; default: the id in the files.

    Raises:
        NotFoundError, PackageError: There is no adapter in the folder.
    """
    raw = Folder(folder).json(CONFIG)
    model, rank = base or str(raw.get("base_model_name_or_path") or "BASE"), served_rank(int(raw["r"]))
    module = shlex.quote(f"{name}={folder.resolve()}")
    return f"vllm serve {shlex.quote(model)} --enable-lora --max-lora-rank {rank} --lora-modules {module}"


def served_rank(r: int) -> int:
    """Return the least ``--max-lora-rank`` that serves a rank."""
    return next(rank for rank in RANKS if rank >= r)
