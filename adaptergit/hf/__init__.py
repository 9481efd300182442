"""The Hugging Face Hub as one more source: signed packages and other people's unsigned checkpoints.

Read ``reference.py`` first, then ``fetch.py``. Every request goes through ``huggingface_hub`` (``client.py``), which is
imported on the first one. This room knows nothing of torch.
"""

from adaptergit.hf.fetch import fetch_hub
from adaptergit.hf.reference import HubReference
from adaptergit.hf.unsigned import Checkpoint

__all__ = ["Checkpoint", "HubReference", "fetch_hub"]
