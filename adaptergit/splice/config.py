"""Configurations: frozen dataclasses, a registry of methods, and the grammar of config strings.

::

    config := part ("|" part)*
    part := name ["[" field "=" value ("," field "=" value)* "]"]

Values are Python literals; ``seq_bn[reduction_factor=64, non_linearity="gelu"]``. Quotes around plain words may be left
out.
"""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from adaptergit.errors import UsageError

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
            text, match.start("name"), f"{match['name']!r} is not a method", f"known: {', '.join(sorted(_PRESETS))}"
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
            raise _at(text, offset, f"{name} has no field {key!r}", f"fields: {', '.join(sorted(known))}")
        if key in changes:
            raise _at(text, offset, f"the field {key!r} appears twice", "name each field once")
        changes[key] = _literal(text, value_text, offset + len(key) + 1)
    try:
        return replace(preset, **changes)
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
