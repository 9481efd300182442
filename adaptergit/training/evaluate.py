"""Running a model over features, on one process or shared out among several, and scoring what it says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.training.measures import Metrics, classification, measured
from adaptergit.training.rows import Data
from adaptergit.training.tasks.base import Collate, Feature, Generate, Read, Run, Task, Tools, Wishes

Report = Callable[[int, int], None]


def _silent(_done: int, _total: int) -> None:
    """Report to nobody."""


def answers_of(
    task: Task, model: nn.Module, data: Data, tools: Tools, *, batch_size: int = 32, report: Report = _silent
) -> list[Any]:
    """Return what a model says to every row, in evaluation mode.

    In a distributed run every process gives the same data and gets all answers.

    Raises:
        ModelError: No head is active that could answer.
    """

    with _evaluating(model):
        return task.answers(data, tools, *_ways(model, batch_size, report))


def replies_of(
    task: Task,
    model: nn.Module,
    data: Data,
    tools: Tools,
    wishes: Wishes = Wishes(),  # noqa: B008 - frozen
    *,
    batch_size: int = 32,
    report: Report = _silent,
) -> list[Any]:
    """Return what a model says to every row, in evaluation mode; the rows need not say what is right.

    ``task.worded(reply, row)`` puts it into words.

    Raises:
        UsageError: Something is asked for that the task does not do.
        DataError: A row cannot be answered; naming it.
        ModelError: No head is active that could answer.
    """
    wishes.check(type(task))
    with _evaluating(model):
        return task.replies(data, tools, *_ways(model, batch_size, report), wishes)


def _ways(model: Any, batch_size: int, report: Report) -> tuple[Run, Generate]:
    """Return how a task asks the model: for its output, or to write."""

    def run(features: Sequence[Feature], collate: Collate, read: Read) -> list[Any]:
        return run_features(model, features, collate, read, batch_size=batch_size, report=report)

    def generate(features: Sequence[Feature], collate: Collate, *, max_new_tokens: int) -> list[Any]:
        several = _world()[1] > 1
        goes_on, parameters = not model.config.is_encoder_decoder, inspect.signature(model.forward).parameters
        if goes_on:
            _check_room(model, features, max_new_tokens)

        def write(batch: Mapping[str, torch.Tensor]) -> list[list[int]]:
            greedy: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
            # What a tokenizer of another kind gives besides: a forward may pass it by, generate() refuses it.
            taken = {name: one for name, one in batch.items() if name != "token_type_ids" or name in parameters}
            made: Any = model.generate(**taken, synced_gpus=several, **greedy)
            return list(made[:, batch["input_ids"].shape[1] if goes_on else 0 :].tolist())

        return _shared_out(model, features, collate, write, batch_size, report)

    return run, generate


def _check_room(model: Any, features: Sequence[Feature], more: int) -> None:
    """Refuse to write past the last position, before anything is written."""
    most = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(one["input_ids"]) for one in features), default=0)
    if isinstance(most, int) and longest + more > most:
        what = f"a text of {longest} tokens and {more} new ones are more than the {most} that the base model reads"
        raise UsageError(what, hint="ask for fewer: --max-new-tokens")


def run_features(
    model: nn.Module,
    features: Sequence[Feature],
    collate: Collate,
    read: Read,
    *,
    batch_size: int,
    report: Report = _silent,
) -> list[Any]:
    """Give every feature to the model and return what was read of its output, in order.

    Raises:
        ModelError: The model gives no logits.
    """

    def forward(batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        output = model(**{key: value for key, value in batch.items() if key not in ("labels", "special_tokens_mask")})
        if not any(hasattr(output, name) for name in ("logits", "start_logits")):
            raise ModelError(
                "the model gives no logits: no head is active", hint="load an adapter that was published with its head"
            )
        return read(output, batch)

    return _shared_out(model, features, collate, forward, batch_size, report)


def predict_logits(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int = 128,
    report: Report = _silent,
) -> torch.Tensor:
    """Return the logits of every text, shape (texts, labels), float32, on the CPU.

    Args:
        model: Whose output has ``logits``.
        tokenizer: The base model's.
        texts: In any number.
        batch_size: Texts at once.
        max_length: Tokens; longer texts are cut.
        report: Called with (texts done, texts) after every batch.

    Raises:
        ModelError: The model has no active head.
    """
    from adaptergit.training.tasks.base import padding

    found = tokenizer(list(texts), truncation=True, max_length=max_length) if texts else {}
    features = [{key: found[key][i] for key in found} for i in range(len(texts))]
    with _evaluating(model):
        logits = run_features(
            model,
            features,
            padding(Tools(tokenizer, max_length)),
            lambda output, _: output.logits.float().cpu().unbind(),
            batch_size=batch_size,
            report=report,
        )
    return torch.stack(logits) if logits else torch.empty(0, 0)


def score(logits: torch.Tensor, gold: Sequence[int]) -> Metrics:
    """Score logits (samples, labels) against the indices of the right labels."""
    found = logits.argmax(dim=1).tolist()
    return measured(classification(found, gold, logits.shape[1]), len(found))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _shared_out(
    model: nn.Module,
    features: Sequence[Feature],
    collate: Collate,
    forward: Callable[[Mapping[str, torch.Tensor]], Sequence[Any]],
    batch_size: int,
    report: Report,
) -> list[Any]:
    """Run batches of similar lengths, every n-th on this process, and put the results in order."""
    lengths = [len(one["input_ids"]) for one in features] if features and "input_ids" in features[0] else None
    order = sorted(range(len(features)), key=lengths.__getitem__) if lengths else list(range(len(features)))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    device = next(model.parameters()).device
    rank, world = _world()
    results: dict[int, Any] = {}
    done = 0
    for first in range(0, len(batches), world):
        # All processes run as often as each other, as sharded models must: the last batch may be run by several.
        indices = batches[min(first + rank, len(batches) - 1)]
        batch = collate([features[i] for i in indices])
        read = forward({key: value.to(device) for key, value in batch.items()})
        results.update(zip(indices, read, strict=True))
        done = min(done + world * batch_size, len(features))
        report(done, len(features))
    if world > 1:
        gathered: list[dict[int, Any]] = [{} for _ in range(world)]
        torch.distributed.all_gather_object(gathered, results)
        results = {index: value for part in gathered for index, value in part.items()}
    return [results[i] for i in range(len(features))]


def _world() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
