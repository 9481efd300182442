"""The table of model families: where each keeps its blocks and the residual branches in them.

A row says, with dotted paths from the base model, which ``ModuleList`` holds the blocks, and for each branch of a
block: ``output``, the module whose output is the branch before the residual is added; ``residual``, the module whose
first argument is the residual stream that will be added (inside the block: gradient checkpointing runs a block without
the block's own hooks); ``norm``, the post-norm that follows the sum, or None in pre-norm models.

To add a family, add a row and its ``model_type``; the tests splice into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Branch = Literal["attention", "cross_attention", "ffn", "moe", "mixer"]


@dataclass(frozen=True)
class BranchRow:
    """One residual branch of every block, as paths relative to the block."""

    branch: Branch
    output: str
    residual: str
    norm: str | None = None


@dataclass(frozen=True)
class Family:
    """One way of laying out a transformer."""

    blocks: str
    """Path of the ``ModuleList`` of blocks, from the base model."""
    branches: tuple[BranchRow, ...]
    """Cross-attention counts where a block has it."""
    model_types: tuple[str, ...]
    pooling: Literal["first", "last"]
    """Which position a classification head reads: the first (``[CLS]``), or the last that is no padding."""


FAMILIES: tuple[Family, ...] = (
    Family(
        "encoder.layer",
        (
            BranchRow("attention", "attention.output.dropout", "attention", "attention.output.LayerNorm"),
            BranchRow("cross_attention", "crossattention.output.dropout", "crossattention",
                      "crossattention.output.LayerNorm"),
            BranchRow("ffn", "output.dropout", "intermediate", "output.LayerNorm"),
        ),
        model_types=("bert", "roberta", "xlm-roberta", "camembert", "electra"), pooling="first",
    ),
    Family(
        "h",
        (
            BranchRow("attention", "attn", "ln_1"),
            BranchRow("cross_attention", "crossattention", "ln_cross_attn"),
            BranchRow("ffn", "mlp", "ln_2"),
        ),
        model_types=("gpt2",), pooling="last",
    ),
    Family(
        "layers",
        (BranchRow("attention", "self_attn", "input_layernorm"), BranchRow("ffn", "mlp", "post_attention_layernorm")),
        model_types=("llama", "mistral", "qwen2", "qwen3"), pooling="last",
    ),
)  # fmt: skip


# Hidden states are (positions, rows, width); True: only what attention projects is.
POSITIONS_FIRST = {"fsmt": False, "led": True, "longformer": True, "xlnet": False}


def family_of(model_type: str) -> Family | None:
    """Return the row of a ``config.model_type``, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
