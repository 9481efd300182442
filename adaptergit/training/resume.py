"""Going on with interrupted trainings: only as they were begun, so that what their cards say is true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptergit.errors import NotFoundError, UsageError
from adaptergit.package import CARD, WEIGHTS, Card
from adaptergit.splice.fingerprint import Fingerprint
from adaptergit.training.measures import Metrics
from adaptergit.training.spec import TrainSpec

BEGUN = "begun.json"
"""What decides the result of the training whose checkpoints lie beside it."""
_STATE = "trainer_state.json"
"""What Trainer writes last: a checkpoint without it was interrupted too."""
_MEASURED = ("frameworks", "hardware", "duration_seconds", "curve")
"""What a card says of a training only when it is over."""
_TOLD, _SHORT = 5, 40
"""Differences that are named; characters of a value that is shown."""


def last_checkpoint(spec: TrainSpec) -> Path | None:
    """Return the last checkpoint that was written to its end; with FSDP or DeepSpeed, none holds all that is needed."""
    found = {path.name.removeprefix("checkpoint-"): path for path in spec.checkpoints.glob("checkpoint-*")}
    whole = [number for number, path in found.items() if number.isdecimal() and is_whole(path)]
    return found[max(whole, key=int)] if whole and not spec.fsdp and spec.deepspeed is None else None


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint was written to its end."""
    return (checkpoint / _STATE).is_file()


def begun(spec: TrainSpec) -> bool:
    """Tell whether there is something to go on from: a checkpoint, or a package."""
    return last_checkpoint(spec) is not None or (spec.output / CARD).is_file()


def begin(spec: TrainSpec, card: Mapping[str, Any]) -> None:
    """Forget earlier checkpoints, and write down what decides the result.

    Args:
        card: What the card will say, but for what is not known yet.
    """
    shutil.rmtree(spec.checkpoints, ignore_errors=True)
    spec.checkpoints.mkdir(parents=True, exist_ok=True)
    (spec.checkpoints / BEGUN).write_text(json.dumps(_decided(card)), "utf-8")


def go_on(spec: TrainSpec, card: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to go on from; None where there is only a package that is to be replaced.

    Args:
        card: See :func:`begin`.

    Raises:
        NotFoundError: There is none.
        UsageError: The training was begun with something else, or nobody knows with what.
    """
    where, found = str(spec.checkpoints), last_checkpoint(spec)
    if found is None and spec.overwrite and (spec.output / CARD).is_file():
        return None
    if found is None:
        raise NotFoundError("there is no checkpoint to resume from", where=where, hint="train without --resume")
    try:
        begun = json.loads((spec.checkpoints / BEGUN).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            "nothing says what the training to resume was begun with", where=where, hint="train without --resume"
        ) from error
    if different := differences(begun, json.loads(json.dumps(_decided(card)))):
        raise UsageError(
            f"the training to resume was begun with something else: {different}",
            where=where,
            hint="resume with what it was begun with, or train from the start without --resume",
        )
    return found


def finished(spec: TrainSpec, card: Card) -> Card | None:
    """Return the card of this very run, where it was finished before.

    Args:
        card: What it would say, but for what is not known yet.

    Raises:
        UsageError: The folder holds something else, which is not to be replaced.
        PackageError: Its card cannot be read.
    """
    path = spec.output / CARD
    if not path.is_file() or not (spec.output / WEIGHTS).is_file():
        return None
    found = Card.from_yaml(path.read_bytes(), where=str(path))
    different = differences(_claimed(found), _claimed(Card.from_yaml(card.to_yaml())))
    if not different and found.data.get("evaluation"):
        return found
    if spec.overwrite:
        return None
    raise UsageError(
        f"the output folder holds the adapter of another run: {different}"
        if different
        else "the output folder holds the adapter of this run, but its card keeps no scores",
        where=str(spec.output),
        hint="choose another folder, or --overwrite to train it again",
    )


def scores(card: Card) -> Metrics:
    """Return what a card says of how its training was scored."""
    first, entries = card.data["evaluation"][0], card.data["evaluation"]
    mine = [one for one in entries if one.get("data_sha256") == first["data_sha256"]]
    values = {one["metric"]: float(one["value"]) for one in mine}
    intervals = {one["metric"]: (one["interval"][0], one["interval"][1]) for one in mine if "interval" in one}
    return Metrics(values, intervals, first["samples"], first["metric"], first["metric"] != "perplexity")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what is not the same in two nested mappings; nothing, if all is."""
    was, is_now = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**was, **is_now} if not _same(key, was.get(key), is_now.get(key))]
    told = [_told(key.rpartition("hyperparameters.")[2], was.get(key), is_now.get(key)) for key in keys[:_TOLD]]
    return ", ".join(told) + (f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else "")


def _decided(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a card decides the result; names of files and what people say of it do not."""
    training = {key: value for key, value in card["training"].items() if key not in (*_MEASURED, "data")}
    return {
        "task": card["task"]["type"],
        "base_model": {"fingerprint": card["base_model"]["fingerprint"]},
        "adapter": card["adapter"],
        "head": card.get("head"),
        "training": training,
    }


def _claimed(card: Card) -> dict[str, Any]:
    """Return what a card says but for what was measured."""
    data = {key: value for key, value in card.data.items() if key not in ("version", "evaluation")}
    training = {key: value for key, value in data["training"].items() if key not in _MEASURED}
    task = {key: value for key, value in data["task"].items() if key != "metric"}
    first: dict[str, Any] = next(iter(card.data.get("evaluation", ())), {})
    scored = {key: first.get(key) for key in ("dataset", "data_sha256", "samples")} if first else {}
    return {**data, "training": training, "task": task, "evaluation": scored}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same(key: str, was: Any, now: Any) -> bool:
    if key == "base_model.fingerprint" and was and now:
        return Fingerprint.parse(was).same_base(Fingerprint.parse(now))
    return bool(was == now)


def _told(key: str, was: Any, now: Any) -> str:
    if isinstance(was, list) or isinstance(now, list) or max(len(str(was)), len(str(now))) > _SHORT:
        return f"{key} is another"
    said = (str(one).removesuffix(".0") for one in (was, now))
    return f"{key} was {', is '.join(said)}"
