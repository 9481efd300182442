"""Base models for training, with what makes their inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from torch import nn

from adaptergit.base_place import not_loaded, place_of
from adaptergit.base_watch import told_of
from adaptergit.errors import AdaptergitWarning, UsageError
from adaptergit.splice.anatomy import base_of
from adaptergit.training.tasks import TASKS, Task


def load_base(base: str, task: type[Task] | None = None, *, offline: bool = False) -> tuple[Any, Any]:
    """Load a base model and its tokenizer, or what else makes its inputs.

    Args:
        base: Folder or id; the settings may map it to a folder.
        task: Says which class the model is of; default: the plain model.
        offline: Ask no hub; the settings may forbid it too.

    Raises:
        NotFoundError: Neither a folder with a model nor an id that can be had.
        UsageError: No model of that kind does the task.
    """
    model, inputs, fresh = load_for(base, task or Task, offline=offline)
    if task is not None and fresh:
        told = (
            f"{base}: the base model has no output layer for {task.name}; unless the adapter brings one, what it says "
            "is drawn at random, and cannot be what its card was scored with"
        )
        warnings.warn(told, AdaptergitWarning, stacklevel=2)
    return model, inputs


def load_for(base: str, task: type[Task], *, offline: bool = False) -> tuple[Any, Any, frozenset[str]]:
    """Load a base model for a task; also return the parameters its checkpoint does not have, outside the base."""
    import transformers

    place = place_of(base, offline=offline)
    options: dict[str, Any] = {"local_files_only": place.offline}
    try:
        config = transformers.AutoConfig.from_pretrained(place.source, **options)
        mapping = getattr(transformers, task.model_class)._model_mapping
        if type(config) not in mapping:
            others = [one for one in TASKS.values() if one.model_class != Task.model_class]
            does = [one.name for one in others if type(config) in getattr(transformers, one.model_class)._model_mapping]
            raise UsageError(
                f"a {config.model_type} model does not do {task.name}",
                where=base,
                hint=f"it does {' and '.join(does)}; " * bool(does) + "name another base model with --base",
            )
        with _quiet(), told_of(base) as watched:
            made_by = getattr(transformers, task.model_class)
            model, told = made_by.from_pretrained(place.source, output_loading_info=True, **options, **watched)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise not_loaded("the base model cannot be loaded", base, error) from error
    return model, load_inputs(base, task, model, offline=offline), _fresh(model, told["missing_keys"])


def load_inputs(base: str, task: type[Task], model: Any, *, offline: bool = False) -> Any:
    """Load what makes a model's inputs, and tell the model how they are filled up.

    Raises:
        NotFoundError: It is not there.
    """
    import transformers

    place = place_of(base, offline=offline)
    try:
        kind = getattr(transformers, task.inputs)
        inputs: Any = kind.from_pretrained(place.source, local_files_only=place.offline)
    except (OSError, ValueError) as error:
        raise not_loaded("what makes the base model's inputs cannot be loaded", base, error) from error
    if hasattr(inputs, "pad_token") and inputs.pad_token is None:
        inputs.pad_token = inputs.eos_token  # GPT-2 and its kin: the mask tells them apart
        model.config.pad_token_id = inputs.pad_token_id
    return inputs


def words_tokenizer(tokenizer: Any, base: str, *, offline: bool = False) -> Any:
    """Return a tokenizer that takes words one by one: byte-level ones must put a space in front of each."""
    from transformers import AutoTokenizer

    if getattr(tokenizer, "add_prefix_space", None) is not False:
        return tokenizer
    place = place_of(base, offline=offline)
    found = AutoTokenizer.from_pretrained(place.source, add_prefix_space=True, local_files_only=place.offline)
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
