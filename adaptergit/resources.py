"""Files shipped with the library: the JSON Schemas and the index template.

They live at the top of the repository, where people look for them, and inside the wheel under ``_data``.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(relative: str) -> Path:
    """Return the path of a shipped file or folder, from a wheel or from an editable install.

    >>> resource("schema/card.schema.json").name
    'card.schema.json'
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        if (path := root / relative).exists():
            return path
    raise FileNotFoundError(f"{relative} is missing from the installation; reinstall adaptergit")
