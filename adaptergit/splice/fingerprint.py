"""The fingerprint of a base model: cheap at any size, the same after a cast, sharding, quantisation or another head.

``fp1:<blocks>x<hidden>:<structure>:<sketch>``. *Structure* is a hash over names and shapes inside the blocks (linear
layers by their feature counts, which quantisation keeps). *Sketch* is two times 32 random ±1 projections: of the
blocks' 1-D parameters (norms, biases: never quantised) and of the first rows of the input embedding; and of up to 256
values of every matrix, which a quantised model lacks. Every tensor counts with its direction and with the logarithm of
its norm. The root-mean-square difference of two sketches estimates the relative distance of the two models (Johnson &
Lindenstrauss 1984): a cast to bfloat16 moves it by about 0.002, another model by about 1.4.

It tells an honest mistake from the right model. It is no defence against somebody who builds a base to match.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import nn

from adaptergit.errors import ModelError, PackageError
from adaptergit.splice.anatomy import Anatomy, anatomy_of, base_of

TOLERANCE = 0.01
"""Relative distance above which two models are different."""

_PROJECTIONS = 32
_ROWS = 8
_SAMPLES = 256
_STEP = 1024.0
"""Sketch values are stored as multiples of 1/1024 in 16 bits."""


@dataclass(frozen=True)
class Fingerprint:
    """A parsed fingerprint."""

    blocks: int
    hidden_size: int
    structure: str
    sketch: tuple[int, ...]

    def __str__(self) -> str:
        packed = base64.urlsafe_b64encode(struct.pack(f">{len(self.sketch)}h", *self.sketch)).decode().rstrip("=")
        return f"fp1:{self.blocks}x{self.hidden_size}:{self.structure}:{packed}"

    def same_base(self, other: Fingerprint) -> bool:
        """Tell whether both are of one base model, up to casts and quantisation."""
        sizes = (self.blocks, self.hidden_size, self.structure)
        return sizes == (other.blocks, other.hidden_size, other.structure) and _distance(self, other) <= TOLERANCE

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Parse the text of a card or manifest.

        Raises:
            PackageError: Not a fingerprint of version 1.
        """
        try:
            version, sizes, structure, packed = text.split(":")
            blocks, hidden = sizes.split("x")
            raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
            if version != "fp1" or len(raw) not in (0, 2 * _PROJECTIONS, 4 * _PROJECTIONS):
                raise ValueError(text)
            return cls(int(blocks), int(hidden), structure, struct.unpack(f">{len(raw) // 2}h", raw))
        except (ValueError, struct.error) as error:
            raise PackageError(f"{text!r} is not a model fingerprint") from error


def fingerprint_of(model: nn.Module, anatomy: Anatomy | None = None) -> Fingerprint:
    """Compute a model's fingerprint. Parameters that are not materialised leave the sketch empty.

    It is remembered for as long as the model lives and its parameters are neither replaced nor written to.
    """
    base = base_of(model)
    anatomy = anatomy or anatomy_of(model)
    modules, embedding = list(_block_modules(base, anatomy)), _input_embedding(base)
    tensors = [p for _, module in modules for p in module._parameters.values() if p is not None]
    state = _state(tensors if embedding is None else [*tensors, embedding])
    known = _KNOWN.get(base)
    if known is not None and known[0] == state is not None:
        return known[1]
    found = _computed(modules, embedding, anatomy)
    _KNOWN[base] = (state, found)
    return found


_KNOWN: WeakKeyDictionary[nn.Module, tuple[object, Fingerprint]] = WeakKeyDictionary()


def _state(tensors: Sequence[torch.Tensor]) -> object:
    """Return what changes when a parameter does; None: nobody can tell."""
    # Others (sharded, quantised) have their values elsewhere.
    if any(type(t) not in (nn.Parameter, torch.Tensor) or t.is_inference() or t.is_meta for t in tensors):
        return None
    # Writing to ``.data``, as some do to merge, is not counted as a change: a value of every matrix shows it.
    matrices = [t.detach() for t in tensors if t.dim() == 2 and t.numel() and t.is_floating_point()]
    middle = [t[len(t) // 2, t.shape[1] // 2].to("cpu", torch.float64) for t in matrices]
    seen = tuple(torch.stack(middle).tolist()) if middle else ()
    return tuple((t.data_ptr(), t._version) for t in tensors), seen


def _computed(
    modules: Sequence[tuple[str, nn.Module]], embedding: torch.Tensor | None, anatomy: Anatomy
) -> Fingerprint:
    lines: list[str] = []
    vectors: list[tuple[str, torch.Tensor]] = []
    samples: list[tuple[str, torch.Tensor]] = []
    quantised = False
    for name, module in modules:
        features = _features(module)
        if features is not None:
            lines.append(f"{name} {features}")
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 1:
                lines.append(f"{name}.{parameter_name} {tuple(parameter.shape)}")
                vectors.append((f"{name}.{parameter_name}", parameter))
                continue
            if features is None:
                lines.append(f"{name}.{parameter_name} {tuple(parameter.shape)}")
            if not parameter.is_floating_point() or parameter.element_size() < 2:
                quantised = True
                continue
            flat = parameter.detach().reshape(-1)
            samples.append((f"{name}.{parameter_name}", flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]))
    if embedding is not None:
        vectors.append(("input_embedding", embedding[:_ROWS].reshape(-1)))
    structure = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]
    sketch = _sketch(vectors)
    if sketch and not quantised:
        sketch += _sketch(samples)
    return Fingerprint(anatomy.blocks, anatomy.hidden_size, structure, sketch)


def compare(
    expected: Fingerprint, model: nn.Module, anatomy: Anatomy | None = None, *, name: str = "the card's base model"
) -> None:
    """Refuse a model that is not the one an adapter was trained in.

    Raises:
        ModelError: With what differs.
    """
    found = fingerprint_of(model, anatomy)
    if (found.blocks, found.hidden_size) != (expected.blocks, expected.hidden_size):
        what = (
            f"{found.blocks} blocks of hidden size {found.hidden_size}, not {expected.blocks} of {expected.hidden_size}"
        )
    elif found.structure != expected.structure:
        what = "the same sizes, but other modules or shapes inside its blocks"
    elif (distance := _distance(found, expected)) > TOLERANCE:
        what = f"the same architecture, but other weights (relative distance {distance:.3f}, tolerance {TOLERANCE})"
    else:
        return
    raise ModelError(
        f"this is another base model than the one the adapter was trained in: it has {what}",
        hint=f"give it {name}: its folder or id with --base, in Python the model itself: load(…, model)",
    )


def _distance(a: Fingerprint, b: Fingerprint) -> float:
    """The larger of the distances of the parts that both have."""
    common = min(len(a.sketch), len(b.sketch))
    found = 0.0
    for start in range(0, common, _PROJECTIONS):
        part = slice(start, start + _PROJECTIONS)
        squares = sum((x - y) ** 2 for x, y in zip(a.sketch[part], b.sketch[part], strict=True))
        found = max(found, math.sqrt(squares / _PROJECTIONS) / _STEP)
    return found


def _block_modules(base: nn.Module, anatomy: Anatomy) -> Iterator[tuple[str, nn.Module]]:
    """Every module inside the blocks, named from the base model; adapters live elsewhere and are never seen."""
    prefixes = sorted({_block_path(site.output) for site in anatomy.sites})
    for prefix in prefixes:
        for name, module in base.get_submodule(prefix).named_modules():
            yield (f"{prefix}.{name}" if name else prefix), module


def _block_path(path: str) -> str:
    """``encoder.layer.3.output.dropout`` → ``encoder.layer.3``."""
    parts = path.split(".")
    index = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: index + 1])


def _features(module: nn.Module) -> str | None:
    for names in (("in_features", "out_features"), ("nx", "nf")):
        values = [getattr(module, name, None) for name in names]
        if all(isinstance(value, int) for value in values):
            return f"{values[0]}->{values[1]}"
    return None


def _input_embedding(base: nn.Module) -> torch.Tensor | None:
    getter = getattr(base, "get_input_embeddings", None)
    try:
        weight = getattr(getter(), "weight", None) if getter is not None else None
    except (NotImplementedError, AttributeError):
        return None
    return weight if isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.is_floating_point() else None


def _sketch(vectors: list[tuple[str, torch.Tensor]]) -> tuple[int, ...]:
    total, count = torch.zeros(_PROJECTIONS, dtype=torch.float64), 0
    sizes = torch.zeros(_PROJECTIONS, dtype=torch.float64)
    for name, tensor in vectors:
        if tensor.is_meta:
            return ()
        values = tensor.detach().to("cpu", torch.float64)
        scale = values.norm()
        if not bool(torch.isfinite(scale)) or float(scale) == 0.0:
            continue
        total += _signs(name, values.numel()) @ (values / scale)
        sizes += _signs(f"norm of {name}", 1)[:, 0] * math.log2(float(scale))
        count += 1
    if not count:
        return (0,) * _PROJECTIONS
    scaled = ((total + sizes) / count**0.5 * _STEP).round().clamp(-32768, 32767)
    return tuple(int(value) for value in scaled)


def _signs(name: str, length: int) -> torch.Tensor:
    """Pseudo-random ±1 of shape (32, length), the same on every machine."""
    rows = -(-length // 8)
    stream = hashlib.shake_128(f"adaptergit fp1 {name}".encode()).digest(_PROJECTIONS * rows)
    packed = numpy.frombuffer(stream, dtype=numpy.uint8).reshape(_PROJECTIONS, rows)
    bits = numpy.unpackbits(packed, axis=1, count=length, bitorder="little")
    return torch.from_numpy(bits).to(torch.float64).mul_(2).sub_(1)
