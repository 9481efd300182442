"""Mixing: rows for different adapters in one forward, each with its own adapter and head.

Rows are sorted by adapter; the model runs with a BatchSplit that gives every adapter its rows, and every head answers
for its adapter's rows. What cannot stand in one batch with others has a lane of its own. Whether mixing and padding
leave the answers alone is not believed but tried once, with every adapter, before anything is served.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.errors import AdaptergitError, AdaptergitWarning, ModelError
from adaptergit.serve.encoding import Row, encode, padded
from adaptergit.splice.composition import BatchSplit, Block, Composition
from adaptergit.splice.heads import StaticHead
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.places import Prompt

if TYPE_CHECKING:
    from adaptergit.serve.service import Served

Scores = Mapping[str, torch.Tensor]
"""What a head said of one row, by the names of its output's fields; (labels,) or (seq, labels), float32, on the CPU."""

_PROBES = ("a", "a much longer text of several words, with which a short one must be padded; it means nothing")


class Mixer:
    """Runs rows of one lane; for one thread at a time.

    Args:
        model: With all adapters and heads in its panel.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._panel = model, adapters(model)
        self._device = next(model.parameters()).device

    def __call__(self, rows: Sequence[Row]) -> list[Scores]:
        """Return the scores of every row, in order.

        Raises:
            ModelError: A head gave something else than an answer for each of its rows.
        """
        order = sorted(range(len(rows)), key=lambda i: rows[i].served.name)
        groups = [(served, list(of)) for served, of in groupby(order, key=lambda i: rows[i].served)]
        self._activate([(served, len(of)) for served, of in groups])
        batch = padded([rows[i] for i in order], self._device)
        with torch.inference_mode():
            output = self._model(**batch)
        found: dict[int, Scores] = {}
        for (served, of), answer in zip(groups, _answers(output, groups), strict=True):
            assert served.phrasing is not None
            scores = {name: answer[name].float().cpu() for name in served.phrasing.fields}
            if any(len(values) != len(of) for values in scores.values()):
                raise ModelError(f"the head of {served.name!r} did not answer for exactly its {len(of)} rows")
            for place, i in enumerate(of):
                found[i] = {name: _own(values[place], rows[i], batch) for name, values in scores.items()}
        return [found[i] for i in range(len(rows))]

    def _activate(self, groups: Sequence[tuple[Served, int]]) -> None:
        heads = [served.head for served, _ in groups if served.head is not None]
        if len(groups) == 1:
            served = groups[0][0]
            self._panel.activate(served.composition, head=heads, embeddings=served.embeddings)
            return
        sizes = [size for _, size in groups]
        split = BatchSplit(*(served.composition for served, _ in groups), batch_sizes=sizes)
        self._panel.activate(split, head=heads)


def lane_of(panel: Panel, served: Served) -> Hashable:
    """Return what rows must have in common with an adapter's to share a batch with them."""
    own_head = served.head is not None and isinstance(panel.head_config(served.head), StaticHead)
    if served.embeddings is not None or own_head:
        return served.name
    # Positions that prompts and prefixes take must be as many in all rows.
    return (served.head is None, positions_taken(panel, served.composition))


def positions_taken(panel: Panel, composition: Composition) -> tuple[int, int]:
    """Return how many positions adapters take in front of the tokens: behind the embedding, and the model's own."""
    behind = own = 0
    for name in composition.names() if isinstance(composition, Block) else [composition]:
        for place, leaf in panel.spliced(name).parts.places.items():
            if isinstance(place, Prompt):
                length = len(leaf.prompt_embedding)  # type: ignore[arg-type]
                behind, own = (behind + length, own) if place.path else (behind, own + length)
        own += max(
            (length for leaf in panel.spliced(name).parts.places.values() if (length := _prefix(leaf))), default=0
        )
    return behind, own


def _prefix(leaf: Any) -> int:
    """Return the length of a prefix that takes positions of the model's own."""
    before = getattr(getattr(leaf, "config", None), "positions", None) == "before"
    return int(getattr(leaf, "length", 0)) if before else 0


def loners(model: nn.Module, served: Sequence[Served], most: int = 32) -> list[Served]:
    """Return the adapters whose answers change with what shares their batch, found by trying; warn of each.

    Padding changes what a model without attention masks computes; a mixture of experts with a capacity lets rows push
    each other out.
    """
    run = Mixer(model)
    tolerance = 1e-4 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 5e-2
    found: list[Served] = []
    for lane in dict.fromkeys(one.lane for one in served):
        rows = [row for one in served if one.lane == lane for row in _probes(one)]
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            for row, together in zip(part, _tried(run, part), strict=True):
                if row.served not in found and not _same(run([row])[0], together, tolerance):
                    found.append(row.served)
    for one in found:
        told = f"the answers of {one.name!r} depend on what shares its batch: its texts are run one at a time"
        warnings.warn(told, AdaptergitWarning, stacklevel=2)
    return found


def _probes(served: Served) -> list[Row]:
    assert served.phrasing is not None
    return encode(served, _PROBES, _PROBES[::-1] if served.phrasing.pairs else None)


def _tried(run: Mixer, rows: Sequence[Row]) -> Sequence[Scores | None]:
    try:
        return run(rows)
    except (AdaptergitError, RuntimeError, ValueError, IndexError):  # whatever a model's own code makes of it
        return [None] * len(rows)


def _same(alone: Scores, together: Scores | None, tolerance: float) -> bool:
    return together is not None and all(
        values.shape == together[name].shape and torch.allclose(together[name], values, rtol=tolerance, atol=tolerance)
        for name, values in alone.items()
    )


def _answers(output: Any, groups: Sequence[tuple[Served, Sequence[int]]]) -> Sequence[Any]:
    """Return the answer for each adapter's rows, in order."""
    if len(groups) == 1:
        return [output]
    if groups[0][0].head is not None:
        answers: Sequence[Any] = output.head_outputs
        return answers
    # The model's own head, with weights of the adapter's own, has answered for all.
    ends = list(accumulate(len(of) for _, of in groups))
    return [
        {name: output[name][end - len(of) : end] for name in served.phrasing.fields}
        for (served, of), end in zip(groups, ends, strict=True)
        if served.phrasing is not None
    ]


def _own(values: torch.Tensor, row: Row, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Leave out what a prompt and the padding put beside a row's own tokens."""
    assert row.served.phrasing is not None
    if not row.served.phrasing.by_token:
        return values
    seq = batch["input_ids"].shape[1]
    return values[len(values) - seq :][: row.length]
