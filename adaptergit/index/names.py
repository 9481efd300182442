"""Names that can be taken for one another."""

from __future__ import annotations

import re

_LOOKALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "_": "-", ".": "-", "~": "-"})
_ENOUGH, _LONG = 5, 12
"""Characters from which one typing error, and two, are hard to see; short names differ by little all the time."""


def alike(mine: str, other: str) -> str | None:
    """Return why a repository can be taken for another one, or None.

    Host, owner and repository are compared each by itself: repositories are called ``adapters`` everywhere, and many
    owners ``…-nlp``.
    """
    if mine == other:
        return None
    if skeleton(mine) == skeleton(other):
        return "it differs in case or in letters that look alike"
    host, owner, name = _parts(mine)
    theirs, their_owner, their_name = _parts(other)
    if (host, owner) == (theirs, their_owner):
        return None  # nobody else's
    if skeleton(owner) == skeleton(their_owner) and skeleton(name) == skeleton(their_name):
        return f"it has the same owner and name on {theirs}"
    if _near(owner, their_owner) and (skeleton(name) == skeleton(their_name) or _near(name, their_name)):
        return "its owner's name differs by a typing error"
    return None


def skeleton(name: str) -> str:
    """The same for names that look alike (after UTS 39, for the letters a repository's name may have)."""
    folded = name.casefold().replace("rn", "m").replace("vv", "w").replace("cl", "d")
    return re.sub(r"-+", "-", folded.translate(_LOOKALIKE))


def distance(a: str, b: str, limit: int = 3) -> int:
    """Damerau-Levenshtein distance (optimal string alignment), or ``limit`` if it is at least that."""
    if abs(len(a) - len(b)) >= limit:
        return limit
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return min(row[-1], limit)


def _parts(name: str) -> tuple[str, str, str]:
    host, _, rest = name.casefold().partition("/")
    owner, _, repository = rest.rpartition("/")
    return host, owner, repository


def _near(a: str, b: str) -> bool:
    if re.sub(r"\d+", "0", a) == re.sub(r"\d+", "0", b):
        return False  # numbered: lab1, lab2
    length = min(len(a), len(b))
    return 0 < distance(a, b) <= (2 if length >= _LONG else 1 if length >= _ENOUGH else 0)
