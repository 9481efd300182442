"""``transformers.Trainer`` as it is. The lines marked ``# +`` are all that an adapter adds.

The callback writes the adapter into every checkpoint and takes the best one's at the end; without it the Trainer trains
just as well. With ``adaptergit.training.AdapterTrainer`` in place of Trainer, checkpoints leave the base model out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import base, play, same, sentences
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import adaptergit
from adaptergit.training import AdapterCallback


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train, save, load."""
    start = base(folder / "base", "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)

    panel = adaptergit.adapters(model)
    panel.add("mood", "seq_bn[reduction_factor=2]")  # +
    panel.train("mood")  # +

    rows, held_out = ([{**tokenizer(t), "labels": label} for t, label in zip(*sentences(n, n), strict=True)]
                      for n in (256, 64))  # fmt: skip
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(folder / "checkpoints"), max_steps=steps, learning_rate=1e-2, per_device_train_batch_size=16,
            eval_strategy="steps", save_strategy="steps", eval_steps=steps // 2, save_steps=steps // 2,
            load_best_model_at_end=True, report_to=[], disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
        callbacks=[AdapterCallback()],  # +
    )  # fmt: skip
    trainer.train()

    panel.save("mood", folder / "mood", license="Apache-2.0")
    fresh = adaptergit.load(folder / "mood", AutoModelForSequenceClassification.from_pretrained(start))
    same(model, fresh, tokenizer(["the film is very good"], return_tensors="pt"))
    saved = sorted(path.parent.name for path in (folder / "checkpoints").glob("*/adapter_state.safetensors"))
    return {"checkpoints with the adapter": saved, "accuracy": trainer.evaluate()["eval_accuracy"]}


if __name__ == "__main__":
    play(main, steps=100)
