"""Configurations: frozen dataclasses, a registry of methods, and the grammar of config strings.

::

    config := part ("|" part)*
    part := name ["[" field "=" value ("," field "=" value)* "]"]

Values are Python literals; ``seq_bn[reduction_factor=64, non_linearity="gelu"]``. Quotes around plain words may be left
out.
"""

from __future__ import annotations

import ast
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints
from typing import Union as TypingUnion

from adaptergit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from adaptergit.splice.places import Host, Parts


@dataclass(frozen=True)
class MethodConfig(ABC):
    """Base of all method configurations. Every field is serialised; nothing else is configuration."""

    family: ClassVar[str]
    """Name of the method's file and class of configurations."""

    @abstractmethod
    def build(self, host: Host) -> Parts:
        """Make the modules for every place of the model that the method acts at; none: it has no place there."""

    @abstractmethod
    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Fill all parameters with their initial values."""

    @property
    @abstractmethod
    def method(self) -> str:
        """The best-known name of this configuration, for cards and search."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain data."""
        return asdict(self)


C = TypeVar("C", bound=type[MethodConfig])
_FAMILIES: dict[str, type[MethodConfig]] = {}
_PRESETS: dict[str, MethodConfig] = {}
_ALIASES: dict[str, str] = {}


def register(cls: C) -> C:
    """Register a method's configuration class under its ``family``."""
    _FAMILIES[cls.family] = cls
    return cls


def register_preset(name: str, config: MethodConfig, *aliases: str) -> None:
    """Give a configuration a name for config strings; aliases are its old names."""
    _PRESETS[name] = config
    _ALIASES.update(dict.fromkeys(aliases, name))


def presets() -> Mapping[str, MethodConfig]:
    """Return every named configuration."""
    return dict(_PRESETS)


def parse_config(text: str | MethodConfig) -> MethodConfig:
    """Parse a config string, or return a configuration as it is.

    Raises:
        UsageError: Pointing into the string.

    >>> parse_config("seq_bn[reduction_factor=64]").reduction_factor
    64
    """
    if isinstance(text, MethodConfig):
        return text
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is no configuration", hint='write "seq_bn" or Bottleneck(…)')
    pieces = _split(text, 0, "|")
    if len(pieces) > 1:
        from adaptergit.splice.methods.union import Union

        return Union(tuple(parse_config(piece) for piece, _ in pieces))
    match = re.fullmatch(r"\s*(?P<name>[A-Za-z0-9_+-]+)\s*(?:\[(?P<fields>.*)\])?\s*", text, re.DOTALL)
    if match is None:
        raise UsageError(f"{text!r} is not a config string", hint="write it like seq_bn or seq_bn[reduction_factor=64]")
    name = _ALIASES.get(match["name"], match["name"])
    if name not in _PRESETS:
        raise _at(
            text,
            match.start("name"),
            f"{match['name']!r} is not a method",
            did_you_mean(match["name"], _PRESETS) or f"known: {', '.join(sorted(_PRESETS))}",
        )
    preset = _PRESETS[name]
    changes: dict[str, Any] = {}
    known = {f.name for f in fields(preset)}
    for field_text, offset in _split(match["fields"] or "", match.start("fields")):
        key, equals, value_text = field_text.partition("=")
        key = key.strip()
        if not equals or not value_text.strip():
            raise _at(
                text, offset, f"expected field=value, found {field_text.strip()!r}", "for example reduction_factor=64"
            )
        if key not in known:
            near = did_you_mean(key, known)
            raise _at(text, offset, f"{name} has no field {key!r}", near or f"fields: {', '.join(sorted(known))}")
        if key in changes:
            raise _at(text, offset, f"the field {key!r} appears twice", "name each field once")
        changes[key] = _literal(text, value_text, offset + len(key) + 1)
    try:
        made = replace(preset, **changes)
        check_types(made)
        return made
    except TypeError as error:
        raise UsageError(f"{text!r}: a value is of the wrong type: {error}") from error
    except UsageError as error:
        raise UsageError(f"{text!r}: {error.what}", hint=error.hint) from error


def config_from_dict(family: str, raw: Mapping[str, Any]) -> MethodConfig:
    """Build a configuration from a card.

    Raises:
        UsageError: An unknown method or field, or a value that is not allowed.
    """
    if family not in _FAMILIES:
        raise UsageError(
            f"unknown adapter method {family!r}",
            hint=f"known: {', '.join(sorted(_FAMILIES))}; is adaptergit up to date?",
        )
    cls = _FAMILIES[family]
    known = {f.name for f in fields(cls)}
    for key in raw:
        if key not in known:
            raise UsageError(f"{family} has no field {key!r}", hint=f"fields: {', '.join(sorted(known))}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})


def check_types(config: MethodConfig) -> None:
    """Compare every field with its annotation: cards and config strings can hold anything.

    Raises:
        UsageError: A value is of another type.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            wanted = str(field.type).replace("None", "nothing")
            raise UsageError(f"{config.family}: {field.name} must be {wanted}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType or origin is TypingUnion:
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    if hint is Any:
        return True
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e18
    if hint is int:
        return isinstance(value, int) and abs(value) < 2**53
    return isinstance(value, hint)


def describe(config: MethodConfig) -> dict[str, Any]:
    """Return a configuration as a card stores it: its family and every field."""
    return {"family": config.family, **_plain(config.to_dict())}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _split(text: str, offset: int, separator: str = ",") -> list[tuple[str, int]]:
    """Split at separators outside brackets and quotes, keeping positions."""
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in ")}]":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append((text[start:at], offset + start))
            start = at + 1
    tail = text[start:]
    return [*parts, (tail, offset + start)] if parts or tail.strip() else []


def _literal(whole: str, text: str, offset: int) -> Any:
    word = text.strip()
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*", word) and word not in ("True", "False", "None"):
        return {"true": True, "false": False, "none": None, "null": None}.get(word, word)
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise _at(
            whole, offset, f"{word!r} is not a value", "write a number, text, True, False, None, [..] or {..}"
        ) from error
    return tuple(value) if isinstance(value, list) else value


def _at(text: str, position: int, what: str, hint: str) -> UsageError:
    return UsageError(f"{what}\n  {text}\n  {' ' * position}^", hint=hint)
