"""``AdapterSeq2SeqTrainer``: transformers' Seq2SeqTrainer, evaluation by generating included, for adapters.

A small T5 learns to say a sentence again without its first two words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import base, play, same, sentences
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

import adaptergit
from adaptergit.training import AdapterSeq2SeqTrainer


def main(folder: Path, steps: int) -> dict[str, Any]:
    """Train, write, save, load."""
    start = base(folder / "base", "seq2seq")
    model = AutoModelForSeq2SeqLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)
    panel = adaptergit.adapters(model)
    panel.add("shorter", "seq_bn[reduction_factor=1]")
    panel.train("shorter")

    def rows(count: int) -> list[dict[str, Any]]:
        texts = sentences(count, count)[0]
        short = [f"{text.split(' ', 2)[2]} </s>" for text in texts]
        return [{**tokenizer(t), "labels": tokenizer(s)["input_ids"]} for t, s in zip(texts, short, strict=True)]

    trainer = AdapterSeq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(folder / "checkpoints"), max_steps=steps, learning_rate=1e-2, per_device_train_batch_size=16,
            predict_with_generate=True, generation_max_length=8, save_steps=steps, report_to=[], disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows(256),
        eval_dataset=rows(16),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    written = trainer.predict(rows(16)).predictions
    texts = tokenizer.batch_decode([[t for t in row if t >= 0] for row in written.tolist()], skip_special_tokens=True)

    panel.save("shorter", folder / "shorter", license="Apache-2.0")
    fresh = adaptergit.load(folder / "shorter", AutoModelForSeq2SeqLM.from_pretrained(start))
    batch = tokenizer(["the film is very good"], return_tensors="pt")
    same(model, fresh, {**batch, "labels": batch["input_ids"]})
    checkpoint = next((folder / "checkpoints").glob("checkpoint-*"))
    return {"checkpoint": sorted(p.name for p in checkpoint.glob("*.safetensors")), "it writes": texts[:3]}


if __name__ == "__main__":
    play(main, steps=150)
