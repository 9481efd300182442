"""Names that can be taken for one another."""

from __future__ import annotations

import re

_LOOKALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "_": "-", ".": "-", "~": "-"})


def skeleton(name: str) -> str:
    """The same for names that look alike (after UTS 39, for the letters a repository's name may have)."""
    folded = name.casefold().replace("rn", "m").replace("vv", "w").replace("cl", "d")
    return re.sub(r"-+", "-", folded.translate(_LOOKALIKE))


def bare(name: str) -> str:
    """Return a repository's name without its host."""
    return name.partition("/")[2].casefold()


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
