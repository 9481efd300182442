"""What is public, name by name: a change here is a change for users, and goes into the changelog."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest

import adaptergit
import adaptergit.training
import adaptergit.trust
from adaptergit import errors
from adaptergit.splice.panel import Panel

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
from reference_pages import commands

KNOWN = Path(__file__).parent / "assets" / "public_api.json"


def public() -> dict[str, Any]:
    """Every public name with its arguments, every member of public classes, every command with its options."""
    found: dict[str, Any] = {}
    for module in (adaptergit, adaptergit.training):
        for name in sorted(module.__all__):
            found |= described(f"{module.__name__}.{name}", getattr(module, name))
    found |= described("Panel", Panel)
    found |= {
        f"exit code {one.exit_code}": name
        for name, one in vars(errors).items()
        if inspect.isclass(one) and "exit_code" in vars(one)
    }
    return found | dict(command_line())


def described(key: str, value: Any) -> dict[str, Any]:
    if inspect.isclass(value) and issubclass(value, Exception):
        return {key: [base.__name__ for base in value.__mro__[1:-3]]}
    if not callable(value):
        return {key: type(value).__name__}
    found: dict[str, Any] = {key: arguments(value)}
    if inspect.isclass(value):
        ours = [base for base in reversed(value.__mro__) if base.__module__.startswith("adaptergit")]
        for name, member in {name: one for base in ours for name, one in vars(base).items()}.items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                found[f"{key}.{name}"] = "property" + (", may be set" if member.fset else "")
            elif isinstance(member, classmethod | staticmethod) or inspect.isfunction(member):
                found[f"{key}.{name}"] = arguments(getattr(value, name))
    return found


def arguments(value: Any) -> list[str]:
    """Names, and what they are if nobody says; in front of those that must be named, a star."""
    return [
        f"{'*' if p.kind is p.KEYWORD_ONLY else ''}{p.name}{'' if p.default is p.empty else f'={plain(p.default)}'}"
        for p in inspect.signature(value).parameters.values()
    ]


def plain(value: Any) -> str:
    """A value as it is written everywhere: without addresses, and paths alike on every system."""
    if isinstance(value, Path):
        return repr(value.as_posix())
    if isinstance(value, enum.Enum):
        return str(value)
    return re.sub(r"<(function|class) '?([\w.<>]+).*", r"\2", repr(value))


def command_line() -> Iterator[tuple[str, list[str]]]:
    for context, command in commands():
        yield f"$ {context.command_path}", [option(one) for one in command.params]


def option(one: click.Parameter) -> str:
    """An option or an argument: how it is spelt, what it takes, and what it is if nobody says."""
    spelt = "/".join([*one.opts, *one.secondary_opts]) if isinstance(one, click.Option) else (one.human_readable_name)
    takes = "|".join(one.type.choices) if isinstance(one.type, click.Choice) else one.type.name
    given = (
        one.default if isinstance(one.default, str | int | float | Path) and not isinstance(one.default, bool) else ""
    )
    how = [
        word
        for word, so in (
            ("required", one.required),
            ("repeated", one.multiple),
            ("flag", getattr(one, "is_flag", False)),
        )
        if so
    ]
    return " ".join([spelt, takes, *how, *([f"={plain(given)}"] if given != "" else [])])


def test_the_public_names_are_the_known_ones() -> None:
    """Meant to change it? Write it into CHANGELOG.md, and run: python tests/test_api.py."""
    assert public() == json.loads(KNOWN.read_text())


def test_every_public_name_explains_itself() -> None:
    for module in (adaptergit, adaptergit.training):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                assert inspect.getdoc(value), name


def records() -> dict[str, type]:
    modules = (adaptergit, adaptergit.training, adaptergit.trust)
    named = {f"{one.__name__}.{name}": getattr(one, name) for one in modules for name in one.__all__}
    return {name: one for name, one in named.items() if inspect.isclass(one) and dataclasses.is_dataclass(one)}


@pytest.mark.parametrize("name", records())
def test_every_field_of_a_public_record_says_what_it_is(name: str) -> None:
    """In a line below it, or in the text of its class; children of a composition are what it is made of."""
    said, text = {"children"}, ""
    for base in (base for base in records()[name].__mro__ if dataclasses.is_dataclass(base)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        text += inspect.getdoc(base) or ""
        for field, below in pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                said.add(ast.unparse(field.target))
    fields = {one.name for one in dataclasses.fields(records()[name])}
    assert {one for one in fields - said if f"``{one}``" not in text} == set()


if __name__ == "__main__":
    KNOWN.write_text(json.dumps(public(), indent=1, sort_keys=True) + "\n")
