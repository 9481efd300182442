"""Other people's checkpoints, read as they are: AdapterHub's so far."""

from adaptergit.formats.adapterhub import Checkpoint, is_adapterhub, read_adapterhub, translate

__all__ = ["Checkpoint", "is_adapterhub", "read_adapterhub", "translate"]
