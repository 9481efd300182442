"""Predict: load an adapter with its head, run it over texts, name the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptergit.bases import base_tokenizer, trained_length
from adaptergit.errors import DataError, ModelError, UsageError
from adaptergit.load import load
from adaptergit.settings import load_settings
from adaptergit.splice.panel import adapters
from adaptergit.training.base import load_base
from adaptergit.training.data import read_examples
from adaptergit.training.evaluate import predict_logits, score
from adaptergit.training.measures import Metrics


@dataclass(frozen=True)
class Predictions:
    """One label for every text."""

    texts: list[str]
    labels: list[str]
    probabilities: list[float]
    """Of the label given."""
    logits: torch.Tensor
    """(texts, labels)."""
    metrics: Metrics | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        rows = [
            {"label": label, "probability": round(probability, 6), "logits": logits}
            for label, probability, logits in zip(self.labels, self.probabilities, self.logits.tolist(), strict=True)
        ]
        return {"predictions": rows, "metrics": self.metrics.to_json() if self.metrics else None}


def predict(
    ref: str | Path,
    *,
    texts: list[str] | None = None,
    file: Path | None = None,
    text_column: str = "text",
    label_column: str | None = None,
    base: str | None = None,
    batch_size: int = 32,
    policy: str | None = None,
    offline: bool = False,
    index: str | Path | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Predictions:
    """Run an adapter over texts, or over a file of them.

    Args:
        ref: A reference or a package folder.
        texts: Or ``file``, with ``text_column`` and, to score, ``label_column``.
        base: Folder of the base model; default: the settings' mapping of the card's id, or the id.
        batch_size: Texts at once.
        policy: See :func:`adaptergit.load`, as ``offline`` and ``index``.
        report: Called with (done, total).

    Raises:
        UsageError, DataError: Wrong input.
        ModelError: The adapter has no classification head.
        AdaptergitError: Whatever :func:`adaptergit.load` raises.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be positive, not {batch_size}")
    examples = read_examples(file, text_column=text_column, label_column=label_column) if file is not None else None
    if examples is not None:
        report(0, len(examples.texts))  # before the models are loaded, which takes seconds
    model, tokenizer = load_base(base) if base is not None else (None, None)
    if model is not None:
        model.eval()
    model = load(ref, model, policy=policy, offline=offline, index=index)
    panel = adapters(model)
    if panel.active_head is None:
        raise ModelError("this adapter was published without a head", hint="load it in Python and add your own")
    about = panel.about(panel.active_head)
    if tokenizer is None:
        tokenizer = base_tokenizer(load_settings().base_model_path(about.card.base_model.id), offline)
    inputs = examples.texts if examples is not None else texts or []
    logits = predict_logits(
        model, tokenizer, inputs, batch_size=batch_size, max_length=trained_length(about.card.data), report=report
    )
    names = getattr(panel.head_config(panel.active_head), "labels", ()) or tuple(str(i) for i in range(logits.shape[1]))
    chosen = logits.argmax(dim=1).tolist()
    probabilities = logits.softmax(dim=1).amax(dim=1).tolist()
    metrics = None
    if examples is not None and examples.labels is not None:
        if unknown := sorted(set(examples.labels) - set(names)):
            raise DataError(
                f"the label {unknown[0]!r} is none of the adapter's",
                where=str(file),
                hint=f"labels: {', '.join(names)}",
            )
        metrics = score(logits, [names.index(label) for label in examples.labels])
    return Predictions(inputs, [names[i] for i in chosen], probabilities, logits, metrics)
