"""Other people's checkpoints, read as they are: AdapterHub's and PEFT's."""

from adaptergit.formats.adapterhub import Checkpoint, is_adapterhub, read_adapterhub, translate
from adaptergit.formats.files import Folder
from adaptergit.formats.folders import Loaded, foreign_format, is_foreign, is_single, load_folder, model_class
from adaptergit.formats.peft import is_peft, read_peft, translate_peft

__all__ = [
    "Checkpoint",
    "Folder",
    "Loaded",
    "foreign_format",
    "is_adapterhub",
    "is_foreign",
    "is_peft",
    "is_single",
    "load_folder",
    "model_class",
    "read_adapterhub",
    "read_peft",
    "translate",
    "translate_peft",
]
