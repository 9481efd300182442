"""Pictures: one label for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import torch

from adaptergit.errors import DataError
from adaptergit.splice.heads import HeadConfig, ImageClassificationHead
from adaptergit.training import measures
from adaptergit.training.rows import Data, Row
from adaptergit.training.tasks.base import (
    Collate,
    Feature,
    Generate,
    Run,
    Task,
    Tools,
    chosen_label,
    known_label,
    learnt_labels,
)
from adaptergit.training.tasks.said import Label


@dataclass(frozen=True)
class ImageClassification(Task):
    """A folder of folders of images, or a table with their paths, seen from its own folder."""

    name: ClassVar[str] = "image-classification"
    roles: ClassVar[Mapping[str, str | None]] = {"image": "image", "label": "label"}
    inputs: ClassVar[str] = "AutoImageProcessor"
    asks: ClassVar[tuple[str, ...]] = ("image",)
    heads: ClassVar[tuple[str, ...]] = ("image_classification", "ForImageClassification")

    @classmethod
    def learn(cls, columns: Mapping[str, str], data: Data) -> Self:
        """Collect the labels."""
        return cls(columns, learnt_labels([row.label(columns["label"]) for row in data], data))

    def check(self, data: Data) -> None:
        """Every label must be known, every file there."""
        for row in data:
            known_label(row.label(self.columns["label"]), self.labels, row)
        self._paths(data)

    def head(self) -> HeadConfig:
        """Return an image classification head."""
        return ImageClassificationHead(num_labels=len(self.labels), labels=self.labels)

    def features(self, data: Data, tools: Tools) -> Sequence[Feature]:
        """Return images that are opened when they are needed."""
        self.check(data)
        return _Images(
            self._paths(data),
            [known_label(row.label(self.columns["label"]), self.labels, row) for row in data],
            tools.tokenizer,
        )

    def encoded(self, data: Data, tools: Tools) -> Sequence[Feature]:
        """Return images without labels, opened as they are looked at."""
        return _Images(self._paths(data), None, tools.tokenizer)

    def collate(self, tools: Tools) -> Collate:
        """Stack."""
        return lambda features: {key: torch.stack([one[key] for one in features]) for key in features[0]}

    def answers(self, data: Data, tools: Tools, run: Run, generate: Generate) -> list[torch.Tensor]:
        """Return logits (labels,)."""
        return run(
            self.encoded(data, tools), self.collate(tools), lambda output, _: output.logits.float().cpu().unbind()
        )

    def measures(self, answers: Sequence[torch.Tensor], data: Data) -> list[measures.Measure]:
        """Accuracy and macro F1."""
        gold = [known_label(row.label(self.columns["label"]), self.labels, row) for row in data]
        return measures.classification([int(one.argmax()) for one in answers], gold, len(self.labels))

    def worded(self, reply: torch.Tensor, row: Row) -> Label:
        """Return the most probable label."""
        return chosen_label(reply, self.labels)

    def _paths(self, data: Data) -> list[Path]:
        paths = []
        for row in data:
            path = data.path.parent / row.text(self.columns["image"])
            if not path.is_file():
                raise DataError(
                    f"there is no image {path}",
                    where=row.where,
                    hint=f"paths are seen from {data.path.parent.absolute()}",
                )
            paths.append(path)
        return paths


@dataclass(frozen=True)
class _Images(Sequence[Feature]):
    paths: list[Path]
    labels: list[int] | None
    processor: Any

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Feature: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feature]: ...
    def __getitem__(self, index: int | slice) -> Feature | Sequence[Feature]:
        from PIL import Image, UnidentifiedImageError

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            with Image.open(self.paths[index]) as image:
                pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            where, hint = str(self.paths[index]), "save it as PNG or JPEG, or take it out"
            raise DataError(f"not an image: {error}", where=where, hint=hint) from error
        return {"pixel_values": pixels, **({} if self.labels is None else {"labels": torch.tensor(self.labels[index])})}
