"""Compositions: how several adapters act together. Pure data, and the grammar of composition strings.

``Stack(a, b)``: every block runs ``a``, then ``b`` on its output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaptergit.errors import UsageError


@dataclass(frozen=True)
class Stack:
    """Adapters one after another, first to last.

    >>> str(Stack("de", "qa"))
    'Stack(de, qa)'
    """

    children: tuple[str, ...]

    def __init__(self, *children: str) -> None:
        object.__setattr__(self, "children", tuple(children))
        if not children:
            raise UsageError("an empty Stack means nothing", hint="set active to None to switch adapters off")
        for child in children:
            if not isinstance(child, str):
                raise UsageError(f"a Stack holds adapter names, not {child!r}")

    def __str__(self) -> str:
        return self.children[0] if len(self.children) == 1 else f"Stack({', '.join(self.children)})"


Composition = Stack


def parse_composition(value: str | Stack) -> Stack:
    """Parse ``name`` or ``Stack(name, name)``.

    Raises:
        UsageError: Pointing into the string.

    >>> parse_composition("Stack(de, qa)").children
    ('de', 'qa')
    """
    if isinstance(value, Stack):
        return value
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a composition", hint='write "qa" or "Stack(de, qa)"')
    name = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    if re.fullmatch(rf"\s*{name}\s*", value):
        return Stack(value.strip())
    match = re.fullmatch(r"\s*(?P<block>\w+)\s*\((?P<body>.*)\)\s*", value)
    if match is None or match["block"] != "Stack":
        what = f"{match['block']!r} is not a composition block" if match else "this is not a composition"
        raise UsageError(f"{what}\n  {value}\n  ^", hint='write "qa" or "Stack(de, qa)"')
    children, at = [], match.start("body")
    for part in match["body"].split(","):
        if not re.fullmatch(rf"\s*{name}\s*", part):
            column = at + len(part) - len(part.lstrip())
            raise UsageError(f"expected an adapter name\n  {value}\n  {' ' * column}^", hint='write "Stack(de, qa)"')
        children.append(part.strip())
        at += len(part) + 1
    return Stack(*children)
