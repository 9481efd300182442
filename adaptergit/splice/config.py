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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
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
    def method(self) -> str:
        """The best-known name of this configuration, for cards and search."""
        return self.family

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
    pieces = _split(text, 0, "|") or [("", 0)]
    parsed = [_part(text, start, start + len(piece)) for piece, start in pieces]
    if len(parsed) == 1:
        return parsed[0]
    from adaptergit.splice.methods.union import Union

    return Union(tuple(parsed))


_NAME = re.compile(r"\s*([A-Za-z0-9_+-]+)\s*")


def _part(text: str, start: int, stop: int) -> MethodConfig:
    match = _NAME.match(text, start, stop)
    if match is None:
        raise _at(text, start, "expected the name of a method", "write it like seq_bn or seq_bn[reduction_factor=64]")
    name, opening = _ALIASES.get(match[1], match[1]), match.end()
    if name not in _PRESETS:
        near = did_you_mean(match[1], _PRESETS) or f"known: {', '.join(sorted(_PRESETS))}"
        raise _at(text, match.start(1), f"{match[1]!r} is not a method", near)
    preset = _PRESETS[name]
    changes: dict[str, Any] = {}
    places: dict[str, int] = {}
    for field_text, offset in _fields(text, opening, stop):
        key, equals, value_text = field_text.partition("=")
        where, key = offset + len(field_text) - len(field_text.lstrip()), key.strip()
        if not equals or not value_text.strip():
            found = f"expected field=value, found {field_text.strip()!r}"
            raise _at(text, where, found, "for example reduction_factor=64")
        if key not in {f.name for f in fields(preset)}:
            known = sorted(f.name for f in fields(preset))
            raise _at(
                text, where, f"{name} has no field {key!r}", did_you_mean(key, known) or f"fields: {', '.join(known)}"
            )
        if key in changes:
            raise _at(text, where, f"the field {key!r} appears twice", "name each field once")
        places[key] = offset + field_text.index("=") + 1 + len(value_text) - len(value_text.lstrip())
        changes[key] = _literal(text, value_text, places[key])
    try:
        return _changed(preset, changes)
    except UsageError as error:
        raise _at(text, places.get(_culprit(preset, changes), match.start(1)), error.what, error.hint) from error


def _fields(text: str, opening: int, stop: int) -> list[tuple[str, int]]:
    """Split what is in the brackets behind a method's name."""
    if opening >= stop:
        return []
    if text[opening] != "[":
        raise _at(text, opening, "expected '[', '|' or the end", "write it like seq_bn[reduction_factor=64]")
    length = next((at for at, _, depth in _outside_quotes(text[opening:stop]) if depth == 0), None)
    if length is None:
        raise _at(text, opening, "this bracket, or a quote behind it, is not closed", "close it with ']'")
    rest = text[opening + length + 1 : stop]
    if rest.strip():
        raise _at(text, stop - len(rest.lstrip()), "expected '|' or the end", "join methods with '|'")
    return _split(text[opening + 1 : opening + length], opening + 1)


def _changed(preset: MethodConfig, changes: Mapping[str, Any]) -> MethodConfig:
    try:
        made = replace(preset, **changes)
        check_types(made)
        return made
    except TypeError as error:
        raise UsageError(f"a value is of the wrong type: {error}") from error


def _culprit(preset: MethodConfig, changes: Mapping[str, Any]) -> str:
    """Name the field whose value is not allowed: without it all is well, or it alone is not."""

    def works(some: Mapping[str, Any]) -> bool:
        try:
            return _changed(preset, some) is not None
        except UsageError:
            return False

    without = (key for key in changes if works({k: v for k, v in changes.items() if k != key}))
    alone = (key for key, value in changes.items() if not works({key: value}))
    return next(without, next(alone, ""))


def config_from_dict(family: str, raw: Mapping[str, Any]) -> MethodConfig:
    """Build a configuration from a card, which may name the family too.

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
        if key not in known | {"family"}:
            raise UsageError(f"{family} has no field {key!r}", hint=f"fields: {', '.join(sorted(known))}")
    return cls(**{key: _tuples(value) for key, value in raw.items() if key != "family"})


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def check_types(config: MethodConfig) -> None:
    """Compare every field with its annotation: cards and config strings can hold anything.

    Raises:
        UsageError: A value is of another type.
    """
    hints = _hints(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            wanted = str(field.type).replace("None", "nothing")
            raise UsageError(f"{config.family}: {field.name} must be {wanted}, not {value!r}")


_hints = cache(get_type_hints)  # a millisecond each time


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
    cuts = [at for at, char, depth in _outside_quotes(text) if char == separator and depth == 0]
    bounds = pairwise([-1, *cuts, len(text)])
    return [(text[a + 1 : b], offset + a + 1) for a, b in bounds] if cuts or text.strip() else []


def _outside_quotes(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield index, character and depth of brackets behind it."""
    depth, quote = 0, ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[{(") - (char in ")}]")
            yield at, char, depth


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


def _at(text: str, position: int, what: str, hint: str | None) -> UsageError:
    return UsageError(f"{what}\n  {text}\n  {' ' * position}^", hint=hint)
