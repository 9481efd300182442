"""``transformers.Trainer`` for adapters: its checkpoints hold the adapter and its head, never the base model.

:class:`AdapterTrainer` takes Trainer's place; :class:`AdapterCallback` goes beside any other Trainer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch import nn
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from adaptergit.errors import DataError
from adaptergit.splice.fusion import regularisation
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.tensorfile import write_tensors

_FILE = "adapter_state.safetensors"
_LABELS = {
    "question_answering": ["start_positions", "end_positions"],
    "dependency_parsing": ["word_starts", "labels_arcs", "labels_rels"],
}


class _Adapters:
    """What is different for adapters; put in front of a Trainer's class."""

    model: Any
    args: Any
    state: Any
    accelerator: Any

    def __init__(self, model: Any = None, args: Any = None, **options: Any) -> None:
        panel = _panel(model)
        if args is not None and panel is not None and panel.active_head is not None and args.label_names is None:
            # The head beside the model takes the labels: the model's own forward does not name them.
            kind = panel.head_config(panel.active_head).type
            args.label_names = _LABELS.get(kind, ["labels"])
        super().__init__(model, args, **options)  # type: ignore[call-arg]

    def create_accelerator_and_postprocess(self) -> None:
        """Shard on CPUs too: accelerate gives a model out to GPUs and their like only, and says nothing."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        state, wanted = self.accelerator.state, getattr(self.args, "fsdp_plugin_args", None)  # from transformers 5 on
        if wanted is not None and getattr(state, "fsdp_plugin", None) is None:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**wanted)
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the regulariser of a fusion that is trained (Pfeiffer et al. 2021, §3.2)."""
        found: Any = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        panel = _panel(self.model)
        extra = fusion_regularisation(panel) if panel is not None and model.training else None
        if extra is None:
            return found
        return (found[0] + extra, *found[1:]) if isinstance(found, tuple) else found + extra

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_adapters(self.model, Path(output_dir or str(self.args.output_dir)))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; of a sharded model, without putting the base together first."""
        if _sharded(self.model):
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_adapters(model if model is not None else self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            self._load_from_checkpoint(best)


class AdapterTrainer(_Adapters, Trainer):
    """A Trainer whose model carries a panel with something to train; resuming and the best checkpoint work as usual."""


class AdapterSeq2SeqTrainer(_Adapters, Seq2SeqTrainer):
    """The same for models that write: evaluation may generate."""


class AdapterCallback(TrainerCallback):
    """Beside a Trainer of one's own: every checkpoint gets the adapter too, a resumed run goes on with it, and the best
    one is taken at the end.

    ``Trainer(model, …, callbacks=[AdapterCallback()])``; :class:`AdapterTrainer` also leaves the base model out of
    checkpoints, resumes from other folders than ``output_dir``, and adds the regulariser of a fusion.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Go on with the adapter of the checkpoint that the Trainer resumes from.

        Raises:
            DataError: It is not in ``output_dir``, or of another adapter.
        """
        if not state.global_step:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        written = folder / TRAINER_STATE_NAME
        found = TrainerState.load_from_json(str(written)) if written.is_file() else TrainerState()
        if json.dumps(found.log_history) != json.dumps(state.log_history):  # a callback is not told which folder it is
            raise DataError(
                "the checkpoint to resume from is not the one of its step in output_dir, where AdapterCallback looks",
                where=str(folder),
                hint="copy it there, or train with AdapterTrainer, which resumes from any folder",
            )
        load_adapters(model, folder)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the adapter into the checkpoint that was just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_adapters(model, folder)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take the best checkpoint's adapter, where the Trainer was asked for the best model."""
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None and (Path(best) / _FILE).is_file():
            load_adapters(model, Path(best))


def fusion_regularisation(panel: Panel) -> torch.Tensor | None:
    """Return the sum of the regularisers of all fusions that are trained, or None."""
    modules = [panel.fusion_module(name) for name in panel.fusions]
    trained = [module for module in modules if any(parameter.requires_grad for parameter in module.parameters())]
    return torch.stack([regularisation(module) for module in trained]).sum() if trained else None


def save_adapters(model: Any, folder: Path) -> None:
    """Write all that is trained into a folder; of a sharded model, every process must call this."""
    reshard(model)
    tensors = {name: whole(tensor).detach().cpu() for name, tensor in _kept(model).items()}
    if not (torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()):
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / _FILE, tensors)


def load_adapters(model: Any, folder: Path) -> None:
    """Read what :func:`save_adapters` wrote.

    Raises:
        DataError: It is not there, or of another adapter.
    """
    path = folder / _FILE
    reshard(model)
    parameters = _kept(model)
    stored = load_file(str(path)) if path.is_file() else {}
    with _together(parameters.values()), torch.no_grad():
        if stored.keys() != parameters.keys() or any(stored[n].shape != p.shape for n, p in parameters.items()):
            raise DataError(
                "the checkpoint to resume from is of another adapter",
                where=str(path),
                hint="resume with the same --adapter, or remove the folder",
            )
        for name, parameter in parameters.items():
            parameter.copy_(_like(stored[name], parameter))


def reshard(model: Any) -> bool:
    """Let go of what FSDP keeps whole after a forward: what is written there is lost. Tell if it shards anything."""
    sharded = [module for module in model.modules() if hasattr(module, "unshard")]
    for module in sharded:
        module.reshard()
    return bool(sharded)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Put a sharded tensor together; all processes must ask."""
    if hasattr(tensor, "full_tensor"):
        found: torch.Tensor = tensor.full_tensor().detach().clone()  # what comes is perhaps not there yet
        return found
    if not hasattr(tensor, "ds_id"):
        return tensor
    with _together([tensor]):
        return tensor.detach().clone()


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


def _panel(model: Any) -> Panel | None:
    found: Panel | None = getattr(getattr(model, "adaptergit", None), "panel", None)
    return found


def _trained(model: Any) -> list[tuple[str, nn.Parameter]]:
    """What the optimiser trains, under names that start with the panel's."""
    assert model is not None
    inner = getattr(model, "module", model)  # out of DistributedDataParallel
    adapters(inner)  # a model without a panel is a mistake of the caller, reported as such
    return [(name, parameter) for name, parameter in inner.named_parameters() if parameter.requires_grad]


def _kept(model: Any) -> dict[str, torch.Tensor]:
    """What training changes: what the optimiser trains, and what else its modules hold, as a fusion's temperature."""
    trained = dict(_trained(model))
    buffers = getattr(model, "module", model).named_buffers()
    beside = {name: one for name, one in buffers if any(t.startswith(f"{name.rpartition('.')[0]}.") for t in trained)}
    return {**trained, **beside}


def _sharded(model: Any) -> bool:
    return reshard(model) or any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for _, p in _trained(model))


def _together(tensors: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """Within, what ZeRO-3 has sharded is whole, and may be written to; all processes must come here."""
    sharded = [one for one in tensors if hasattr(one, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded, modifier_rank=0)
    return gathered


def _like(tensor: torch.Tensor, parameter: Any) -> torch.Tensor:
    """Shard a tensor as a parameter is."""
    if not hasattr(parameter, "device_mesh"):
        return tensor.to(parameter.dtype)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(parameter), parameter.device_mesh, parameter.placements)
