"""Other people's checkpoints, read as they are: AdapterHub's and PEFT's."""

from adaptergit.formats.adapterhub import Checkpoint, is_adapterhub, read_adapterhub, translate
from adaptergit.formats.folders import Loaded, is_foreign, load_folder
from adaptergit.formats.peft import is_peft, read_peft, translate_peft

__all__ = [
    "Checkpoint",
    "Loaded",
    "is_adapterhub",
    "is_foreign",
    "is_peft",
    "load_folder",
    "read_adapterhub",
    "read_peft",
    "translate",
    "translate_peft",
]
