"""The badges of the README, drawn from what is in the repository; nobody's server is asked for one.

Run: ``python docs/pictures/badges.py``.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

_BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}: {value}">
<rect width="{width}" height="20" rx="4" fill="#33407a"/>
<path d="M{name_width} 0h{rest}a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4h-{rest}z" fill="#5468c4"/>
<g fill="#fff" text-anchor="middle" font-family="system-ui,sans-serif" font-size="11.5">
<text x="{name_at}" y="14">{name}</text>
<text x="{value_at}" y="14">{value}</text>
</g></svg>
"""
_LETTER, _MARGIN = 6.2, 8


def main() -> None:
    """Draw all of them."""
    for name, value in facts().items():
        (HERE / f"badge-{name}.svg").write_text(badge(name, value), "utf-8")


def facts() -> dict[str, str]:
    """Return what the badges say, by their names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    said = project["project"]
    kinds = [one.rpartition(" :: ")[2] for one in said["classifiers"] if one.startswith("Programming Language")]
    versions = sorted((kind for kind in kinds if "." in kind), key=lambda kind: int(kind.partition(".")[2]))
    strict = (ROOT / "adaptergit" / "py.typed").exists() and project["tool"]["mypy"]["strict"]
    return {
        "licence": said["license"],
        "python": f"{versions[0]} – {versions[-1]}",
        "tests": f"{tests() // 100 * 100:,}+",  # of hundreds: it need not be drawn again for each
        "typed": "strictly" if strict else "no",
    }


def tests() -> int:
    """Count the functions that are tests, however many cases each has."""
    trees = (ast.parse(file.read_text("utf-8")) for file in (ROOT / "tests").glob("test_*.py"))
    return sum(isinstance(n, ast.FunctionDef) and n.name.startswith("test_") for t in trees for n in ast.walk(t))


def badge(name: str, value: str) -> str:
    """Return one badge as SVG."""
    name_width = round(len(name) * _LETTER) + 2 * _MARGIN
    width = name_width + round(len(value) * _LETTER) + 2 * _MARGIN
    return _BADGE.format(
        name=name,
        value=value,
        width=width,
        name_width=name_width,
        rest=width - name_width - 4,
        name_at=name_width / 2,
        value_at=(name_width + width) / 2,
    )


if __name__ == "__main__":
    main()
