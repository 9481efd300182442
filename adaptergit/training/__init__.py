"""Training and evaluating adapters: data files, the task, ``transformers.Trainer``, and a filled-in card at the end."""

from adaptergit.training.data import Examples, read_examples
from adaptergit.training.evaluate import Metrics, predict_logits, score
from adaptergit.training.train import Progress, TrainResult, TrainSpec, train

__all__ = [
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
