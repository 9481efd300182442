"""A rule of an index, as a value: what CI checks, what a pull request is told, and what the docs say is one text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """One thing an index insists on."""

    id: str
    docs: str
    """For people, in one or two sentences."""
    check: Callable[[T], str | None]
    """Returns why it is broken, or None."""
