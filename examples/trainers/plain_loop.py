"""A loop of one's own: nothing of transformers' Trainer, nothing of ours but the panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import accuracy, base, play, same, sentences
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

import adaptergit


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train, save, load."""
    start = base(folder / "base", "classifier")
    model = AutoModel.from_pretrained(start)  # no head: the panel has one
    tokenizer = AutoTokenizer.from_pretrained(start)

    panel = adaptergit.adapters(model)
    panel.add("mood", "seq_bn[reduction_factor=2]")
    panel.add_head("mood", adaptergit.ClassificationHead(num_labels=2, labels=("unfriendly", "friendly")))
    panel.train("mood")

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    loader = DataLoader(list(zip(*sentences(16 * steps), strict=True)), batch_size=16, shuffle=True)
    for texts, labels in loader:
        loss = model(**tokenizer(list(texts), return_tensors="pt", padding=True), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    texts, gold = sentences(64, seed=1)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    panel.save("mood", folder / "mood", license="Apache-2.0")
    same(model, adaptergit.load(folder / "mood", AutoModel.from_pretrained(start)), batch)
    total = sum(parameter.numel() for parameter in model.parameters())
    share = f"{sum(parameter.numel() for parameter in trained):,} of {total:,}"
    return {"trained": share, "accuracy": accuracy(logits, gold)}


if __name__ == "__main__":
    play(main, steps=60)
