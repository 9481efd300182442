"""Lightning: two hooks, and its checkpoints hold only what is trained.

Needs ``pip install lightning``. (A file called lightning.py would hide the package.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from tiny import accuracy, base, play, same, sentences
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

import adaptergit


class Mood(lightning.LightningModule):
    """A base model with an adapter and a head to train."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(start)
        panel = adaptergit.adapters(self.model)
        panel.add("mood", "seq_bn[reduction_factor=2]")
        panel.add_head("mood", adaptergit.ClassificationHead(num_labels=2, labels=("unfriendly", "friendly")))
        panel.train("mood")

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
        """Return the loss."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train what the panel says."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter and its head only."""
        checkpoint["state_dict"] = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put them back: adapters are no part of a model's own state."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, stored in checkpoint["state_dict"].items():
                trained[name].copy_(stored)
        checkpoint["state_dict"] = self.state_dict()  # the base, for Lightning to find complete


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train, save, load; and read Lightning's checkpoint."""
    start = str(base(folder / "base", "classifier"))
    tokenizer = AutoTokenizer.from_pretrained(start)

    def collate(rows: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        texts, labels = zip(*rows, strict=True)
        return {**tokenizer(list(texts), return_tensors="pt", padding=True), "labels": torch.tensor(labels)}

    loader = DataLoader(list(zip(*sentences(16 * steps), strict=True)), batch_size=16, collate_fn=collate)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder
    )
    module = Mood(start)
    trainer.fit(module, loader)

    texts, gold = sentences(64, seed=1)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    adaptergit.adapters(module.model).save("mood", folder / "mood", license="Apache-2.0")
    same(module.model, adaptergit.load(folder / "mood", AutoModel.from_pretrained(start)), batch)
    checkpoint = next(folder.rglob("*.ckpt"))
    same(module.model, Mood.load_from_checkpoint(checkpoint, start=start, weights_only=True).model, batch)
    with torch.no_grad():
        logits = module.model(**batch).logits
    return {"checkpoint": f"{checkpoint.stat().st_size:,} bytes", "accuracy": accuracy(logits, gold)}


if __name__ == "__main__":
    play(main, steps=60)
