"""The order in which examples are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from adaptergit.training.tasks.base import Feature


class Order(Sampler[int]):
    """A new random order every epoch, with examples of similar lengths together, where they have lengths.

    It follows from seed and epoch alone, so that a resumed run, and every process of several, has the same.
    """

    def __init__(self, features: Sequence[Feature], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._size, self._batch, self._seed, self._epoch = len(features), batch_size, seed, epoch
        self._lengths = [len(one["input_ids"]) for one in features] if "input_ids" in features[0] else None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch())
        if self._lengths is None:
            return iter(torch.randperm(self._size, generator=generator).tolist())
        return iter(get_length_grouped_indices(self._lengths, self._batch, generator=generator))
