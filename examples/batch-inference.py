"""Batch inference over a data set: ``datasets.map``, and every row is answered by the adapter that it names.

Run: ``python examples/batch-inference.py [--quick]``; needs ``pip install datasets``. One base model, two adapters with
different labels; rows of one batch go to either. :class:`Answerer` holds the model and is called with batches of
columns, which is also what ``ray.data.Dataset.map_batches`` takes, with one model for each of its workers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModel, AutoTokenizer

import adaptergit

sys.path.insert(0, str(Path(__file__).parent / "trainers"))
from tiny import base, play, sentences

TASKS = {"mood": ("unfriendly", "friendly"), "thing": ("film", "book", "play")}


class Answerer:
    """A base model and its adapters; made once, called with batch after batch."""

    def __init__(self, start: Path, packages: Sequence[Path]) -> None:
        self.model = AutoModel.from_pretrained(start).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(start)
        self.panel = adaptergit.adapters(self.model)
        for package in packages:  # a reference does as well: "acme/adapters@mood"
            adaptergit.load(package, self.model, activate=False)

    def __call__(self, rows: dict[str, Sequence[str]]) -> dict[str, list[str]]:
        """Add a column with the answer of each row's adapter."""
        names = sorted(set(rows["adapter"]))
        self.panel.activate(adaptergit.Route(*rows["adapter"]), head=names)
        with torch.no_grad():
            output = self.model(**self.tokenizer(list(rows["text"]), return_tensors="pt", padding=True))
        heads = dict(zip(names, output.head_outputs if len(names) > 1 else [output], strict=True))
        # Every head has answered the rows of its own adapter, in their order.
        best = {name: iter(head.logits.argmax(dim=1).tolist()) for name, head in heads.items()}
        return {"answer": [TASKS[name][next(best[name])] for name in rows["adapter"]]}


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train two adapters, and answer a data set with both of them, mixed and one after the other."""
    start = base(folder / "base", "classifier")
    packages = [trained(start, task, folder / task, steps) for task in TASKS]
    texts = sentences(500, seed=1)[0]
    mixed = datasets.Dataset.from_dict({"text": texts, "adapter": [sorted(TASKS)[i % 2] for i in range(len(texts))]})
    # A fingerprint of one's own: else datasets would hash the whole model to see whether it was run before.
    answered = mixed.map(Answerer(start, packages), batched=True, batch_size=32, new_fingerprint="mixed")

    by_adapter = mixed.sort("adapter")
    apart = by_adapter.map(Answerer(start, packages), batched=True, batch_size=32, new_fingerprint="apart")
    key = ("text", "adapter", "answer")
    assert sorted(zip(*(answered[:][k] for k in key), strict=True)) == sorted(
        zip(*(apart[:][k] for k in key), strict=True)
    ), "an adapter answers otherwise beside another one"
    return {"rows": len(answered), "first": answered[0], "second": answered[1], "score": share(answered)}


def trained(start: Path, task: str, folder: Path, steps: int) -> Path:
    """Train an adapter for one of the tasks and return its package."""
    model, tokenizer = AutoModel.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    panel = adaptergit.adapters(model)
    panel.add(task, "seq_bn[reduction_factor=2]")
    panel.add_head(task, adaptergit.ClassificationHead(num_labels=len(TASKS[task]), labels=TASKS[task]))
    panel.train(task)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(steps):
        texts, moods = sentences(16, seed)
        gold = torch.tensor([right(task, text, mood) for text, mood in zip(texts, moods, strict=True)])
        model(**tokenizer(texts, return_tensors="pt", padding=True), labels=gold).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    panel.save(task, folder, license="Apache-2.0")
    return folder


def right(task: str, text: str, mood: int) -> int:
    """Return the index of the right answer."""
    return mood if task == "mood" else TASKS[task].index(text.split()[1])


def share(answered: Any) -> float:
    """Return the share of right answers."""
    moods = sentences(500, seed=1)[1]
    good = [
        row["answer"] == TASKS[row["adapter"]][right(row["adapter"], row["text"], mood)]
        for row, mood in zip(answered, moods, strict=True)
    ]
    return sum(good) / len(good)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    play(main, steps=60)
