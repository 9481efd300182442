"""Adapter methods, one file each. Importing a file registers its configuration; list new files here."""

from adaptergit.splice.methods.bottleneck import Bottleneck
from adaptergit.splice.methods.ia3 import IA3
from adaptergit.splice.methods.lora import LoRA
from adaptergit.splice.methods.mtl_lora import MTLLoRA
from adaptergit.splice.methods.prefix_tuning import PrefixTuning
from adaptergit.splice.methods.prompt_tuning import PromptTuning
from adaptergit.splice.methods.reft import ReFT
from adaptergit.splice.methods.tuned import TunedParameters
from adaptergit.splice.methods.union import Union
from adaptergit.splice.methods.vera import VeRA
from adaptergit.splice.methods.weight_forms import WeightForm

__all__ = [
    "IA3", "Bottleneck", "LoRA", "MTLLoRA", "PrefixTuning", "PromptTuning", "ReFT", "TunedParameters", "Union", "VeRA",
    "WeightForm",
]  # fmt: skip
