"""YAML as cards use it: JSON's data model, comments kept, no anchors, no tags, and the line of every field.

What others wrote is read from libyaml's events, an order of magnitude faster than in Python; what is written, and
changed with its comments kept, is ruamel's.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.resolver import implicit_resolvers
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from adaptergit.errors import PackageError

Path = tuple[str | int, ...]
MAX_DEPTH = 20
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXT = ("str", "timestamp")
_QUOTES = "put a text with ': ' in it, or @, % or ` in front, in quotes; indent with blanks, not with tabs"
"""A date is text here, as in JSON."""
# Python's own parser where PyYAML was built without libyaml.
_EVENTS: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS = [
    (first, pattern, tag.rpartition(":")[2])
    for versions, tag, pattern, first in implicit_resolvers
    if (1, 2) in versions
]
"""What a plain scalar is in YAML 1.2, of which ruamel writes it: its first characters, all of it, its kind."""


@dataclass(frozen=True)
class Document:
    """Parsed YAML: plain data, and the 1-based line on which each path starts."""

    data: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """Return the line of ``path`` or of its nearest parent."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def loads(data: bytes, *, where: str, limit: int) -> Document:
    """Parse YAML that somebody else wrote.

    Raises:
        PackageError: Naming file and line: too large, not UTF-8, not YAML, an anchor, alias, tag or merge key, a
            duplicate key, a key that is not a string, or a number that JSON does not have.
    """
    if len(data) > limit:
        raise PackageError(f"{len(data)} bytes, the limit is {limit}", where=where)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = f"not UTF-8 at byte {error.start}"
        raise PackageError(what, where=f"{where}:{line}", hint="save the file as UTF-8") from error
    lines: dict[Path, int] = {}
    try:
        value = _Reader(text, where, lines).document()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = f"not YAML: {error.problem or error.context}"
        hint = _QUOTES if "mapping values" in what or "cannot start" in what else None
        raise PackageError(what, where=f"{where}:{line}", hint=hint) from error
    except (yaml.YAMLError, ValueError) as error:
        raise PackageError(f"not YAML: {str(error).splitlines()[0]}", where=where) from error
    return Document(value, lines)


def dumps(data: Mapping[str, Any]) -> bytes:
    """Serialise plain data, in the order of its keys, always to the same bytes."""
    stream = io.StringIO()
    _round_trip().dump(_styled(data), stream)
    return stream.getvalue().encode("utf-8")


def update(source: bytes, changes: Mapping[Path, Any], removed: Iterable[Path] = ()) -> bytes:
    """Set and remove values in YAML text, keeping its comments and its layout.

    Args:
        source: YAML whose top is a mapping.
        changes: New values by path; mappings on the way are made, and an index one past the end of a list adds to it.
        removed: Paths to take out.

    Raises:
        KeyError: A path that is not there, or leads through something that is neither a mapping nor a list.
    """
    yaml = _round_trip()
    tree = yaml.load(source.decode("utf-8"))
    for path in removed:
        holder = _holder(tree, path, make=False)
        if not _has(holder, path[-1]):
            raise KeyError(path)
        del holder[path[-1]]
    for path, value in changes.items():
        holder, last = _holder(tree, path, make=True), path[-1]
        if isinstance(holder, list) and last == len(holder):
            holder.append(_styled(value))
        elif isinstance(holder, Mapping) is isinstance(last, str) and (isinstance(last, str) or _has(holder, last)):
            holder[last] = _styled(value)
        else:
            raise KeyError(path)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue().encode("utf-8")


def _holder(tree: Any, path: Path, *, make: bool) -> Any:
    """Return the mapping or list that holds what a path leads to."""
    for number, step in enumerate(path[:-1], 1):
        if not _has(tree, step) or tree[step] is None:
            if isinstance(tree, dict) and isinstance(step, str) and make:
                tree[step] = [] if isinstance(path[number], int) else {}
            elif isinstance(tree, list) and step == len(tree) and make:
                tree.append({})
            else:
                raise KeyError(path[:number])
        tree = tree[step]
    return tree


def _has(tree: Any, step: str | int) -> bool:
    if isinstance(tree, Mapping):
        return step in tree
    return isinstance(tree, list) and isinstance(step, int) and 0 <= step < len(tree)


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.width = 2**16  # long lines are never folded: the bytes stay a function of the data alone
    yaml.preserve_quotes = True
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _styled(value: Any) -> Any:
    """Use literal blocks for text of several lines, wherever a literal block can hold it."""
    if isinstance(value, Mapping):
        return {_styled_key(key): _styled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_one_line(item) if _is_point(item) else _styled(item) for item in value]
    if not isinstance(value, str):
        return value
    lines = value.split("\n")
    if all(line.isprintable() for line in lines):
        tidy = all(line == line.strip() or (line == line.rstrip() and i) for i, line in enumerate(lines))
        if len(lines) > 2 and tidy and lines[0] and not value.endswith("\n\n"):
            return LiteralScalarString(value)
        if len(lines) == 1:
            return value
    # Line breaks of other alphabets, controls and odd spaces: only escapes keep them apart.
    return DoubleQuotedScalarString(value)


def _is_point(value: Any) -> bool:
    """Tell whether an item of a list is a few numbers, which are read at a glance."""
    numbers = isinstance(value, list | tuple) and 0 < len(value) <= 3
    return numbers and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)


def _on_one_line(value: Iterable[Any]) -> CommentedSeq:
    line = CommentedSeq(value)
    line.fa.set_flow_style()
    return line


def _styled_key(key: str) -> str:
    return key if key.isprintable() else DoubleQuotedScalarString(key)


@lru_cache(maxsize=4096)
def _kept(text: str) -> str:
    return text


def _shared(text: str) -> str:
    """Return one text for what stands in many places and cards: keys, names, paths of a base model's modules."""
    return _kept(text) if len(text) < 100 else text


class _Reader:
    """Makes plain data of events as they come by, and refuses every trick before anything is made of it."""

    def __init__(self, text: str, where: str, lines: dict[Path, int]) -> None:
        self.events, self.where, self.lines, self.depth = _EVENTS(text), where, lines, 0

    def document(self) -> Any:
        """Return the data of the only document."""
        self._next()  # the stream's start
        if isinstance(self._next(), yaml.StreamEndEvent):
            raise PackageError("the file is empty", where=self.where, hint="bring back what it held, or write it anew")
        value = self._value((), self._next())
        self._next()  # the document's end
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise PackageError("not YAML: another document follows", where=self._at(event))
        return value

    def _next(self) -> Any:
        event = self.events.get_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise PackageError("anchors and aliases are not allowed", where=self._at(event), hint="write the value out")
        if getattr(event, "tag", None) is not None:
            raise PackageError("tags ('!…') are not allowed", where=self._at(event), hint="write a plain value")
        return event

    def _at(self, event: Any) -> str:
        return f"{self.where}:{event.start_mark.line + 1}"

    def _value(self, path: Path, event: Any) -> Any:
        self.lines.setdefault(path, event.start_mark.line + 1)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(*_kind_of(event), self._at(event))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PackageError(f"nested more than {MAX_DEPTH} deep", where=self._at(event))
        found = self._sequence(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)
        self.depth -= 1
        return found

    def _sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            found.append(self._value((*path, len(found)), event))
        return found

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            at = self._at(event)
            kind, key = _kind_of(event) if isinstance(event, yaml.ScalarEvent) else ("", "")
            if kind not in _TEXT:
                raise PackageError("a key must be text", where=at, hint="put it in quotes")
            _check_text(key, at)
            if key in found:
                raise PackageError(f"the key {key!r} appears twice", where=at, hint="take one out")
            key = _shared(key)
            self.lines[(*path, key)] = event.start_mark.line + 1
            found[key] = self._value((*path, key), self._next())
        return found


def _kind_of(event: yaml.ScalarEvent) -> tuple[str, str]:
    text = str(event.value)
    if not event.implicit[0]:  # in quotes, or a block
        return "str", text
    for first, pattern, kind in _KINDS:
        if text[:1] in first and pattern.match(text):
            return kind, text
    return "str", text


def _check_text(text: str, at: str) -> None:
    if _SURROGATE.search(text):
        raise PackageError("half of a UTF-16 surrogate pair is no text", where=at, hint="write the character itself")


def _scalar(kind: str, text: str, at: str) -> Any:
    if kind in _TEXT:
        _check_text(text, at)
        return _shared(text)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text)
        if kind == "float" and math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise PackageError(f"{text!r} is not a value that JSON has", where=at, hint="put text in quotes")
