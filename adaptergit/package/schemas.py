"""Validation against the JSON Schemas of ``schema/``, with one readable message per problem."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from adaptergit.errors import did_you_mean
from adaptergit.resources import resource

Path = tuple[str | int, ...]


def problems(schema: str, instance: Any) -> list[tuple[Path, str]]:
    """Return ``(path, message)`` for everything in ``instance`` that ``schema/<schema>.schema.json`` forbids."""
    found = [item for error in _validator(schema).iter_errors(instance) for item in _told(error)]
    return sorted(found, key=lambda item: [str(part) for part in item[0]])


def dotted(path: Path) -> str:
    """Render a path for people.

    >>> dotted(("evaluation", 0, "value"))
    'evaluation[0].value'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def field(schema: str, path: Path) -> dict[str, Any] | None:
    """Return what ``schema/<schema>.schema.json`` says of the value at a path, or None if there is no such field."""
    node: Any = _validator(schema).schema
    for step in path:
        if isinstance(step, int):
            node = node.get("items", {}) if "array" in kinds(node) else None
        elif step in node.get("properties", {}):
            node = node["properties"][step]
        elif any(re.search(pattern, step) for pattern in node.get("patternProperties", {})):
            node = {}
        else:
            more = node.get("additionalProperties", {})
            node = (more if isinstance(more, dict) else {}) if more is not False and "object" in kinds(node) else None
        if node is None:
            return None
    return dict(node)


def kinds(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the JSON types that a part of a schema allows."""
    named = node.get("type", "string" if "enum" in node else ())
    return (named,) if isinstance(named, str) else tuple(named or ("object", "array", "string", "number", "null"))


@functools.cache
def _validator(schema: str) -> Any:
    # Imported here: jsonschema takes longer to import than a whole cached load takes to run.
    from jsonschema import Draft202012Validator, validators

    strict = validators.extend(  # type: ignore[no-untyped-call]  # jsonschema types it so
        Draft202012Validator, {"pattern": _pattern}
    )
    return strict(json.loads(resource(f"schema/{schema}.schema.json").read_text("utf-8")))


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    """Match as ECMA 262 does: in Python alone, ``$`` also matches before a final newline."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and not re.search(re.sub(r"\$\Z", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _told(error: Any) -> Iterator[tuple[Path, str]]:
    path = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        allowed, patterns = error.schema.get("properties", {}), error.schema.get("patternProperties", {})
        for key in error.instance:
            if key not in allowed and not any(re.search(pattern, key) for pattern in patterns):
                near = did_you_mean(key, allowed)
                known = f"known keys: {', '.join(sorted(allowed))}"
                yield (*path, key[:100]), f"{key[:100]!r} was unexpected; {f'{near} ' if near else ''}{known}"
        return
    text = str(error.message)
    yield path, text if len(text) < 400 else f"{text[:200]} … {text[-100:]}"
