"""From a reference to a task whose model answers it: what ``predict`` and ``eval`` do before they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adaptergit.bases import base_model, trained_columns, trained_length, transformers
from adaptergit.errors import ModelError, UsageError
from adaptergit.hf import Checkpoint, fetch_hub
from adaptergit.load import About, about_of, base_for, load_found, obtain
from adaptergit.package import CARD, Card
from adaptergit.reference import check_paths, check_pinned_by, is_hub
from adaptergit.settings import Settings, load_settings
from adaptergit.splice.panel import adapters
from adaptergit.training.base import load_base, load_inputs, words_tokenizer
from adaptergit.training.tasks import TASKS, Task, Tools


@dataclass(frozen=True)
class Opened:
    """A package that may be used, with the task it is for."""

    about: About
    kind: type[Task]
    policy: str | None
    offline: bool
    index: str | Path | None
    lock: str | Path | None
    settings: Settings

    @property
    def card(self) -> Card:
        """The package's card."""
        return self.about.card

    def columns(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return columns by role: those that are chosen, else those it was trained with, else the task's own names.

        Raises:
            UsageError: The task has no such role, or the adapter was trained without it.
        """
        trained = {role: one for role, one in trained_columns(self.card.data).items() if role in self.kind.roles}
        read = [role for role in self.kind.asks if role in trained]
        for role in self.kind.asks:
            if read and role in chosen and role not in read:
                raise UsageError(f"this adapter was trained on {' and '.join(read)} alone: it reads no {role}")
        return self.kind.with_columns({**trained, **chosen})

    def answering(self, columns: Mapping[str, str], base: str | None) -> tuple[Task, nn.Module, Tools]:
        """Load base model and adapter.

        Args:
            columns: Of the data that will be read.
            base: Folder of the base model; default: the settings' mapping of the card's id, or the id.

        Raises:
            ModelError: Nothing in the package answers the task.
            AdaptergitError: Whatever :func:`adaptergit.load` raises.
        """
        kind = self.kind
        place = base or self.settings.base_model_path(self.card.base_model.id)
        if base is not None:
            model, inputs = load_base(base, kind, offline=self.offline)
        else:
            model = self._named_base()
            inputs = load_inputs(place, kind, model, offline=self.offline)
        model.eval()
        try:
            asked: Any = {"policy": self.policy, "offline": self.offline, "index": self.index, "lock": self.lock}
            load_found(self.about, model, **asked)
        except ModelError as error:
            if base is not None and "another base model" in error.what:
                error.hint = f"name the folder of {self.card.base_model.id} with --base"
            raise
        panel = adapters(model)
        head = panel.head_config(panel.active_head) if panel.active_head is not None else None
        if head is None and kind.model_class == "AutoModel":
            raise _headless()
        if kind.by_word:
            inputs = words_tokenizer(inputs, place, offline=self.offline)
        return kind.of(columns, head), model, Tools(inputs, trained_length(self.card.data))

    def _named_base(self) -> Any:
        if self.kind.model_class == "AutoModel":  # or the class that the package's head is a copy of
            return base_for(self.about, self.settings, offline=self.offline)
        made_by = getattr(transformers(), self.kind.model_class)
        return base_model(self.card.base_model, (made_by, {}), self.settings, self.offline)


def opened(
    ref: str | Path,
    *,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
) -> Opened:
    """Fetch a package and say which task its card, or its head, is for.

    Args:
        ref: A reference or a package folder.
        policy: See :func:`adaptergit.load`, as ``offline``, ``index`` and ``lock``.
        refresh: Ask for a newer version even if a recent answer is known.

    Raises:
        UsageError: Nothing is known of its task.
        AdaptergitError: It cannot be had, or was refused.
    """
    check_paths(index=index, lock=lock)
    check_pinned_by(ref, index, lock)
    settings = load_settings()
    offline = offline or settings.offline
    if is_hub(ref):
        found = fetch_hub(str(ref), policy=policy, offline=offline, refresh=refresh, settings=settings)
        if isinstance(found, Checkpoint) and CARD not in found.digests:
            raise UsageError(
                "this checkpoint has no card: nothing says which task it is for",
                where=str(ref),
                hint=f"adaptergit convert {ref} FOLDER --to adaptergit, and name that folder",
            )
        about = about_of(found)
    else:
        asked: Any = {"policy": policy, "offline": offline, "refresh": refresh, "index": index, "lock": lock}
        about = obtain(ref, settings, **asked)
    return Opened(about, _kind(about.card), policy, offline, index, lock, settings)


def _kind(card: Card) -> type[Task]:
    """Return the task of the head, which is what answers; without one, or with one of no task, what the card says."""
    name, head = str(card.data["task"]["type"]), card.data.get("head", {})
    config = head.get("config", {})
    model_class = str(config.get("model_class", ""))
    for task in TASKS.values():
        if any(one == head.get("type") or (one[:3] == "For" and model_class.endswith(one)) for one in task.heads):
            number = task is TASKS["text-classification"] and config.get("num_labels") == 1
            return TASKS["text-regression"] if number else task
    if name in TASKS:
        return TASKS[name]
    if not head and card.data["adapter"]["format"] == "adaptergit":
        raise _headless()
    raise UsageError(f"nothing is known of the task {name!r}", hint=f"known: {', '.join(TASKS)}")


def _headless() -> ModelError:
    return ModelError(
        "this adapter was published without a head",
        hint="publish it with its head (panel.save(…) keeps it), or train one",
    )
