"""One training by `adapters`, in the environment where it is installed; started by quality.py, which explains."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers


def main(spec: dict[str, Any]) -> dict[str, Any]:
    transformers.set_seed(spec["seed"])
    model = adapters.AutoAdapterModel.from_pretrained(spec["base"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["base"])
    known, held_out = read(spec["train"]), read(spec["eval"])
    labels = sorted({row["label"] for row in known})
    model.add_adapter("quality", config=spec["config"])
    model.add_classification_head("quality", num_labels=len(labels))
    model.train_adapter("quality")
    arguments = transformers.TrainingArguments(
        output_dir=spec["output"], num_train_epochs=spec["epochs"], learning_rate=spec["learning_rate"],
        per_device_train_batch_size=spec["batch_size"], per_device_eval_batch_size=spec["batch_size"],
        seed=spec["seed"], save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, group_by_length=True,
    )  # fmt: skip

    def rows(data: list[dict[str, str]]) -> list[dict[str, Any]]:
        found = tokenizer([row["text"] for row in data], truncation=True, max_length=spec["max_length"])
        return [
            {"input_ids": ids, "labels": labels.index(row["label"])}
            for ids, row in zip(found["input_ids"], data, strict=True)
        ]

    collate = transformers.DataCollatorWithPadding(tokenizer)
    trainer = adapters.AdapterTrainer(model, arguments, train_dataset=rows(known), data_collator=collate)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    said = trainer.predict(rows(held_out))
    right = (torch.tensor(said.predictions).argmax(dim=1) == torch.tensor(said.label_ids)).float().mean().item()
    folder = Path(spec["output"]) / "adapter"
    model.save_adapter(str(folder), "quality", with_head=True)
    return {
        "accuracy": round(right, 6),
        "parameters": sum(p.numel() for n, p in model.named_parameters() if ".adapters.quality." in n),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "seconds": round(seconds, 3),
        "steps": trainer.state.global_step,
    }


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
