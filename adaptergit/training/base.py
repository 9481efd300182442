"""Base models for training, with what makes their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from adaptergit.errors import NotFoundError, UsageError
from adaptergit.reference import expand
from adaptergit.splice.anatomy import base_of
from adaptergit.training.tasks import Task

_HINT = "name a folder with config.json and model.safetensors, or a Hugging Face id"


def load_base(base: str, task: type[Task] | None = None) -> tuple[Any, Any]:
    """Load a base model and its tokenizer, or what else makes its inputs.

    Args:
        base: Folder or id.
        task: Says which class the model is of; default: the plain model.

    Raises:
        NotFoundError: Neither a folder with a model nor an id that can be had.
        UsageError: No model of that kind does the task.
    """
    model, inputs, _ = load_for(base, task or Task)
    return model, inputs


def load_for(base: str, task: type[Task]) -> tuple[Any, Any, frozenset[str]]:
    """Load a base model for a task; also return the parameters its checkpoint does not have, outside the base."""
    import transformers

    if base.startswith((".", "/", "~")) and not expand(base).is_dir():
        raise NotFoundError("there is no such folder", where=base, hint=_HINT)
    place = str(expand(base))
    try:
        config = transformers.AutoConfig.from_pretrained(place)
        mapping = getattr(transformers, task.model_class)._model_mapping
        if type(config) not in mapping:
            raise UsageError(f"a {config.model_type} model does not do {task.name}", where=base)
        with _quiet():
            model, told = getattr(transformers, task.model_class).from_pretrained(place, output_loading_info=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NotFoundError(f"the base model cannot be loaded: {reason[0]}", where=base, hint=_HINT) from error
    return model, load_inputs(base, task, model), _fresh(model, told["missing_keys"])


def load_inputs(base: str, task: type[Task], model: Any, *, offline: bool = False) -> Any:
    """Load what makes a model's inputs, and tell the model how they are filled up.

    Raises:
        NotFoundError: It is not there.
    """
    import transformers

    try:
        kind = getattr(transformers, task.inputs)
        inputs: Any = kind.from_pretrained(str(expand(base)), local_files_only=offline)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NotFoundError(
            f"what makes the base model's inputs cannot be loaded: {reason[0]}", where=base, hint=_HINT
        ) from error
    if hasattr(inputs, "pad_token") and inputs.pad_token is None:
        inputs.pad_token = inputs.eos_token  # GPT-2 and its kin: the mask tells them apart
        model.config.pad_token_id = inputs.pad_token_id
    return inputs


def words_tokenizer(tokenizer: Any, base: str) -> Any:
    """Return a tokenizer that takes words one by one: byte-level ones must put a space in front of each."""
    from transformers import AutoTokenizer

    if getattr(tokenizer, "add_prefix_space", None) is not False:
        return tokenizer
    found = AutoTokenizer.from_pretrained(str(expand(base)), add_prefix_space=True)
    found.pad_token = tokenizer.pad_token
    return found


def _fresh(model: nn.Module, missing: Any) -> frozenset[str]:
    base = base_of(model)
    inside = {id(parameter) for parameter in base.parameters()}
    return frozenset(n for n, p in model.named_parameters() if n in set(missing) and id(p) not in inside)


@contextmanager
def _quiet() -> Iterator[None]:
    """What is missing in a checkpoint is dealt with here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
