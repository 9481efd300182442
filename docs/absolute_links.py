"""The README as PyPI shows it: its links and pictures lead to the repository, as it was when the release was tagged.

Run, before a release is built: ``python docs/absolute_links.py https://github.com/ORG/REPO v0.2.0``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<path>[^)\s]+)\)")


def absolute(text: str, repository: str, tag: str) -> str:
    """Return Markdown whose relative links lead into a repository, at a tag."""

    def led(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({repository}/{kind}/{tag}/{link['path']})"

    return _LINK.sub(led, text)


if __name__ == "__main__":
    readme = Path(__file__).parent.parent / "README.md"
    readme.write_text(absolute(readme.read_text("utf-8"), *sys.argv[1:]), "utf-8")
