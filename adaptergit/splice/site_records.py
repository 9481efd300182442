"""Sites as people write them down: what each field may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, get_args

from adaptergit.errors import UsageError
from adaptergit.splice.families import Branch


def records_of(sites: Any) -> list[dict[str, Any]]:
    """Return the fields of every site.

    Args:
        sites: Sites, or mappings with their fields.

    Raises:
        UsageError: One of them is no site, or a field holds what it cannot.
    """
    if not isinstance(sites, Iterable) or isinstance(sites, str | bytes | Mapping):
        raise UsageError(f"{sites!r} is no list of sites", hint=_HINT)
    return [_record(given) for given in sites]


def _record(given: Any) -> dict[str, Any]:
    record = asdict(given) if is_dataclass(given) and not isinstance(given, type) else given
    if not isinstance(record, Mapping) or not _REQUIRED <= set(record) <= set(_FIELDS):
        raise UsageError(f"{given!r} is no site", hint=_HINT)
    for name, value in record.items():
        wanted, fits = _FIELDS[name]
        if not fits(value):
            raise UsageError(f"{name} of a site is {wanted}, not {value!r}", hint=f"in {dict(record)!r}")
    return dict(record)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and all(value.split("."))


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "block": ("a number from 0 on", _is_count),
    "branch": (f"one of {', '.join(get_args(Branch))}", lambda value: value in get_args(Branch)),
    "output": ("a module's path", _is_path),
    "residual": (
        "a module's path, two joined by a plus sign, or None",
        lambda value: value is None or (isinstance(value, str) and all(map(_is_path, value.split("+")))),
    ),
    "norm": ("a module's path or None", lambda value: value is None or _is_path(value)),
    "hidden_size": ("a number, 0 for the model's", _is_count),
    "ordinal": ("a number from 1 on", lambda value: _is_count(value, 1)),
    "channels_first": ("true or false", lambda value: isinstance(value, bool)),
    "swapped": ("true or false", lambda value: isinstance(value, bool)),
}
_REQUIRED = {"block", "branch", "output", "residual", "norm"}
_HINT = f"fields of a site: {', '.join(_FIELDS)}"
