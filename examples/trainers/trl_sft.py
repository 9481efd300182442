"""TRL's ``SFTTrainer`` with a LoRA of ours: no ``peft_config``, the panel has frozen the base already.

Needs ``pip install trl``. A small Llama learns to write friendly sentences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import base, play, same, sentences
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import adaptergit
from adaptergit.training import AdapterCallback


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train, write, save, load, and export for serving."""
    start = base(folder / "base", "causal")
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)

    panel = adaptergit.adapters(model)
    panel.add(
        "friendly", "lora[r=16, alpha=32, attn_matrices=['q', 'k', 'v'], intermediate_lora=True, output_lora=True]"
    )
    panel.train("friendly")

    texts = [text for text, label in zip(*sentences(512), strict=True) if label]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(folder / "checkpoints"), max_steps=steps, learning_rate=1e-2, per_device_train_batch_size=16,
            save_steps=steps, max_length=16, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        ),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        callbacks=[AdapterCallback()],
    )  # fmt: skip
    trainer.train()

    panel.save("friendly", folder / "friendly", license="Apache-2.0")
    adaptergit.export(model, "friendly", folder / "peft", to="peft")  # for vLLM and others
    batch = tokenizer("the film is", return_tensors="pt")
    with torch.no_grad():
        written = model.eval().generate(**batch, max_new_tokens=3, do_sample=False)
    fresh = adaptergit.load(folder / "friendly", AutoModelForCausalLM.from_pretrained(start))
    same(model, fresh, batch)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    checkpoint = next((folder / "checkpoints").glob("checkpoint-*"))
    return {
        "last loss": losses[-1] if losses else None,
        "the adapter in the checkpoint": (checkpoint / "adapter_state.safetensors").is_file(),
        "it writes": tokenizer.decode(written[0], skip_special_tokens=True),
    }


if __name__ == "__main__":
    play(main, steps=60)
