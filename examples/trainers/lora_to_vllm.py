"""A LoRA of a language model, trained here and served by vLLM or LoRAX: they read the folder that this writes.

In a shell, of a published one: ``adaptergit export acme/adapters@chat ./loras/chat --to vllm``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import base, play, same, sentences
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import adaptergit


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train, export, and read back what was exported."""
    start = base(folder / "base", "causal")
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)

    panel = adaptergit.adapters(model)
    # vLLM reads one rank for all layers, and neither DoRA nor biases: whatever it does not serve, export refuses.
    panel.add("friendly", "lora[r=8, alpha=16, attn_matrices=['q', 'k', 'v']]")
    panel.train("friendly")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    texts = [text for text, label in zip(*sentences(64 * steps), strict=True) if label]
    for lines in DataLoader(texts, batch_size=16):
        batch = tokenizer(list(lines), return_tensors="pt", padding=True)
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    adaptergit.export(model, "friendly", folder / "friendly", to="vllm")
    fresh = adaptergit.load(folder / "friendly", AutoModelForCausalLM.from_pretrained(start))
    prompt = tokenizer("the film is", return_tensors="pt")
    same(model, fresh, prompt)  # what vLLM reads is what was trained
    written = fresh.generate(**prompt, max_new_tokens=3, do_sample=False)
    read = json.loads((folder / "friendly" / "adapter_config.json").read_text())
    return {
        "last loss": round(loss.item(), 3),
        "it writes": tokenizer.decode(written[0], skip_special_tokens=True),
        "files": sorted(path.name for path in (folder / "friendly").iterdir()),
        "serve it": f"vllm serve BASE --enable-lora --max-lora-rank {read['r']} --lora-modules friendly=FOLDER",
    }


if __name__ == "__main__":
    play(main, steps=60)
