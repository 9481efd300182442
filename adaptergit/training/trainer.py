"""``transformers.Trainer`` for adapters: its checkpoints hold the adapter and its head, never the base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback

from adaptergit.errors import DataError
from adaptergit.splice.panel import adapters

_FILE = "adapter_state.safetensors"
_LABELS = {
    "question_answering": ["start_positions", "end_positions"],
    "dependency_parsing": ["word_starts", "labels_arcs", "labels_rels"],
}


class AdapterTrainer(Trainer):
    """A Trainer whose model carries a panel with something to train; resuming and the best checkpoint work as usual."""

    def __init__(self, model: Any = None, args: Any = None, **options: Any) -> None:
        panel = getattr(getattr(model, "adaptergit", None), "panel", None)
        if args is not None and panel is not None and panel.active_head is not None and args.label_names is None:
            # The head beside the model takes the labels: the model's own forward does not name them.
            kind = panel.head_config(panel.active_head).type
            args.label_names = _LABELS.get(kind, ["labels"])
        super().__init__(model, args, **options)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().cpu().contiguous() for n, p in _trained(self.model)}, str(folder / _FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / _FILE
        parameters = dict(_trained(model if model is not None else self.model))
        stored = load_file(str(path)) if path.is_file() else {}
        if stored.keys() != parameters.keys() or any(stored[n].shape != p.shape for n, p in parameters.items()):
            raise DataError(
                "the checkpoint to resume from is of another adapter",
                where=str(path),
                hint="resume with the same --adapter, or remove the folder",
            )
        for name, parameter in parameters.items():
            parameter.data.copy_(stored[name])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            self._load_from_checkpoint(best)


class Reporter(TrainerCallback):
    """Hands every step to a function, in place of the Trainer's own output."""

    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self._report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report a finished step."""
        self._report(int(state.global_step), int(state.max_steps), None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Report the loss."""
        if logs and "loss" in logs:
            self._report(int(state.global_step), int(state.max_steps), float(logs["loss"]))


def _trained(model: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    """What the optimiser trains, under names that start with the panel's."""
    assert model is not None
    adapters(model)  # a model without a panel is a mistake of the caller, reported as such
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
