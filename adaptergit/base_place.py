"""Where a base model that a person names is loaded from, and what is said when it cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adaptergit.errors import NotFoundError, UsageError, did_you_mean
from adaptergit.reference import expand
from adaptergit.settings import config_dir, load_settings

_NAMED = "name its folder (--base; in Python base=, and to load model=AutoModel.from_pretrained(FOLDER))"
_DAMAGED = re.compile("deserializing header|InvalidHeader|MetadataIncomplete|invalid UTF-8 in header")
"""What safetensors says of half a file, and of what git keeps in a file's place."""
_FOLDER = "name a folder with config.json and model.safetensors"


@dataclass(frozen=True)
class Place:
    """Where a base model is loaded from."""

    source: str
    """Folder or id, as transformers takes it."""
    id: str | None
    """What cards call it; None: a folder that the settings give no id."""
    offline: bool
    """Ask no hub."""


def place_of(base: str, *, offline: bool = False) -> Place:
    """Return where a base model is: in the folder the settings map it to, in the folder it is, or on a hub.

    Args:
        base: Folder or id.
        offline: Ask no hub; the settings may forbid it too.

    Raises:
        NotFoundError: A folder that is not there.
        UsageError: It is empty, or the settings cannot be read.
    """
    if not base.strip():
        raise UsageError("the base model has an empty name", hint=_other_hint())
    settings = load_settings()
    offline = offline or settings.offline
    folder = expand(settings.base_model_path(base))
    if base in settings.base_models:
        if not folder.is_dir():
            hint = f"mend [base_models] in {config_dir() / 'config.toml'}"
            raise NotFoundError(f"base_models maps {base} to a folder that is not there", where=str(folder), hint=hint)
        return Place(str(folder), base, offline)
    if not folder.is_dir():
        if base.startswith((".", "/", "~")):
            raise NotFoundError("there is no such folder", where=base, hint=_other_hint())
        return Place(base, base, offline)
    real = folder.resolve()
    ids = (id for id, path in settings.base_models.items() if _same(expand(path), real))
    return Place(str(folder), next(ids, None), offline)


def not_loaded(
    what: str, base: str, error: Exception, hint: str | None = None, *, named: str = _NAMED
) -> NotFoundError:
    """Return the error for what transformers could not load.

    Args:
        what: What cannot be done.
        base: As it was named.
        error: What transformers said.
        hint: Where it was neither the network nor that nobody may be asked.
        named: How a folder is named in its place.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    ways = f"{named}, or map it under [base_models] in {config_dir() / 'config.toml'}"
    if any("outgoing traffic has been disabled" in said for said in _chain(error)):
        first = "it is not on this machine, and offline was asked for"
        hint = f"load it once with network, {ways}"
    elif _DAMAGED.search(first):
        first = f"its weights are damaged, or not all there ({first})"
        hint = "fetch them again; where git keeps them with LFS: git lfs pull"
    elif "couldn't connect" in first:
        hint = f"look at the network and try again, {ways}"
    hint, known = hint or _other_hint(), load_settings().base_models
    meant = next((id for id in known if id.rpartition("/")[2] == base), None)
    if meant is not None:
        hint = f"did you mean {meant!r}?"
    elif base not in known and (nearly := did_you_mean(base, known)):
        hint = f"{nearly} If not, {hint}"
    return NotFoundError(f"{what}: {first}", where=base, hint=hint)


def _other_hint() -> str:
    return f"{_FOLDER}, a Hugging Face id, or one of [base_models] in {config_dir() / 'config.toml'}"


def _same(path: Path, real: Path) -> bool:
    try:
        return path.resolve() == real
    except OSError:
        return False


def _chain(error: BaseException | None) -> list[str]:
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__ or error.__context__
    return found
