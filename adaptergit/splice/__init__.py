"""The modelling half: adapters spliced into any Hugging Face transformer, which stays what it is.

Read in this order: ``anatomy.py`` (where in a model adapters go), ``methods/`` (what goes there), ``composition.py``
(how several act together), ``engine.py`` (the hooks), ``panel.py`` (what a person holds).
"""

from adaptergit.splice.anatomy import Anatomy, Site, anatomy_of
from adaptergit.splice.composition import (
    Average,
    BatchSplit,
    Fuse,
    MultiTask,
    Parallel,
    Route,
    Split,
    Stack,
    parse_composition,
)
from adaptergit.splice.config import MethodConfig, parse_config
from adaptergit.splice.describe import inspect
from adaptergit.splice.fingerprint import Fingerprint, compare, fingerprint_of
from adaptergit.splice.fusion import FusionConfig
from adaptergit.splice.heads import (
    CausalLMHead,
    ClassificationHead,
    DependencyParsingHead,
    HeadConfig,
    ImageClassificationHead,
    MaskedLMHead,
    MultiLabelHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    StaticHead,
    TaggingHead,
    register_head,
)
from adaptergit.splice.methods import (
    IA3,
    Bottleneck,
    LoRA,
    MTLLoRA,
    PrefixTuning,
    PromptTuning,
    ReFT,
    TunedParameters,
    Union,
    VeRA,
    WeightForm,
)
from adaptergit.splice.panel import Panel, adapters

__all__ = [
    "IA3",
    "Anatomy",
    "Average",
    "BatchSplit",
    "Bottleneck",
    "CausalLMHead",
    "ClassificationHead",
    "DependencyParsingHead",
    "Fingerprint",
    "Fuse",
    "FusionConfig",
    "HeadConfig",
    "ImageClassificationHead",
    "LoRA",
    "MTLLoRA",
    "MaskedLMHead",
    "MethodConfig",
    "MultiLabelHead",
    "MultiTask",
    "MultipleChoiceHead",
    "Panel",
    "Parallel",
    "PrefixTuning",
    "PromptTuning",
    "QuestionAnsweringHead",
    "ReFT",
    "Route",
    "Seq2SeqLMHead",
    "Site",
    "Split",
    "Stack",
    "StaticHead",
    "TaggingHead",
    "TunedParameters",
    "Union",
    "VeRA",
    "WeightForm",
    "adapters",
    "anatomy_of",
    "compare",
    "fingerprint_of",
    "inspect",
    "parse_composition",
    "parse_config",
    "register_head",
]
