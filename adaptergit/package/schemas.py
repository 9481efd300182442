"""Validation against the JSON Schemas of ``schema/``, with one readable message per problem."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from adaptergit.resources import resource

Path = tuple[str | int, ...]


def problems(schema: str, instance: Any) -> list[tuple[Path, str]]:
    """Return ``(path, message)`` for everything in ``instance`` that ``schema/<schema>.schema.json`` forbids."""
    found = [(tuple(error.absolute_path), _message(error)) for error in _validator(schema).iter_errors(instance)]
    return sorted(found, key=lambda item: [str(part) for part in item[0]])


def dotted(path: Path) -> str:
    """Render a path for people.

    >>> dotted(("evaluation", 0, "value"))
    'evaluation[0].value'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


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


def _message(error: Any) -> str:
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema.get("properties", {}))
        return f"{error.message}; known keys: {', '.join(allowed)}"
    text = str(error.message)
    return text if len(text) < 400 else f"{text[:200]} … {text[-100:]}"
