"""What mkdocs calls: the pages of the reference, made from the code that is documented."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference_pages import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Show what docstrings point at by its name alone: the roles in them are Sphinx's."""
    return re.sub(r":[a-z]+:<code>~?(?:\w+\.)*(\w+)</code>", r"<code>\1</code>", html)
