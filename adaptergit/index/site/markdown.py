"""Markdown of strangers: paragraphs, lists, emphasis, code and tables, and no markup, images or links of theirs."""

from __future__ import annotations

import functools
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup


def rendered(text: str, level: int = 2) -> Markup:
    """Render a text of a card as HTML; an address in it is shown, and leads nowhere.

    Args:
        text: Markdown.
        level: That all its headings get, so that they are in order where it stands.
    """
    tokens = _parser().parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{level}"
        if token.children:
            token.children = _unlinked(token.children)
    return Markup(_parser().renderer.render(tokens, _parser().options, {}))  # noqa: S704 - text is escaped by the parser


def plain(text: str) -> str:
    """Return the words of a text, without marks."""
    parts = []
    for token in _parser().parse(text):
        if token.type == "inline":
            parts += [child.content if child.content else " " for child in _unlinked(token.children or [])]
            parts.append(" ")
        elif token.type in ("fence", "code_block"):
            parts.append(f"{token.content} ")
    return "".join(parts)


def _unlinked(tokens: list[Token]) -> list[Token]:
    """Put the address behind the text of a link, and of an image its description in its place."""
    found: list[Token] = []
    address = ""
    for token in tokens:
        if token.type == "link_open":
            address = str(token.attrs.get("href", ""))
        elif token.type == "link_close":
            said = next((one.content for one in reversed(found) if one.content), "")
            found += [] if said.strip() == address else [_text(f" ({address})")]
        elif token.type == "image":
            found.append(_text(token.content))
        else:
            found.append(token)
    return found


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


@functools.cache
def _parser() -> Any:
    return MarkdownIt("commonmark", {"html": False}).enable("table")
