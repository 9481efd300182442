"""All rules of an index, and what is written of them: for a pull request, and for people.

A rule looks at a *proposal* (a source that somebody wants to add or change), at a *release* that the crawl found, or at
a *listing* (what was listed, and what is). It returns nothing, or why it is broken, in words for the person who can
mend it.
"""

from __future__ import annotations

import re

from adaptergit.errors import printable
from adaptergit.index.entry_rules import ENTRY_RULES, Listing
from adaptergit.index.release_rules import RELEASE_RULES, Release
from adaptergit.index.rule import Rule
from adaptergit.index.source_rules import SCOPE, SOURCE_RULES, Proposal

AnyRule = Rule[Proposal] | Rule[Release] | Rule[Listing]
TABLES: tuple[tuple[str, tuple[AnyRule, ...]], ...] = (
    ("Sources, in a pull request", SOURCE_RULES),
    ("Releases, in every crawl", RELEASE_RULES),
    ("What is listed, in every check of an index, and by everybody who updates", ENTRY_RULES),
)


def broken_by(one: Proposal | Release | Listing) -> list[tuple[AnyRule, str]]:
    """Return every rule that a proposal, a release or a listing breaks, and why."""
    found: list[tuple[AnyRule, str]] = []
    if isinstance(one, Proposal):
        found += [(rule, why) for rule in SOURCE_RULES if (why := rule.check(one)) is not None]
    elif isinstance(one, Release):
        found += [(rule, why) for rule in RELEASE_RULES if (why := rule.check(one)) is not None]
    else:
        found += [(rule, why) for rule in ENTRY_RULES if (why := rule.check(one)) is not None]
    return found


def comment(path: str, one: Proposal) -> str:
    """Return what a pull request is told of one file, as Markdown."""
    broken = {rule.id: why for rule, why in broken_by(one)}
    verdict = "**can be merged**" if not broken else f"**{len(broken)} to mend**"
    rows = []
    for rule in SOURCE_RULES:
        unknown = one.source is None and rule.id not in ("schema", "removed")
        unknown |= rule.id == "waiting" and one.proposed is None
        if rule.id in broken:
            rows.append(f"| ❌ | `{rule.id}` | {_cell(broken[rule.id])} |")
        else:
            rows.append(f"| {'➖' if unknown else '✅'} | `{rule.id}` | {'not checked' if unknown else rule.docs} |")
    return "\n".join([f"### `{_cell(path)}`: {verdict}", "", "| | rule | |", "|---|---|---|", *rows, ""])


def documentation() -> str:
    """Return the page about the rules, as Markdown."""
    parts = ["# The rules of an index", "", f"`scope`: {SCOPE}", ""]
    for title, rules in TABLES:
        parts += [f"## {title}", "", "| rule | |", "|---|---|", *(f"| `{r.id}` | {r.docs} |" for r in rules), ""]
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Somebody else's text in a table of ours: no new cells, lines, links, mentions or HTML."""
    return re.sub(r"([|\\`*_\[\]<>@#!])", r"\\\1", printable(text))
