"""Plain HTTP downloads, for when git cannot be had: archives that forges make of tags, and static mirrors.

``download.py`` is the one way to make a request; what it brings is never trusted before it is verified.
"""

from adaptergit.web.archive import archive_urls, fetch_archive
from adaptergit.web.mirror import StaticMirror

__all__ = ["StaticMirror", "archive_urls", "fetch_archive"]
