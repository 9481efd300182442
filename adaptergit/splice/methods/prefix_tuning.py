"""Prefix tuning: learned keys and values in front of every attention's own.

Li & Liang 2021 (arXiv:2101.00190). The prefixes of all blocks come out of one small network (``control_trans``) run on
one learned embedding (``wte``), or are parameters themselves (``flat``). Real tokens keep their positions: the
prefix has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError
from adaptergit.splice.config import MethodConfig, register, register_preset
from adaptergit.splice.layers import activation, require_counts, require_one_of, require_shares
from adaptergit.splice.places import Attention, Parts
from adaptergit.splice.positions import check_shift

if TYPE_CHECKING:
    from adaptergit.splice.places import Host


@register
@dataclass(frozen=True)
class PrefixTuning(MethodConfig):
    """Configuration of prefix tuning; fields and defaults are those of ``adapters``' ``PrefixTuningConfig``."""

    family: ClassVar[str] = "prefix_tuning"

    encoder_prefix: bool = True
    """In the encoder of an encoder-decoder model."""
    cross_prefix: bool = True
    """In cross-attention."""
    leave_out: tuple[int, ...] = ()
    """Blocks without prefix."""
    flat: bool = False
    """Keys and values are parameters themselves, and come from no network."""
    prefix_length: int = 30
    """Positions in front of the keys and values of every attention."""
    bottleneck_size: int = 512
    """Inner size of the network that the prefix comes from."""
    non_linearity: str = "tanh"
    """Inside that network: a transformers activation."""
    dropout: float = 0.0
    """Share of the prefix that is dropped in training."""
    use_gating: bool = False
    """Scale the prefix by ``sigmoid`` of a projection of the attention's input, mean over the sequence."""
    shared_gating: bool = True
    """One gate for keys and values."""
    positions: str = "none"
    """"none": real tokens start at position 0, as in ``adapters``; "before": the prefix has the first positions, as in
    PEFT."""
    init_weights_seed: int | None = None
    """Random numbers of the initial weights; None: those of torch's own generator."""

    def __post_init__(self) -> None:
        require_counts(self, "prefix_length", "bottleneck_size")
        require_shares(self, "dropout")
        require_one_of(self, positions=("none", "before"))
        activation(self.non_linearity)

    @property
    def method(self) -> str:
        """``prefix_tuning`` or ``prefix_tuning_flat``."""
        return "prefix_tuning_flat" if self.flat else "prefix_tuning"

    def build(self, host: Host) -> Parts:
        """Make one network for each kind of attention, and what is each attention's own."""
        parts = Parts()
        groups: dict[str, list[Attention]] = {}
        for attention in host.attentions():
            group = self._group(attention, host)
            if group is not None and attention.block not in self.leave_out:
                module = host.module(attention.path)
                if self.positions == "before":
                    check_shift(host.base, module, attention.path)
                groups.setdefault(group, []).append(attention)
        if not groups:
            return parts
        shared = parts.share(nn.Module())
        for name, places in groups.items():
            sizes = {host.head_sizes(place) for place in places}
            if len(sizes) > 1:
                raise ModelError("prefix tuning needs attentions of one size in a stack")
            heads, size = sizes.pop()
            width = next(host.width(s) for s in host.sites if s.block == places[0].block)
            network = PrefixNetwork(self, width, len(places), heads, size)
            shared.add_module(name, network)
            for index, place in enumerate(places):
                parts.put(place, PrefixSite(self, network, index, width))
        return parts

    def _group(self, place: Attention, host: Host) -> str | None:
        """Name the kind of attention, or None if the configuration leaves it out."""
        widths = {site.block: host.width(site) for site in host.sites}
        stacks = [(host.stack_of(path), widths.get(i)) for i, path in enumerate(host.anatomy.block_paths)]
        crossing = {
            host.stack_of(host.anatomy.block_paths[s.block]) for s in host.sites if s.branch == "cross_attention"
        }
        if place.branch == "cross_attention":
            return "cross_prefix" if self.cross_prefix else None
        stack = host.stack_of(host.anatomy.block_paths[place.block])
        if crossing and stack not in crossing:
            return "encoder_prefix" if self.encoder_prefix else None
        number = 0 if crossing else list(dict.fromkeys(stacks)).index(stacks[place.block])
        return "self_prefix" if not number else f"self_prefix{number + 1}"

    def initialise(self, parts: Parts, host: Host, generator: torch.Generator | None) -> None:
        """N(0, 1) for the embedding and flat prefixes, PyTorch's own for the network, N(0, 0.02) for gates."""
        for network in parts.common.children() if parts.common is not None else ():
            network.reset_parameters(generator)
        for module in parts.places.values():
            assert isinstance(module, PrefixSite)
            if module.gate is not None:
                nn.init.normal_(module.gate.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.gate.bias)


class PrefixNetwork(nn.Module):
    """Makes the prefixes of all blocks of one kind.

    Its output, (length, 2 · blocks, heads, size), holds keys at ``2 i`` and values at ``2 i + 1``.
    """

    def __init__(self, config: PrefixTuning, width: int, count: int, heads: int, size: int) -> None:
        super().__init__()
        self.config = config
        self.shape = (config.prefix_length, 2 * count, heads, size)
        out = 2 * count * heads * size
        if config.flat:
            self.control_trans: Any = nn.Parameter(torch.empty(config.prefix_length * out))
        else:
            self.wte = nn.Embedding(config.prefix_length, width)
            self.control_trans = nn.Sequential(
                nn.Linear(width, config.bottleneck_size),
                activation(config.non_linearity),
                nn.Linear(config.bottleneck_size, out),
            )
        self.dropout = nn.Dropout(config.dropout)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Fill with initial values."""
        if self.config.flat:
            nn.init.normal_(self.control_trans, generator=generator)
            return
        nn.init.normal_(self.wte.weight, generator=generator)
        for linear in (self.control_trans[0], self.control_trans[2]):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)

    def prefixes(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of one block, each (heads, length, size)."""
        length, _, heads, size = self.shape
        if self.config.flat:
            made = self.control_trans.view(self.shape)[:, 2 * index : 2 * index + 2]
        else:
            # Only the rows that make this block's prefixes.
            last, each = self.control_trans[2], heads * size
            start, stop = 2 * index * each, 2 * (index + 1) * each
            inner = self.control_trans[1](self.control_trans[0](self.wte.weight))
            made = F.linear(inner, last.weight[start:stop], last.bias[start:stop]).view(length, 2, heads, size)
        made = self.dropout(made).permute(1, 2, 0, 3)
        return made[0], made[1]


class PrefixSite(nn.Module):
    """One attention's prefix."""

    def __init__(self, config: PrefixTuning, network: PrefixNetwork, index: int, width: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        self._network = [network]  # in a list: it belongs to the adapter as a whole
        self.gate = nn.Linear(width, 1 if config.shared_gating else 2) if config.use_gating else None

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.config.prefix_length

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values, each (batch, heads, length, size), for an input (batch, seq, hidden)."""
        keys, values = (one.expand(hidden.shape[0], -1, -1, -1) for one in self._network[0].prefixes(self.index))
        if self.gate is not None:
            gate = torch.sigmoid(self.gate(hidden.to(self.gate.weight.dtype))).mean(dim=1)[:, :, None, None]
            keys, values = keys * gate[:, :1], values * gate[:, -1:]
        return keys, values


_FLAT: Mapping[str, Any] = {"flat": True}
register_preset("prefix_tuning", PrefixTuning())
register_preset("prefix_tuning_flat", PrefixTuning(**_FLAT))
