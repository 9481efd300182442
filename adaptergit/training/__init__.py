"""Training and evaluating adapters: data files, the task, ``transformers.Trainer``, and a filled-in card at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptergit.training.data import Examples, read_examples
from adaptergit.training.evaluate import Metrics, predict_logits, score
from adaptergit.training.train import Progress, TrainResult, TrainSpec, train

if TYPE_CHECKING:
    from adaptergit.training.trainer import AdapterTrainer


def __getattr__(name: str) -> Any:
    # Trainer takes a second to import; reading data and predicting do not need it.
    if name == "AdapterTrainer":
        from adaptergit.training.trainer import AdapterTrainer

        return AdapterTrainer
    raise AttributeError(f"module 'adaptergit.training' has no attribute {name!r}")


__all__ = [
    "AdapterTrainer",
    "Examples",
    "Metrics",
    "Progress",
    "TrainResult",
    "TrainSpec",
    "predict_logits",
    "read_examples",
    "score",
    "train",
]
