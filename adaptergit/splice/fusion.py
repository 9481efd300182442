"""AdapterFusion: attention over the outputs of several bottleneck adapters.

Pfeiffer et al. 2021 (arXiv:2005.00247). With query ``q`` (batch, seq, hidden) and the adapters' outputs ``u``
(batch, seq, adapters, hidden): ``a = softmax((W_q q + b) · (W_k u + b) / T)``, ``o = Σ a W_v u + residual``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.splice.layers import is_number, require
from adaptergit.splice.recompute import recalled


@dataclass(frozen=True)
class FusionConfig:
    """Configuration of a fusion; fields and defaults are those of ``adapters``' ``BertFusionConfig``."""

    key: bool = True
    query: bool = True
    value: bool = True
    query_before_ln: bool = False
    """The branch's own output is the query, not what the adapters read."""
    regularization: bool = True
    """Add ``0.01 · ‖W_v - I‖²`` to the loss, see :func:`regularisation`."""
    residual_before: bool = False
    """Add the residual to the adapters' outputs, not to the result."""
    temperature: bool = False
    """Divide the scores by a temperature that falls from 50 to 1 in training."""
    value_before_softmax: bool = True
    value_initialized: bool = True
    """``W_v`` starts as the identity (and a millionth off the diagonal)."""
    dropout_prob: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(
                field.name == "dropout_prob" or isinstance(value, bool), f"{field.name} is true or false, not {value!r}"
            )
        require(
            self.dropout_prob is None or (is_number(self.dropout_prob) and 0 <= self.dropout_prob < 1),
            f"dropout_prob must be in [0, 1), not {self.dropout_prob!r}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain data."""
        return asdict(self)


HOTTEST = 50.0
FUSIONS = {
    "dynamic": FusionConfig(),
    "static": FusionConfig(value=False, regularization=False, value_initialized=False),
}


def fusion_config(config: str | FusionConfig | dict[str, Any]) -> FusionConfig:
    """Return a fusion's configuration: "dynamic", "static", fields, or one that is ready.

    Raises:
        UsageError: Not known.
    """
    if isinstance(config, dict):
        known = {field.name for field in fields(FusionConfig)}
        if set(config) - known:
            raise UsageError(f"a fusion has no field {min(set(config) - known)!r}", hint=f"fields: {', '.join(known)}")
        return replace(FusionConfig(), **config)
    if isinstance(config, str):
        if config not in FUSIONS:
            raise UsageError(f"unknown fusion {config!r}", hint="dynamic or static")
        return FUSIONS[config]
    return config


class Fusion(nn.Module):
    """The weights of a fusion at one site."""

    temperature: torch.Tensor | None
    """Where it has come from 50 in training, (); None: the configuration has none."""

    def __init__(self, config: FusionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(hidden_size, hidden_size) if config.query else None
        self.key = nn.Linear(hidden_size, hidden_size) if config.key else None
        self.value = nn.Linear(hidden_size, hidden_size, bias=False) if config.value else None
        self.dropout = nn.Dropout(config.dropout_prob or 0.0)
        self.register_buffer("temperature", torch.tensor(HOTTEST) if config.temperature else None)
        self.attention: torch.Tensor | None = None
        """Of the last call, (batch, seq, adapters), where it was asked for."""
        self.keep_attention = False

    def reset_parameters(self) -> None:
        """N(0, 0.02) for query and key; the value's own start."""
        for linear in (self.query, self.key):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        if self.value is not None:
            if self.config.value_initialized:
                with torch.no_grad():
                    self.value.weight.fill_(1e-6).fill_diagonal_(1.0)
            else:
                nn.init.normal_(self.value.weight, std=0.02)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Fusion:
        exact = self.temperature
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch's own is not typed
        if exact is not None and self.temperature is not None:  # half precision knows no steps of 0.05
            self.temperature = self.temperature.to(exact.dtype) if exact.is_meta else exact.to(self.temperature.device)
        return self

    def forward(self, query: torch.Tensor, outputs: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return (batch, seq, hidden) for a query and residual like that and outputs (batch, seq, adapters, hidden)."""
        config = self.config
        outputs = outputs.to(next(self.parameters(), outputs).dtype)
        query, residual = query.to(outputs.dtype), residual.to(outputs.dtype)
        if config.residual_before:
            outputs = outputs + residual[:, :, None]
        q = query if self.query is None else self.query(query)
        k = outputs if self.key is None else self.key(outputs)
        early = self.value is not None and config.value_before_softmax
        v = self.value(outputs) if early and self.value is not None else outputs
        scores = self.dropout((k @ q[..., None]).squeeze(-1))
        again, temperature = recalled(self, self.temperature)
        if temperature is not None:
            scores = scores / temperature
        attention = torch.softmax(scores, dim=-1)
        if self.keep_attention:
            self.attention = attention.detach()
        if self.training and self.temperature is not None and not again:
            self.temperature = (self.temperature - 0.05).clamp(min=1.0)
        out: torch.Tensor = (attention[..., None, :] @ v).squeeze(-2)
        if self.value is not None and not early:
            out = self.value(out)
        return out if config.residual_before else out + residual


def regularisation(fusions: nn.Module, factor: float = 0.01) -> torch.Tensor:
    """Return the regulariser of all fusions in a module: ``factor · Σ ‖W_v - I‖²``; add it to the loss."""
    total = torch.zeros(())
    for module in fusions.modules():
        if isinstance(module, Fusion) and module.value is not None and module.config.regularization:
            weight = module.value.weight
            away = weight - torch.eye(len(weight), device=weight.device)
            total = total.to(weight.device) + factor * away.pow(2).sum()
    return total
