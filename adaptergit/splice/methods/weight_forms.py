"""Other small forms of a weight's change: sums, Kronecker and Hadamard products, spectra, rotations.

With a host layer ``W x + b``: *updates* add ``ΔW x`` (LoHa, Hyeon-Woo et al. 2022, arXiv:2108.06098; LoKr, Yeh et al.
2024, arXiv:2309.14859; FourierFT, Gao et al. 2024, arXiv:2405.03003; MiSS, Kang & Yin 2024, arXiv:2409.15371);
*rotations* turn the input, ``W R x + b`` (OFT, Qiu et al. 2023, arXiv:2306.07280; BOFT, Liu et al. 2024,
arXiv:2311.06243, which scales the output too; HRA, Yuan et al. 2024, arXiv:2405.17484). As PEFT computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError
from adaptergit.splice.config import register, register_preset
from adaptergit.splice.layers import require_counts, require_one_of
from adaptergit.splice.methods.projections import OnLinears, Target
from adaptergit.splice.places import Parts

if TYPE_CHECKING:
    from adaptergit.splice.places import Host

UPDATES = ("loha", "lokr", "fourierft", "miss")
ROTATIONS = ("oft", "boft", "hra")


@register
@dataclass(frozen=True)
class WeightForm(OnLinears):
    """Configuration of one of the forms. Fields that a form does not name mean nothing to it."""

    family: ClassVar[str] = "weight_form"

    kind: str = "loha"
    r: int = 8
    """Rank; OFT: number of blocks, if ``block_size`` is 0; HRA: number of reflections."""
    alpha: float = 8
    """LoHa, LoKr: the update's factor is ``alpha / r``."""
    factor: int = -1
    """LoKr: size of the first matrix at most; -1: as near to square as can be."""
    decompose_both: bool = False
    """LoKr: the first matrix is a product too, where that is smaller."""
    n_frequency: int = 1000
    scaling: float = 150.0
    """FourierFT: the update's factor."""
    random_loc_seed: int = 777
    """FourierFT: which entries of the spectrum are learned."""
    block_size: int = 0
    """OFT, BOFT: size of a rotation's blocks."""
    block_share: bool = False
    neumann_terms: int = 0
    """OFT: terms of the series that stands for Cayley's inverse; 0: the inverse itself."""
    orthogonal: bool = False
    """HRA: make the reflections' vectors orthogonal."""
    alpha_pattern: Mapping[str, float] | None = None
    rank_pattern: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, kind=UPDATES + ROTATIONS)
        require_counts(self, "r", least=0 if self.kind in ("oft", "boft", "fourierft") else 1)
        require_counts(self, "n_frequency")

    @property
    def method(self) -> str:
        """The kind."""
        return self.kind

    def build(self, host: Host) -> Parts:
        """Make the tensors of every linear layer that the configuration names."""
        return self.put(host, lambda target, layer: FormSite(self, target, layer))

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """Start from no change."""
        for module in parts.places.values():
            assert isinstance(module, FormSite)
            module.reset_parameters(generator)


class FormSite(nn.Module):
    """The tensors of a form at one linear layer; which there are, the kind says."""

    R: torch.Tensor
    s: torch.Tensor
    u: torch.Tensor
    block: torch.Tensor
    spectrum: torch.Tensor
    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor

    def __init__(self, config: WeightForm, target: Target, host: nn.Module) -> None:
        super().__init__()
        self.config, self.target = config, target
        path = target.place.path
        self.r = int((config.rank_pattern or {}).get(path, config.r))
        self.alpha = float((config.alpha_pattern or {}).get(path, config.alpha))
        self._host: list[Any] = [host]
        self.additive = config.kind in UPDATES
        self.replaces = not self.additive
        if config.kind == "fourierft":
            most = target.inputs * target.outputs
            if config.n_frequency > most:
                raise ModelError(f"n_frequency={config.n_frequency}: the matrix of {path} has {most} entries")
            generator = torch.Generator("cpu").manual_seed(config.random_loc_seed)
            entries = torch.randperm(target.inputs * target.outputs, generator=generator, device="cpu")
            self._chosen = entries[: config.n_frequency].clone()
        for name, shape in self._shapes(target.inputs, target.outputs).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def _shapes(self, inputs: int, outputs: int) -> Mapping[str, tuple[int, ...]]:
        config, r = self.config, self.r
        if config.kind == "loha":
            return {"w1_a": (outputs, r), "w1_b": (r, inputs), "w2_a": (outputs, r), "w2_b": (r, inputs)}
        if config.kind == "lokr":
            (o1, o2), (i1, i2) = _factors(outputs, config.factor), _factors(inputs, config.factor)
            both = config.decompose_both and r < max(o1, i1) / 2
            first = {"w1_a": (o1, r), "w1_b": (r, i1)} if both else {"w1": (o1, i1)}
            small = r < max(o2, i2) / 2
            return first | ({"w2_a": (o2, r), "w2_b": (r, i2)} if small else {"w2": (o2, i2)})
        if config.kind == "fourierft":
            return {"spectrum": (config.n_frequency,)}
        if config.kind == "miss":
            return {"block": (r, outputs)}
        if config.kind == "hra":
            return {"u": (inputs, r)}
        size = config.block_size or inputs // max(r, 1)
        if not size or inputs % size:
            raise ModelError(f"blocks of {size} do not divide {inputs} inputs", hint="choose another block_size")
        if config.kind == "boft":
            return {"R": (1, inputs // size, size, size), "s": (outputs, 1)}
        return {"R": (1 if config.block_share else inputs // size, size * (size - 1) // 2)}

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Start from no change: zeros where one zero factor is enough, ones for scales."""
        zero = {"w2_a", "w2", "spectrum", "block", "R"} if self.config.kind != "lokr" else {"w1", "w1_b"}
        for name, parameter in self.named_parameters():
            if name == "s":
                nn.init.ones_(parameter)
            elif name in zero:
                nn.init.zeros_(parameter)
            elif name == "u":  # pairs of equal reflections cancel
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
                with torch.no_grad():
                    parameter[:, 1::2] = parameter[:, 0::2][:, : parameter[:, 1::2].shape[1]]
            else:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)

    def update(self, before: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        """Return the update, or what the layer makes of the turned input; (batch, seq, outputs)."""
        x = inputs if before is None or not self.additive else before
        x = x.to(next(self.parameters()).dtype)
        if self.config.kind == "miss":
            padded = F.pad(x, (0, -x.shape[-1] % self.r))
            out: torch.Tensor = padded.view(*padded.shape[:-1], -1, self.r).sum(dim=-2) @ self.block
            return out
        if self.additive:
            return x @ self.delta().T
        turned: torch.Tensor = self._host[0].forward((x @ self.rotation()).to(inputs.dtype))
        if self.config.kind != "boft":
            return turned
        bias = getattr(self._host[0], "bias", None)
        scale = self.s.view(-1)
        return turned * scale if bias is None else (turned - bias) * scale + bias

    def combine(self, y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the layer's new output."""
        return y + update if self.additive else update

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the change in it, (outputs, inputs)."""
        if self.additive:
            return weight + self.delta().to(weight.dtype)
        turned = weight @ self.rotation().to(weight.dtype).T
        return turned * self.s.to(weight.dtype) if self.config.kind == "boft" else turned

    def delta(self) -> torch.Tensor:
        """Return what is added to the layer's matrix, (outputs, inputs)."""
        config, get = self.config, self._parameters.get
        if config.kind == "miss":
            times = -(-self.target.inputs // self.r)
            return self.block.repeat(times, 1)[: self.target.inputs].T
        if config.kind == "fourierft":
            chosen = self._chosen.to(self.spectrum.device)
            dense = torch.zeros(self.target.outputs, self.target.inputs, device=self.spectrum.device)
            dense = dense.index_put((chosen // self.target.inputs, chosen % self.target.inputs), self.spectrum.float())
            real: torch.Tensor = torch.fft.ifft2(dense).real
            return (real * config.scaling).to(self.spectrum.dtype)
        scale = self.alpha / self.r
        if config.kind == "loha":
            hadamard: torch.Tensor = (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
            return hadamard * scale
        own1, own2 = get("w1"), get("w2")
        w1 = self.w1_a @ self.w1_b if own1 is None else own1
        w2 = self.w2_a @ self.w2_b if own2 is None else own2
        return torch.kron(w1, w2) * scale

    def rotation(self) -> torch.Tensor:
        """Return the matrix that turns the input from the right, (inputs, inputs)."""
        if self.config.kind == "hra":
            return self._reflections()
        if self.config.kind == "boft":
            skew = 0.5 * (self.R[0] - self.R[0].transpose(1, 2))
            return _on_diagonal(_cayley(skew, 0))
        count, size = self.R.shape[0], self.target.inputs // (self.R.shape[0] if not self.config.block_share else 1)
        if self.config.block_share:
            size = self.config.block_size or self.target.inputs // self.r
        rows, columns = torch.triu_indices(size, size, 1, device=self.R.device)
        upper = self.R.new_zeros(count, size, size).index_put(
            (torch.arange(count, device=self.R.device)[:, None], rows, columns), self.R
        )
        blocks = _cayley(upper - upper.transpose(1, 2), self.config.neumann_terms)
        return _on_diagonal(blocks.expand(self.target.inputs // size, -1, -1))

    def _reflections(self) -> torch.Tensor:
        u = self.u
        eye = torch.eye(u.shape[0], device=u.device, dtype=u.dtype)
        if self.config.orthogonal:
            q = torch.linalg.qr(u.float())[0].to(u.dtype)  # not there for half precision
            whole: torch.Tensor = eye - 2 * q @ q.T
            return whole
        u = u / u.norm(dim=0)
        out = eye
        for vector in u.T:
            out = out - 2 * (out @ vector[:, None]) @ vector[None]
        return out.T


def _on_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    matrix: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]  # PyTorch's own is not typed
    return matrix


def _cayley(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """Return ``(I + Q)⁻¹ (I - Q)`` for skew-symmetric blocks, or the first terms of its series, with PEFT's sign."""
    eye = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
    if not terms:
        wide = skew.float()  # solving is not there for half precision
        solved: torch.Tensor = torch.linalg.solve(eye.float() + wide, eye.float() - wide, left=False)
        return solved.to(skew.dtype)
    out, power = eye + 2 * skew if terms > 1 else eye.expand_as(skew), skew
    for term in range(2, terms):
        power = power @ skew
        out = out + power * (2 if term < terms - 1 else 1)
    return out


def _factors(size: int, factor: int) -> tuple[int, int]:
    """Cut a size in two factors, the first not above ``factor``; -1: as near to each other as can be."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    first, second = 1, size
    length = first + second
    while first < second:
        nxt = first + 1
        while size % nxt:
            nxt += 1
        if nxt + size // nxt > length or nxt > limit:
            break
        first, second = nxt, size // nxt
        length = first + second
    return (first, second) if first <= second else (second, first)


for _kind in UPDATES + ROTATIONS:
    register_preset(_kind, WeightForm(kind=_kind, block_size=32 if _kind in ("oft", "boft") else 0))
