"""Adapter methods, one file each. Importing a file registers its configuration; list new files here."""

from adaptergit.splice.methods.bottleneck import Bottleneck

__all__ = ["Bottleneck"]
