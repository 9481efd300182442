"""Training an adapter on a text classification file, from base model to package folder."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.errors import DataError, NotFoundError, UsageError
from adaptergit.package import Card
from adaptergit.reference import check_adapter_name, expand
from adaptergit.splice.checkpoint import card_data, frameworks
from adaptergit.splice.config import parse_config
from adaptergit.splice.heads import ClassificationHead
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.setup import single
from adaptergit.training.data import Examples, read_examples
from adaptergit.training.evaluate import Metrics, predict_logits, score

TASKS = ("text-classification",)


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides the result."""

    base: str
    """Folder or Hugging Face id of the base model."""
    train: Path
    eval: Path
    output: Path
    """Package folder to write; must be new, or an earlier output."""
    task: str = "text-classification"
    text_column: str = "text"
    label_column: str = "label"
    adapter: str = "seq_bn"
    """Config string."""
    name: str | None = None
    """Default: the output folder's name."""
    base_id: str | None = None
    """What the card calls the base model, where ``base`` is a folder."""
    epochs: float = 3.0
    learning_rate: float = 5e-4
    batch_size: int = 32
    max_length: int = 128
    """Tokens."""
    seed: int = 42
    resume: bool = False
    overwrite: bool = False
    """Replace an adapter that is in the output folder."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Card fields: license, description, authors, languages …"""

    def check(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            UsageError: Naming the field.
        """
        if self.task not in TASKS:
            raise UsageError(f"unknown task {self.task!r}", hint=f"known: {', '.join(TASKS)}")
        for name in ("epochs", "learning_rate", "batch_size", "max_length"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)!r}")
        check_adapter_name(self.adapter_name)
        parse_config(self.adapter)
        if (self.output / "card.yaml").exists() and not self.overwrite:
            raise UsageError(
                "the output folder holds an adapter already",
                where=str(self.output),
                hint="choose another folder, or --overwrite",
            )
        if self.output.exists() and (
            not self.output.is_dir() or ({p.name for p in self.output.iterdir()} - {"card.yaml", "adapter.safetensors"})
        ):
            raise UsageError("the output folder holds other files", where=str(self.output), hint="choose a new folder")

    @property
    def adapter_name(self) -> str:
        """Name of the adapter and of the card."""
        return self.name or self.output.resolve().name

    @property
    def checkpoints(self) -> Path:
        """Where the Trainer keeps what it needs to resume; beside the package, which is flat."""
        return self.output.with_name(f"{self.output.name}.checkpoints")


@dataclass(frozen=True)
class Progress:
    """One report while training."""

    stage: str
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """What came out."""

    output: Path
    name: str
    method: str
    labels: tuple[str, ...]
    metrics: Metrics
    adapter_parameters: int
    base_parameters: int
    adapter_bytes: int
    seconds: float
    logits: torch.Tensor
    """(evaluation samples, labels)."""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the logits as plain data; the last key holds the evaluation metrics."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("logits", "metrics")}
        return {**plain, "output": str(self.output), "labels": list(self.labels), "metrics": asdict(self.metrics)}


def train(spec: TrainSpec, report: Callable[[Progress], None] = lambda _: None) -> TrainResult:
    """Train, evaluate, and write a package folder with a filled-in card.

    Raises:
        UsageError, DataError, NotFoundError: Before anything is trained or written.
        ModelError: The base model cannot take the adapter.
    """
    spec.check()
    data = read_examples(spec.train, text_column=spec.text_column, label_column=spec.label_column)
    held_out = read_examples(spec.eval, text_column=spec.text_column, label_column=spec.label_column)
    labels = _labels(data, held_out)
    _needs_accelerate()
    report(Progress("loading the base model", 0, 1))
    model, tokenizer = load_base(spec.base)
    report(Progress("loading the base model", 1, 1))
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and spec.max_length > longest:
        raise UsageError(f"max_length is {spec.max_length}, the base model reads at most {longest} tokens")
    panel = prepare(model, spec.adapter_name, spec.adapter, labels, seed=spec.seed)
    # A card field that is not valid is better known before the training than after it.
    Card(
        card_data(
            panel,
            single(panel, spec.adapter_name),
            _card_fields(spec, data, held_out, Metrics(0.0, 0.0, len(held_out)), 0.0),
        )
    )
    started = time.monotonic()
    _run_trainer(spec, panel, tokenizer, data, labels, report)
    seconds = time.monotonic() - started
    logits = predict_logits(
        model,
        tokenizer,
        held_out.texts,
        batch_size=spec.batch_size,
        max_length=spec.max_length,
        report=lambda done, total: report(Progress("evaluating", done, total)),
    )
    metrics = score(logits, [labels.index(label) for label in held_out.labels or ()])
    card = _card_fields(spec, data, held_out, metrics, seconds)
    _write(panel, spec, card)
    shutil.rmtree(spec.checkpoints, ignore_errors=True)
    mine = spec.adapter_name
    return TrainResult(
        output=spec.output,
        name=mine,
        method=panel.config(mine).method,
        labels=labels,
        metrics=metrics,
        adapter_parameters=panel.parameters_of(mine),
        base_parameters=sum(p.numel() for p in model.base_model.parameters() if not p.requires_grad),
        adapter_bytes=sum(p.stat().st_size for p in spec.output.iterdir()),
        seconds=round(seconds, 3),
        logits=logits,
    )


def load_base(base: str) -> tuple[Any, Any]:
    """Load a base model and its tokenizer.

    Raises:
        NotFoundError: Neither a folder with a model nor an id that can be had.
    """
    from transformers import AutoModel, AutoTokenizer

    if base.startswith((".", "/", "~")) and not expand(base).is_dir():
        raise NotFoundError(
            "there is no such folder", where=base, hint="name a folder with config.json and model.safetensors"
        )
    base = str(expand(base))
    try:
        return AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"the base model cannot be loaded: {str(error).splitlines()[0]}",
            where=base,
            hint="name a folder with config.json and model.safetensors, or a Hugging Face id",
        ) from error


def prepare(model: nn.Module, name: str, adapter: str, labels: tuple[str, ...], *, seed: int) -> Panel:
    """Add a fresh adapter and head, reproducibly, and make them all that is trained."""
    from transformers import set_seed

    set_seed(seed)
    panel = adapters(model)
    panel.add(name, adapter)
    panel.add_head(name, ClassificationHead(num_labels=len(labels), labels=labels))
    panel.train(name)
    return panel


def _run_trainer(
    spec: TrainSpec,
    panel: Panel,
    tokenizer: Any,
    data: Examples,
    labels: tuple[str, ...],
    report: Callable[[Progress], None],
) -> None:
    from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    from adaptergit.training.trainer import AdapterTrainer, Reporter

    encoded = tokenizer(data.texts, truncation=True, max_length=spec.max_length)
    rows = [
        {**{key: encoded[key][i] for key in encoded}, "labels": labels.index(label)}
        for i, label in enumerate(data.labels or ())
    ]
    resume_from = get_last_checkpoint(str(spec.checkpoints)) if spec.resume and spec.checkpoints.is_dir() else None
    if spec.resume and resume_from is None:
        raise NotFoundError(
            "there is no checkpoint to resume from", where=str(spec.checkpoints), hint="train without --resume"
        )
    if not spec.resume:
        shutil.rmtree(spec.checkpoints, ignore_errors=True)
    arguments = TrainingArguments(
        output_dir=str(spec.checkpoints),
        num_train_epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        per_device_train_batch_size=spec.batch_size,
        seed=spec.seed,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=20,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        **_group_by_length(TrainingArguments),
    )
    trainer = AdapterTrainer(
        model=panel.model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Reporter(lambda done, total, loss: report(Progress("training", done, total, loss)))],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume_from)


def _group_by_length(arguments: type[Any]) -> dict[str, Any]:
    """Batches of similar lengths waste little on padding. transformers 5 renamed the option."""
    if "train_sampling_strategy" in {f.name for f in fields(arguments)}:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}


def _labels(data: Examples, held_out: Examples) -> tuple[str, ...]:
    labels = data.label_names()
    if len(labels) < 2:
        raise DataError(f"all labels are {labels[0]!r}: there is nothing to learn", where=str(data.path))
    if len(labels) > max(20, len(data) // 2):
        raise DataError(
            f"{len(labels)} different labels in {len(data)} lines",
            where=str(data.path),
            hint="is --label-column right?",
        )
    for line, label in enumerate(held_out.labels or (), 2):
        if label not in labels:
            raise DataError(
                f"example {line - 1} has the label {label!r}, which the training file does not have",
                where=str(held_out.path),
                hint=f"known labels: {', '.join(labels[:20])}",
            )
    return labels


def _card_fields(
    spec: TrainSpec, data: Examples, held_out: Examples, metrics: Metrics, seconds: float
) -> dict[str, Any]:
    about = dict(spec.about)
    task = {"type": spec.task, "dataset": data.path.name, "metric": "accuracy", **about.pop("task", {})}
    base = {"id": spec.base_id} if spec.base_id else {}
    return {
        "name": spec.adapter_name,
        "description": f"{parse_config(spec.adapter).method} adapter for {spec.task}, trained on {data.path.name}.",
        "task": task,
        "base_model": base,
        "training": {
            "data": data.path.name,
            "data_sha256": data.sha256,
            "samples": len(data),
            "hyperparameters": {
                "epochs": spec.epochs,
                "learning_rate": spec.learning_rate,
                "lr_schedule": "linear",
                "optimizer": "adamw",
                "batch_size": spec.batch_size,
                "max_length": spec.max_length,
            },
            "seed": spec.seed,
            "hardware": _hardware(),
            "duration_seconds": round(seconds, 1),
            "frameworks": frameworks(),
        },
        "evaluation": [
            {
                "dataset": held_out.path.name,
                "split": "eval",
                "metric": metric,
                "value": value,
                "samples": metrics.samples,
            }
            for metric, value in (("accuracy", metrics.accuracy), ("f1_macro", metrics.f1_macro))
        ],
        **about,
    }


def _write(panel: Panel, spec: TrainSpec, card: dict[str, Any]) -> None:
    """Write the package beside its place, then move it there: a crash leaves no half package."""
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spec.output.parent, prefix=f".{spec.output.name}.") as temporary:
        staged = Path(temporary) / "package"
        panel.save(spec.adapter_name, staged, **card)
        spec.output.mkdir(exist_ok=True)
        for path in staged.iterdir():
            path.replace(spec.output / path.name)


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}"


def _needs_accelerate() -> None:
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise UsageError("training needs accelerate", hint="pip install 'adaptergit[train]'")
