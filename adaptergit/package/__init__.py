"""What is published: a flat folder of a card, a manifest, signatures, a README and weights.

Read ``folder.py`` first. This room knows nothing of git, trust or torch.
"""

from adaptergit.package.card import Card
from adaptergit.package.folder import (
    CARD,
    MANIFEST,
    README,
    SIGNATURE,
    WEIGHTS,
    Package,
    check_files,
    is_generated,
    pack,
    read_package,
    signature_names,
    unlisted_names,
)
from adaptergit.package.manifest import BaseModel, File, Manifest

__all__ = [
    "CARD",
    "MANIFEST",
    "README",
    "SIGNATURE",
    "WEIGHTS",
    "BaseModel",
    "Card",
    "File",
    "Manifest",
    "Package",
    "check_files",
    "is_generated",
    "pack",
    "read_package",
    "signature_names",
    "unlisted_names",
]
