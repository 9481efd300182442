"""Card fields as people name them in a shell: ``license=MIT``, ``task.type=text-classification``, ``authors=Ada``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from adaptergit.errors import UsageError, near
from adaptergit.package import schemas

Path = tuple[str | int, ...]
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d{1,4})\]")


def parse_fields(assignments: Iterable[str]) -> dict[Path, Any]:
    """Parse ``field=value``; what is said more than once makes a list. Values are checked with the card, not here.

    Raises:
        UsageError: Not of that form, or a card has no such field.

    >>> parse_fields(["task.type=ner", "authors=Ada", "authors=Grace", "training.seed=3"])
    {('task', 'type'): 'ner', ('authors',): ['Ada', 'Grace'], ('training', 'seed'): 3}
    """
    said: dict[Path, list[str]] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not FIELD=VALUE", hint='write for example license=MIT or task.type="ner"')
        said.setdefault(parse_field(name.strip()), []).append(value)
    return {path: _value(path, values) for path, values in said.items()}


def parse_field(name: str) -> Path:
    """Parse a field's name as errors write it: ``evaluation[0].value``.

    Raises:
        UsageError: A card has no such field.
    """
    path, at = [], 0
    while match := _STEP.match(name, at):
        path.append(int(match[2]) if match[2] else match[1])
        at = match.end()
    if at != len(name) or not path or isinstance(path[0], int):
        raise UsageError(f"{name!r} is not a card field", hint="write for example task.type or evaluation[0].value")
    for length in range(1, len(path) + 1):
        if schemas.field("card", tuple(path[:length])) is None:
            within = tuple(path[: length - 1])
            known = {name: schemas.dotted((*within, name)) for name in _parts(within)}
            meant = near(path[length - 1], known)
            if not meant and not within:  # a part of one of them?
                known |= {part: f"{name}.{part}" for name in known for part in _parts((name,)) if part not in known}
                meant = near(path[0], known)
            hint = f"did you mean {' or '.join(repr(known[name]) for name in meant)}?" if meant else None
            listed = ", ".join(sorted(_parts(within))) or "none"
            raise UsageError(
                f"a card has no field {schemas.dotted(tuple(path[:length]))!r}", hint=hint or f"known: {listed}"
            )
    return tuple(path)


def _parts(path: Path) -> list[str]:
    return list((schemas.field("card", path) or {}).get("properties", {}))


def nested(fields: Mapping[Path, Any]) -> dict[str, Any]:
    """Return fields as the card holds them.

    Raises:
        UsageError: One inside a list: a new card has none yet.
    """
    data: dict[str, Any] = {}
    for path, value in fields.items():
        holder = data
        for step in path[:-1]:
            holder = holder.setdefault(step, {}) if isinstance(step, str) else {}
        if any(isinstance(step, int) for step in path):
            raise UsageError(f"{schemas.dotted(path)}: there is no list yet", hint="give the whole list as JSON")
        holder[str(path[-1])] = value
    return data


def _value(path: Path, said: list[str]) -> Any:
    node = schemas.field("card", path) or {}
    if "array" in schemas.kinds(node) and "string" not in schemas.kinds(node):
        whole = _json(said[0]) if len(said) == 1 else None
        return whole if isinstance(whole, list) else [_scalar(node.get("items", {}), text) for text in said]
    if len(said) > 1:
        raise UsageError(f"{schemas.dotted(path)} is said {len(said)} times, and is no list")
    return _scalar(node, said[0])


def _scalar(node: Mapping[str, Any], text: str) -> Any:
    """Text stays text where the schema wants text; elsewhere what is JSON is meant as such."""
    if schemas.kinds(node)[0] == "string":
        return text
    parsed = _json(text)
    return text if parsed is None and text != "null" else parsed


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
