"""Diff: what differs between two adapters, tensor by tensor and field by field. No base model is needed.

Weights are read one pair of tensors at a time, whatever the files hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptergit.contents import CONFIG, Contents, contents
from adaptergit.package.weights import Tensor, opened
from adaptergit.progress import each

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 20
"""Numbers that are compared at once in double precision."""


@dataclass(frozen=True)
class TensorDiff:
    """One tensor in two adapters."""

    name: str
    state: str
    """``equal``, ``changed``, ``dtype`` (and perhaps values), ``shape``, ``only_a`` or ``only_b``."""
    a: str | None
    """dtype and shape, ``F32 [8, 32]``; None if it is not there."""
    b: str | None
    max_difference: float | None = None
    """Largest |b − a|, where shapes agree and all differences are finite."""
    relative: float | None = None
    """‖b − a‖ / ‖a‖, where that is finite."""


@dataclass(frozen=True)
class FieldDiff:
    """One field that has two values; None where there is none."""

    field: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Diff:
    """What differs."""

    a: str
    b: str
    tensors: tuple[TensorDiff, ...]
    """All of them, equal ones too."""
    config: tuple[FieldDiff, ...]
    """Of the method."""
    card: tuple[FieldDiff, ...]
    """Everything else that the cards say, but for scores."""
    scores: tuple[FieldDiff, ...]
    """Evaluation, named metric, data and split."""
    formats: tuple[str, str]
    """Whose files they are: tensors of two formats have other names."""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(one.state == "equal" for one in self.tensors) and not (self.config or self.card or self.scores)


def diff(a: str | Path, b: str | Path, *, policy: str | None = "unsigned", **fetching: Any) -> Diff:
    """Compare two adapters.

    Args:
        a: A reference, a package folder, or a folder of AdapterHub's or PEFT's.
        b: Another.
        policy: Whose word is enough; default: anybody's, since nothing is loaded.
        fetching: ``offline``, ``index``, ``lock``: see :func:`~adaptergit.resolve.fetch`.

    Raises:
        UsageError, NotFoundError, TransportError: One cannot be had.
        PackageError, TrustError: One is damaged, or refused.
    """
    left, right = (contents(one, policy=policy, **fetching) for one in (a, b))
    return Diff(
        left.label,
        right.label,
        tuple(_tensors(left.tensors, right.tensors)),
        _fields(_config(left), _config(right)),
        _fields(_card(left), _card(right)),
        _fields(_scores(left), _scores(right)),
        (left.format, right.format),
    )


def _tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Iterator[TensorDiff]:
    # Files stay open: opening one for each tensor would read its header each time.
    names = [*left, *(name for name in right if name not in left)]
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(opened(path, "pt"))
            for path in dict.fromkeys(tensor.file for tensor in (*left.values(), *right.values()))
        }
        for name in each(names, "tensors", "tensors"):
            a, b = left.get(name), right.get(name)
            if a is None or b is None:
                yield TensorDiff(name, "only_a" if b is None else "only_b", _kind(a), _kind(b))
            elif a.shape != b.shape:
                yield TensorDiff(name, "shape", _kind(a), _kind(b))
            else:
                state, most, relative = _compared(files[a.file].get_tensor(a.name), files[b.file].get_tensor(b.name))
                state = state if a.dtype == b.dtype else "dtype"
                yield TensorDiff(name, state, _kind(a), _kind(b), most, relative)


def _kind(tensor: Tensor | None) -> str | None:
    return None if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _compared(a: torch.Tensor, b: torch.Tensor) -> tuple[str, float | None, float | None]:
    """Compare bit by bit, then by value, so that a NaN equals itself."""
    import torch

    a, b = a.reshape(-1), b.reshape(-1)
    if a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return "equal", 0.0, 0.0
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    most, squares, norm = 0.0, 0.0, 0.0
    for start in range(0, a.numel(), _BLOCK):
        try:
            left, right = (part[start : start + _BLOCK].to(wide) for part in (a, b))
        except NotImplementedError:  # two numbers in a byte: torch stores them, and computes nothing with them
            return "changed", None, None
        delta = (right - left).abs()
        most = max(most, float(delta.max())) if not bool(delta.isnan().any()) else math.nan
        squares += float(delta.square().sum())
        norm += float(left.abs().square().sum())
    relative = math.sqrt(squares) / math.sqrt(norm) if norm else math.inf if squares else 0.0
    return "changed", _finite(most), _finite(relative)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _config(one: Contents) -> dict[str, Any]:
    """Return what configures the method: the files of others, or what the card says."""
    if not one.configs:
        return _flat(one.card.data["adapter"]["config"]) if one.card else {}
    found: dict[str, Any] = {}
    for path, raw in one.configs.items():
        found |= {field if path == CONFIG else f"{path}:{field}": value for field, value in _flat(raw).items()}
    return found


def _card(one: Contents) -> dict[str, Any]:
    data = dict(one.card.data) if one.card else {}
    data.pop("evaluation", None)
    if data:
        data["adapter"] = {key: value for key, value in data["adapter"].items() if key != "config"}
    return _flat(data)


def _scores(one: Contents) -> dict[str, Any]:
    rows: Sequence[Mapping[str, Any]] = one.card.data.get("evaluation", ()) if one.card else ()
    found: dict[str, Any] = {}
    for row in rows:
        where = f"{row['dataset']} ({row['split']})" if row.get("split") else str(row["dataset"])
        found[f"{row['metric']} on {where}"] = row["value"]
    return found


def _fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[FieldDiff, ...]:
    names = [*a, *(name for name in b if name not in a)]
    pairs = [(name, a.get(name), b.get(name)) for name in names]
    # To Python, but not to a reader, 1 is True. 16 and 16.0 are the same number to both.
    return tuple(FieldDiff(*pair) for pair in pairs if pair[1] != pair[2] or _kind_of(pair[1]) != _kind_of(pair[2]))


def _kind_of(value: Any) -> type:
    return float if type(value) is int else type(value)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted names; lists are leaves."""
    if isinstance(value, Mapping) and (value or not path):
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}
