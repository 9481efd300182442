"""YAML as cards use it: JSON's data model, comments kept, no anchors, no tags, and the line of every field."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.parser import Parser
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from adaptergit.errors import PackageError

Path = tuple[str | int, ...]
MAX_DEPTH = 20


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
        raise PackageError(f"not UTF-8 at byte {error.start}", where=where) from error
    try:
        node = _strict(where).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PackageError(f"not YAML: {error.problem or error.context}", where=f"{where}:{line}") from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise PackageError(
            f"not YAML: {str(error).splitlines()[0] if str(error) else 'nested too deeply'}", where=where
        ) from error
    if node is None:
        raise PackageError("the file is empty", where=where)
    lines: dict[Path, int] = {}
    return Document(_plain(node, (), lines, where), lines)


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


def _strict(where: str) -> YAML:
    """Return a reader that refuses every trick as it comes by, before a tree is built of it."""

    class Strict(Parser):
        depth = 0

        def get_event(self) -> Any:
            event = super().get_event()
            kind = type(event).__name__
            at = f"{where}:{event.start_mark.line + 1}"
            if kind == "AliasEvent" or getattr(event, "anchor", None):
                raise PackageError("anchors and aliases are not allowed", where=at, hint="write the value out")
            if getattr(event, "tag", None) is not None:
                raise PackageError("tags ('!…') are not allowed", where=at, hint="write a plain value")
            if kind in ("MappingStartEvent", "SequenceStartEvent"):
                self.depth += 1
                if self.depth > MAX_DEPTH:
                    raise PackageError(f"nested more than {MAX_DEPTH} deep", where=at)
            elif kind in ("MappingEndEvent", "SequenceEndEvent"):
                self.depth -= 1
            return event

    yaml = YAML(typ="safe", pure=True)
    yaml.Parser = Strict
    return yaml


def _plain(node: Node, path: Path, lines: dict[Path, int], where: str) -> Any:
    lines[path] = node.start_mark.line + 1
    at = f"{where}:{node.start_mark.line + 1}"
    if isinstance(node, SequenceNode):
        return [_plain(child, (*path, i), lines, where) for i, child in enumerate(node.value)]
    if isinstance(node, MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            at = f"{where}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, ScalarNode) or not str(key_node.tag).endswith((":str", ":timestamp")):
                raise PackageError("a key must be text", where=at, hint="put it in quotes")
            key = str(key_node.value)
            _check_text(key, at)
            if key in result:
                raise PackageError(f"the key {key!r} appears twice", where=at)
            result[key] = _plain(value_node, (*path, key), lines, where)
            lines[(*path, key)] = key_node.start_mark.line + 1
        return result
    return _scalar(node, at)


def _check_text(text: str, at: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PackageError("half of a UTF-16 surrogate pair is no text", where=at, hint="write the character itself")


def _scalar(node: Node, at: str) -> Any:
    kind, text = str(node.tag).rpartition(":")[2], str(node.value)
    if kind in ("str", "timestamp"):  # a date is text here, as in JSON
        _check_text(text, at)
        return text
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
