"""Learning rates that the papers of the methods used, for AdamW; a place to start from."""

from __future__ import annotations

from adaptergit.splice.config import MethodConfig
from adaptergit.splice.methods import Union

DEFAULT = 1e-4

LEARNING_RATES: dict[str, float] = {
    "bottleneck": 1e-4,  # Pfeiffer et al. 2021 (arXiv:2005.00247)
    "compacter": 3e-3,  # Karimi Mahabadi et al. 2021 (arXiv:2106.04647)
    "lora": 5e-4,  # Hu et al. 2021 (arXiv:2106.09685), RoBERTa-base on SST-2
    "vera": 4e-3,  # Kopiczko et al. 2024 (arXiv:2310.11454), RoBERTa-base on SST-2
    "ia3": 3e-3,  # Liu et al. 2022 (arXiv:2205.05638)
    "prefix_tuning": 5e-5,  # Li & Liang 2021 (arXiv:2101.00190)
    "prompt_tuning": 3e-1,  # Lester et al. 2021 (arXiv:2104.08691)
    "reft": 9e-4,  # Wu et al. 2024 (arXiv:2404.03592)
}


def learning_rate(config: MethodConfig) -> float:
    """Return the learning rate of a method's paper; of a union, that of its first member."""
    if isinstance(config, Union):
        return learning_rate(config.configs[0])
    if getattr(config, "phm_layer", False):
        return LEARNING_RATES["compacter"]
    return LEARNING_RATES.get(config.family, DEFAULT)
