"""What to train: everything that decides the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from adaptergit.errors import UsageError
from adaptergit.package.card import wrong_license
from adaptergit.reference import check_adapter_name
from adaptergit.splice.config import parse_config
from adaptergit.training.presets import learning_rate
from adaptergit.training.tasks import Task, task_class

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides the result."""

    base: str
    """Folder or Hugging Face id of the base model; the settings may map it to a folder."""
    train: Path
    """File of any kind that :func:`~adaptergit.training.readers.read_rows` reads."""
    eval: Path
    """Held-out examples, of the same kind."""
    output: Path
    """Package folder to write; must be new, or an earlier output."""
    task: str = "text-classification"
    """One of :data:`~adaptergit.training.tasks.TASKS`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns by role, where the files do not use the task's own names."""
    adapter: str = "seq_bn"
    """Config string."""
    name: str | None = None
    """Default: the output folder's name."""
    base_id: str | None = None
    """What the card calls the base model, where ``base`` is a folder; default: what the settings call that folder."""
    epochs: float = 3.0
    """Times that every example is seen; parts of one will do."""
    learning_rate: float | None = None
    """None: that of the method's paper, see :mod:`~adaptergit.training.presets`."""
    batch_size: int = 32
    """Examples for one step, on all processes together."""
    max_length: int = 128
    """Tokens."""
    seed: int = 42
    """Of all random numbers."""
    patience: int | None = None
    """Stop after so many epochs without a better score, and keep the best; None: train all epochs."""
    validation: Path | None = None
    """What ``patience`` looks at; default: a tenth of the training file, which is then not trained on."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    fsdp: bool = False
    """Shard the model over the processes (FSDP 2)."""
    deepspeed: Path | None = None
    """DeepSpeed's configuration, passed on."""
    resume: bool = False
    """Go on from the last checkpoint of the same run, if there is one."""
    overwrite: bool = False
    """Replace an adapter that is in the output folder."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Card fields: license, description, authors, languages …"""

    def __post_init__(self) -> None:
        """Let people write paths as text."""
        for name in ("train", "eval", "output", "validation", "deepspeed"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))

    def check(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            UsageError: Naming the field.
        """
        self.task_class.with_columns(self.columns)
        for name in ("epochs", "learning_rate", "batch_size", "max_length", "patience"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < inf):
                option = "early-stopping" if name == "patience" else name.replace("_", "-")
                raise UsageError(
                    f"{name} must be a number, positive and finite, not {value!r}",
                    hint=f"on the command line it is --{option}",
                )
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"seed must be from 0 to {(1 << 32) - 1}, not {self.seed}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
        if self.validation is not None and self.patience is None:
            raise UsageError(
                "a validation file is read for early stopping only", hint="give patience too (--early-stopping)"
            )
        if (wrong := wrong_license(str(self.about.get("license", "MIT")))) is not None:
            raise UsageError(f"license: {wrong}")
        check_adapter_name(self.adapter_name)
        parse_config(self.adapter)
        # With resume, it is compared when it is known what it should be.
        if (self.output / "card.yaml").exists() and not self.overwrite and not self.resume:
            raise UsageError(
                "the output folder holds an adapter already",
                where=str(self.output),
                hint="choose another folder, or --overwrite",
            )
        if self.output.exists() and not self.output.is_dir():
            raise UsageError("the output is a file", where=str(self.output), hint="name a new folder")
        if self.output.exists() and {p.name for p in self.output.iterdir()} - {"card.yaml", "adapter.safetensors"}:
            raise UsageError("the output folder holds other files", where=str(self.output), hint="choose a new folder")

    @property
    def task_class(self) -> type[Task]:
        """What is learnt."""
        return task_class(self.task)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate if self.learning_rate is not None else learning_rate(parse_config(self.adapter))

    @property
    def adapter_name(self) -> str:
        """Name of the adapter and of the card."""
        return self.name or self.output.resolve().name

    @property
    def checkpoints(self) -> Path:
        """Where the Trainer keeps what it needs to resume; beside the package, which is flat."""
        return self.output.with_name(f"{self.output.name}.checkpoints")
