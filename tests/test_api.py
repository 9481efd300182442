"""What is public, name by name: a change here is a change for users, and goes into the changelog."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import adaptergit
import adaptergit.training

KNOWN = Path(__file__).parent / "assets" / "public_api.json"


def public() -> dict[str, Any]:
    """Every public name with its arguments, or with what a class is made from."""
    found: dict[str, Any] = {}
    for module in (adaptergit, adaptergit.training):
        for name in sorted(module.__all__):
            value = getattr(module, name)
            key = f"{module.__name__}.{name}"
            if inspect.isclass(value) and issubclass(value, Exception):
                found[key] = [base.__name__ for base in value.__mro__[1:-3]]
            elif callable(value):
                found[key] = [
                    f"{'*' if p.kind is p.KEYWORD_ONLY else ''}{p.name}{'' if p.default is p.empty else '='}"
                    for p in inspect.signature(value).parameters.values()
                ]
            else:
                found[key] = type(value).__name__
    return found


def test_the_public_names_are_the_known_ones() -> None:
    """Meant to change it? Write it into CHANGELOG.md, and run: python tests/test_api.py."""
    assert public() == json.loads(KNOWN.read_text())


def test_every_public_name_explains_itself() -> None:
    for module in (adaptergit, adaptergit.training):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                assert inspect.getdoc(value), name


if __name__ == "__main__":
    KNOWN.write_text(json.dumps(public(), indent=1, sort_keys=True) + "\n")
