"""Training an adapter on a file, from base model to package folder.

read → load the base → add and freeze → ``transformers.Trainer`` → answer the held-out file → score → write. Under
``torchrun`` or ``accelerate launch`` every process runs this: they share steps and held-out batches, the first writes.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.base_place import place_of
from adaptergit.errors import DataError, UsageError, installing
from adaptergit.package import CARD, Card
from adaptergit.package.curve import FAR, thinned
from adaptergit.splice.checkpoint import card_data, frameworks
from adaptergit.splice.config import parse_config
from adaptergit.splice.heads import HeadConfig
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.setup import single
from adaptergit.training.base import load_base, load_for, words_tokenizer
from adaptergit.training.evaluate import answers_of
from adaptergit.training.leftovers import leaving
from adaptergit.training.measures import Metrics, measured
from adaptergit.training.processes import check_sharing, gather, is_first, needs, sharded_apart, wait
from adaptergit.training.readers import read_rows
from adaptergit.training.resume import begin, finished, go_on, scores
from adaptergit.training.rows import Data
from adaptergit.training.spec import TrainSpec
from adaptergit.training.tasks import Task, Tools

_SCORE = "epoch_score"
"""In Trainer's log, and so in its checkpoints."""


@dataclass(frozen=True)
class Progress:
    """One report while training."""

    stage: str
    """``loading the base model``, ``training``, and what comes then, in words."""
    done: int
    """Steps, or examples."""
    total: int
    """Of how many."""
    loss: float | None = None
    """Mean since the last report; None: nothing was trained."""


@dataclass(frozen=True)
class TrainResult:
    """What came out."""

    output: Path
    """The package folder."""
    name: str
    """Of the adapter."""
    task: str
    """As ``adaptergit train --task`` knows it."""
    method: str
    """As the card names it."""
    labels: tuple[str, ...]
    """In the order of the logits."""
    metrics: Metrics
    """On the held-out file."""
    learning_rate: float
    """That was used."""
    seed: int
    """That was used."""
    adapter_parameters: int
    """Trained, without the head."""
    base_parameters: int
    """Of the base model, all frozen."""
    adapter_bytes: int
    """Of all files of the package."""
    seconds: float
    """Of training and evaluation."""
    losses: tuple[float, ...]
    """Mean training loss of every logging interval."""
    answers: tuple[Any, ...]
    """What the model says to every held-out example: logits (labels,), tags, texts …; of a finished run, nothing."""
    notes: tuple[str, ...] = ()
    """What the person should know, for example that the run was finished before."""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the answers as plain data; the last key holds the evaluation metrics."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("answers", "metrics")}
        lists = {key: list(value) for key, value in plain.items() if isinstance(value, tuple)}
        return {**plain, **lists, "output": str(self.output), "metrics": self.metrics.to_json()}


@dataclass(frozen=True)
class _History:
    """What was measured while training."""

    loss: tuple[tuple[int, float], ...] = ()
    """By step: the mean of every logging interval."""
    score: tuple[tuple[float, float], ...] = ()
    """By epoch, where early stopping looks at one."""


@dataclass(frozen=True)
class _Ready:
    """All that a training needs."""

    spec: TrainSpec
    task: Task
    panel: Panel
    tools: Tools
    data: Data
    held_out: Data
    validation: Data | None
    report: Callable[[Progress], None]


def train(spec: TrainSpec, report: Callable[[Progress], None] = lambda _: None) -> TrainResult:
    """Train, evaluate, and write a package folder with a filled-in card.

    Raises:
        UsageError, DataError, NotFoundError: Before anything is trained or written.
        ModelError: The base model cannot take the adapter.
        StorageError: The disk is full, or may not be written to.
    """
    if not isinstance(spec, TrainSpec):
        raise UsageError(f"expected a TrainSpec, not {type(spec).__name__}", hint="train(TrainSpec(base=…, train=…))")
    spec.check()
    kind = spec.task_class
    columns = kind.with_columns(spec.columns)
    data, held_out = (read_rows(path, list(columns.values())) for path in (spec.train, spec.eval))
    task = kind.learn(columns, data)
    task.check(held_out)
    data, validation = _validation(spec, task, data)
    needs("accelerate", installing("adaptergit[train]"))
    check_sharing(spec)
    report(Progress("loading the base model", 0, 1))
    model, inputs, fresh = load_for(spec.base, kind)
    report(Progress("loading the base model", 1, 1))
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and spec.max_length > longest:
        what = f"max_length is {spec.max_length}, the base model reads at most {longest} tokens"
        raise UsageError(what, hint=f"train with --max-length {longest}")
    if kind.by_word:
        inputs = words_tokenizer(inputs, spec.base)
    panel = prepare(model, spec.adapter_name, spec.adapter, task.head(), seed=spec.seed)
    for name in fresh:
        model.get_parameter(name).requires_grad_(True)
    ready = _Ready(spec, task, panel, Tools(inputs, spec.max_length), data, held_out, validation, report)
    # What the card would refuse is refused now, not after an hour.
    blank = Metrics({"score": 0.0}, {}, len(held_out), "score")
    card = Card(
        card_data(panel, single(panel, spec.adapter_name), _card_fields(ready, blank, 0.0, published=not fresh))
    )
    base_parameters = sum(p.numel() for p in model.base_model.parameters() if not p.requires_grad)
    if spec.resume and (before := finished(spec, card)) is not None:
        return _taken(ready, before, base_parameters)
    resume_from = go_on(spec, card.data) if spec.resume else None
    _check_rows(ready)
    mine = spec.adapter_name
    with leaving(spec.output, spec.checkpoints, mine=is_first()):
        started = time.monotonic()
        history = _run_trainer(ready, card, resume_from)
        seconds = time.monotonic() - started
        answers = _answers(ready, held_out, "evaluating")
        metrics = measured(task.measures(answers, held_out), len(answers))
        gather(panel, mine)
        if is_first():
            about = _card_fields(ready, metrics, seconds, published=not fresh, history=history)
            # As it was before training: where the base is sharded, its fingerprint cannot be taken any more.
            _write(panel, spec, {**about, "base_model": card.data["base_model"]})
            shutil.rmtree(spec.checkpoints, ignore_errors=True)
        wait()
    note = "the base model has no output layer for this task: one was trained along, scored with, and left behind"
    return TrainResult(
        output=spec.output,
        name=mine,
        task=spec.task,
        method=panel.config(mine).method,
        labels=task.labels,
        metrics=metrics,
        learning_rate=spec.rate,
        seed=spec.seed,
        adapter_parameters=panel.parameters_of(mine),
        base_parameters=base_parameters,
        adapter_bytes=sum(p.stat().st_size for p in spec.output.iterdir()),
        seconds=round(seconds, 3),
        losses=tuple(round(loss, 6) for _, loss in history.loss),
        answers=tuple(answers),
        notes=(note,) if fresh else (),
    )


def _taken(ready: _Ready, card: Card, base_parameters: int) -> TrainResult:
    """Return what a run that was finished before came to, as its card says."""
    spec, training = ready.spec, card.data["training"]
    return TrainResult(
        output=spec.output,
        name=spec.adapter_name,
        task=spec.task,
        method=card.method,
        labels=ready.task.labels,
        metrics=scores(card),
        learning_rate=spec.rate,
        seed=spec.seed,
        adapter_parameters=ready.panel.parameters_of(spec.adapter_name),
        base_parameters=base_parameters,
        adapter_bytes=sum(p.stat().st_size for p in spec.output.iterdir()),
        seconds=float(training["duration_seconds"]),
        losses=tuple(loss for _, loss in training.get("curve", {}).get("loss", ())),
        answers=(),
        notes=("it was finished before: this is what its card says",),
    )


def prepare(model: nn.Module, name: str, adapter: str, head: HeadConfig | None, *, seed: int) -> Panel:
    """Add a fresh adapter and head, reproducibly, and make them all that is trained."""
    from transformers import set_seed

    set_seed(seed)
    panel = adapters(model)
    panel.add(name, adapter)
    if head is not None:
        panel.add_head(name, head)
    panel.train(name)
    return panel


def _validation(spec: TrainSpec, task: Task, data: Data) -> tuple[Data, Data | None]:
    """Return what is trained on, and what early stopping looks at."""
    if spec.patience is None:
        return data, None
    if spec.validation is not None:
        apart = read_rows(spec.validation, list(task.columns.values()))
        task.check(apart)
        return data, apart
    order = list(range(len(data)))
    random.Random(0).shuffle(order)  # noqa: S311 - a reproducible split, no secret
    size = len(data) // 10
    if not size:
        raise DataError("too few examples to set a tenth aside", where=str(data.path), hint="--validation FILE")
    chosen = set(order[:size])
    kept, apart_rows = ([row for i, row in enumerate(data) if (i in chosen) is other] for other in (False, True))
    return replace(data, rows=tuple(kept)), replace(data, rows=tuple(apart_rows))


def _check_rows(ready: _Ready) -> None:
    """Make inputs of all that will be scored: a row that cannot be is refused now, not after an hour."""
    for data in (ready.held_out, ready.validation):
        for _ in ready.task.encoded(data, ready.tools) if data is not None else ():
            pass  # images are opened one by one


def _answers(ready: _Ready, data: Data, stage: str) -> list[Any]:
    report = (lambda done, total: ready.report(Progress(stage, done, total))) if is_first() else (lambda *_: None)
    size = ready.spec.batch_size
    return answers_of(ready.task, ready.panel.model, data, ready.tools, batch_size=size, report=report)


def _run_trainer(ready: _Ready, card: Card, resume_from: Path | None) -> _History:
    from transformers import EarlyStoppingCallback, PrinterCallback

    from adaptergit.training.order import Order
    from adaptergit.training.trainer import AdapterTrainer, Reporter, reshard

    spec, task = ready.spec, ready.task
    features = task.features(ready.data, ready.tools)
    arguments = _arguments(ready, len(features))

    class Scored(AdapterTrainer):
        """Evaluates with the task's own measures, and deals out batches so that more processes change nothing."""

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            assert ready.validation is not None
            answers = _answers(ready, ready.validation, "validating")
            found = measured(task.measures(answers, ready.validation), len(answers), resamples=1)
            metrics = {f"eval_{found.main}": found.first if found.higher_is_better else -found.first}
            metrics["eval_score"] = metrics[f"eval_{found.main}"]
            self.log({**metrics, _SCORE: found.first})
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            if not spec.fsdp:  # sharded, it cannot be put together; such a run starts over
                super()._save_optimizer_and_scheduler(output_dir)

        def _get_train_sampler(self, *_: Any) -> Any:
            return Order(features, spec.batch_size, spec.seed, lambda: int(self.state.epoch or 0))

    callbacks: list[Any] = []
    if is_first():
        callbacks.append(Reporter(lambda done, total, loss: ready.report(Progress("training", done, total, loss))))
    if spec.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=spec.patience))
    trainer = Scored(
        model=ready.panel.model,
        args=arguments,
        train_dataset=features,
        eval_dataset=[] if ready.validation is not None else None,
        data_collator=task.collate(ready.tools),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if resume_from is None and is_first():
        begin(spec, card.data)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from is not None else None)
    if spec.fsdp and not reshard(ready.panel.model):
        raise UsageError("accelerate did not shard the model", hint="update accelerate, or leave --fsdp out")
    logs = trainer.state.log_history
    return _History(
        tuple((int(log["step"]), float(log["loss"])) for log in logs if "loss" in log),
        tuple((round(float(log["epoch"]), 4), float(log[_SCORE])) for log in logs if _SCORE in log),
    )


def _arguments(ready: _Ready, size: int) -> Any:
    from transformers import TrainingArguments

    spec = ready.spec
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if spec.batch_size % world:
        raise UsageError(
            f"batch_size is {spec.batch_size}, which {world} processes cannot share",
            hint=f"--batch-size {max(spec.batch_size // world, 1) * world}",
        )
    stopping = spec.patience is not None
    best: dict[str, Any] = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_score",
        "greater_is_better": True,
    }
    sharding: dict[str, Any] = {}
    if spec.fsdp:
        sharding = {
            "fsdp": True,
            "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": sharded_apart(ready.panel.model)},
        }
    return TrainingArguments(
        output_dir=str(spec.checkpoints),
        num_train_epochs=spec.epochs,
        learning_rate=spec.rate,
        per_device_train_batch_size=spec.batch_size // world,
        seed=spec.seed,
        save_strategy="epoch",
        eval_strategy="epoch" if stopping else "no",
        save_total_limit=1,
        # Their checkpoints would hold the whole base model; with the best epoch to be loaded, transformers insists.
        save_only_model=(spec.fsdp or spec.deepspeed is not None) and not stopping,
        logging_steps=20 if size > 20 * spec.batch_size else 1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=list(ready.task.label_names),
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=spec.precision == "bf16",
        fp16=spec.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        deepspeed=str(spec.deepspeed) if spec.deepspeed is not None else None,
        **(best if stopping else {}),
        **sharding,
    )


def _card_fields(
    ready: _Ready, metrics: Metrics, seconds: float, *, published: bool, history: _History = _History()
) -> dict[str, Any]:
    """Return what the card says of training and evaluation.

    Args:
        published: All that was scored is in the package.
        history: How it went.
    """
    spec, data, held_out = ready.spec, ready.data, ready.held_out
    about = dict(spec.about)
    task = {"type": spec.task, "dataset": spec.train.name, "metric": metrics.main, **about.pop("task", {})}
    known_as = spec.base_id or place_of(spec.base).id
    base = {"id": known_as} if known_as else {}
    precision = {"precision": spec.precision} if spec.precision != "fp32" else {}
    stopping: dict[str, Any] = {"early_stopping_patience": spec.patience} if spec.patience is not None else {}
    if spec.validation is not None and ready.validation is not None:
        stopping["validation_sha256"] = ready.validation.sha256
    deepspeed = {"deepspeed_sha256": sha256(spec.deepspeed.read_bytes()).hexdigest()} if spec.deepspeed else {}
    theirs = json.loads(spec.deepspeed.read_text("utf-8")) if spec.deepspeed else {}
    scores = [
        {
            "dataset": held_out.path.name,
            "split": "eval",
            "metric": metric,
            "value": value,
            "samples": metrics.samples,
            "data_sha256": held_out.sha256,
            "interval": list(metrics.intervals.get(metric, (value, value))),
        }
        for metric, value in metrics.values.items()
    ]
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
                "learning_rate": spec.rate,
                "lr_schedule": theirs.get("scheduler", {}).get("type", "linear"),
                "optimizer": theirs.get("optimizer", {}).get("type", "adamw").lower(),
                "batch_size": spec.batch_size,
                "max_length": spec.max_length,
                "columns": dict(ready.task.columns),
                **precision,
                **stopping,
                **deepspeed,
            },
            "seed": spec.seed,
            "hardware": _hardware(),
            "duration_seconds": round(seconds, 1),
            "frameworks": frameworks(),
            **_curve(history, metrics.main),
        },
        **({"evaluation": scores} if published else {}),
        **about,
    }


def _curve(history: _History, metric: str) -> dict[str, Any]:
    loss, score = (thinned([p for p in one if abs(p[1]) < FAR]) for one in (history.loss, history.score))
    found = {**({"loss": loss} if loss else {}), **({"score": score, "metric": metric} if score else {})}
    return {"curve": found} if found else {}


def _write(panel: Panel, spec: TrainSpec, card: dict[str, Any]) -> None:
    """Write the package beside its place, then move it there: a crash leaves no half package."""
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spec.output.parent, prefix=f".{spec.output.name}.") as temporary:
        staged = Path(temporary) / "package"
        panel.save(spec.adapter_name, staged, **card)
        spec.output.mkdir(exist_ok=True)
        # An old card must not stand beside new weights, nor a new one alone.
        (spec.output / CARD).unlink(missing_ok=True)
        for path in sorted(staged.iterdir()):
            path.replace(spec.output / path.name)


def _hardware() -> str:
    several = int(os.environ.get("WORLD_SIZE", "1"))
    shared = f"{several} processes, " if several > 1 else ""
    if torch.cuda.is_available():
        return f"{shared}{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{shared}CPU, {torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}"


__all__: Sequence[str] = ["Progress", "TrainResult", "load_base", "prepare", "train"]
