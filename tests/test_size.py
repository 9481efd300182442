"""The splicing core stays small: table, engine and methods in under 4,000 lines of code."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import adaptergit.splice

SPLICE = Path(adaptergit.splice.__file__).parent
TABLE = ["families.py", "anatomy.py"]
ENGINE = [
    "attention.py", "composition.py", "config.py", "each.py", "engine.py", "fusion.py", "hooks.py", "interpret.py",
    "layers.py", "places.py", "plan.py",
]  # fmt: skip
BLANK = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def lines_of_code(source: str) -> int:
    """Count lines that hold more than a comment or a docstring."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in BLANK:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - documented)


def test_comments_and_docstrings_are_no_code() -> None:
    assert lines_of_code('"""Doc."""\n\nx = 1  # why\n# more\ny = """a\nb"""\n') == 3


def test_table_engine_and_methods_have_under_4000_lines() -> None:
    files = [SPLICE / name for name in TABLE + ENGINE] + sorted((SPLICE / "methods").glob("*.py"))
    counts = {path.name: lines_of_code(path.read_text(encoding="utf-8")) for path in files}
    assert sum(counts.values()) < 4000, counts
