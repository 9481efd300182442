"""Training and evaluating adapters: data files, tasks, ``transformers.Trainer``, and a filled-in card at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptergit.training.data import Examples, read_examples
from adaptergit.training.evaluate import answers_of, predict_logits, replies_of, score
from adaptergit.training.measures import Metrics
from adaptergit.training.readers import read_rows
from adaptergit.training.spec import TrainSpec
from adaptergit.training.tasks import TASKS, Task
from adaptergit.training.train import Progress, TrainResult, train

if TYPE_CHECKING:
    from adaptergit.training.trainer import AdapterCallback, AdapterSeq2SeqTrainer, AdapterTrainer

_LATE = ("AdapterCallback", "AdapterSeq2SeqTrainer", "AdapterTrainer")


def __getattr__(name: str) -> Any:
    # Trainer takes a second to import; reading data and predicting do not need it.
    if name in _LATE:
        from adaptergit.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'adaptergit.training' has no attribute {name!r}")


__all__ = [
    "TASKS",
    "AdapterCallback",
    "AdapterSeq2SeqTrainer",
    "AdapterTrainer",
    "Examples",
    "Metrics",
    "Progress",
    "Task",
    "TrainResult",
    "TrainSpec",
    "answers_of",
    "predict_logits",
    "read_examples",
    "read_rows",
    "replies_of",
    "score",
    "train",
]
