"""Merging: an adapter into the host's weights, and several adapters into one.

``average`` works on parameters, of any method. ``combine`` is task arithmetic, the weighted sum of what adapters
change, with the rules of TIES (Yadav et al. 2023, arXiv:2306.01708) and DARE (Yu et al. 2024, arXiv:2311.03099): the
sum of LoRAs' ΔW, exact (cat), cut to a rank (svd), or of the factors (linear); of any methods' ΔW, cut to the rank of a
LoRA (svd); and of how far parameters are from where they change nothing, if there is such a point (IA3's ones, the
model's own values of tuned parameters). LoRAs' numbers are those of ``adapters`` and of PEFT.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.anatomy import Projection
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.layers import is_number
from adaptergit.splice.methods import IA3, LoRA, TunedParameters, Union
from adaptergit.splice.methods.lora import LoRASite
from adaptergit.splice.methods.mtl_lora import MTLSite
from adaptergit.splice.methods.prefix_tuning import PrefixNetwork, PrefixTuning
from adaptergit.splice.methods.projections import OnLinears, is_quantised, stands_upright, weight_of
from adaptergit.splice.methods.union import leaves
from adaptergit.splice.methods.vera import VeRA
from adaptergit.splice.places import Host, Linear, Parts, Place

AVERAGES = ("linear", "lora_linear_only_negate_b", "lora_delta_w_svd")
COMBINATIONS = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip


def merge_into(host: Host, parts: Parts) -> Callable[[], None]:
    """Write an adapter's updates into the host's weights; return what restores them bit for bit.

    Raises:
        UsageError: The method cannot be merged; nothing is changed.
        ModelError: The host is quantised.
    """
    changes: list[tuple[nn.Parameter, torch.Tensor]] = []
    owners = Counter(id(own) for module in host.model.modules() for own in module.parameters(recurse=False))
    leaf: Any
    for place, leaf in parts.places.items():
        if not isinstance(place, Projection | Linear) or not hasattr(leaf, "merged"):
            raise UsageError(f"what acts at {place.key} cannot be merged into weights", hint="leave it active")
        module: Any = host.module(place.path)
        if is_quantised(module):
            raise ModelError(
                f"{place.path} is quantised: what is merged into it would be rounded away",
                hint="merge into the model in its own precision, and quantise it then",
            )
        if owners[id(module.weight)] > 1:
            raise UsageError(
                f"{place.path} shares its weights with another module, where the adapter does not act",
                hint="leave it active: what is merged would act there too",
            )
        with torch.no_grad():
            merged = leaf.merged(weight_of(module))
            changes.append((module.weight, merged.T if stands_upright(module) else merged))
            bias: Any = getattr(module, "bias", None)
            if hasattr(leaf, "merged_bias"):
                new = leaf.merged_bias(bias)
                if new is not None and bias is None:
                    raise UsageError(
                        f"the adapter adds a bias at {place.path}, where the model has none", hint="leave it active"
                    )
                if new is not None:
                    changes.append((bias, new))
    kept = {tensor.untyped_storage().data_ptr() for tensor in (*parts.parameters(), *(own for own, _ in changes))}
    fresh = [(own, _own_values(own, new, kept)) for own, new in changes]
    undo = Restore([(own, own.data if _is_plain(own) else own.detach().clone()) for own, _ in changes])
    Restore(fresh)()
    return undo


def _own_values(parameter: nn.Parameter, new: torch.Tensor, kept: set[int]) -> torch.Tensor:
    """Return values as a parameter has them, in memory of their own."""
    values = new.detach().to(parameter.dtype).contiguous()
    return values.clone() if values.untyped_storage().data_ptr() in kept else values


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether a parameter's memory is nobody else's: no part of a larger buffer, not shared, not sharded."""
    data = parameter.data
    whole = type(data) is torch.Tensor and data.untyped_storage().nbytes() == data.numel() * data.element_size()
    return whole and data.is_contiguous() and not data.untyped_storage().is_shared()


class Restore:
    """Values to put into parameters; a copy of a model gets one of its own.

    They are not copied where they need not be: a model's memory is what takes the time.
    """

    def __init__(self, values: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
        self.values = values

    def __call__(self) -> None:
        """Write them."""
        with torch.no_grad():
            for parameter, value in self.values:
                # A model that was cast or moved in between stays what it is.
                if _is_plain(parameter) and (value.dtype, value.device) == (parameter.dtype, parameter.device):
                    parameter.data = value
                else:
                    parameter.copy_(value)


def average(
    configs: Sequence[MethodConfig], adapters: Sequence[Parts], weights: Sequence[float], strategy: str, build: Build
) -> tuple[MethodConfig, Parts]:
    """Average adapters of one configuration parameter by parameter; see :meth:`Panel.average`.

    Raises:
        UsageError: Configurations differ, or the strategy does not fit the method.
    """
    if strategy not in AVERAGES:
        raise UsageError(f"unknown strategy {strategy!r}", hint=", ".join(AVERAGES))
    if len({_comparable(config) for config in configs}) > 1:
        raise UsageError("only adapters of one configuration can be averaged", hint="combine() takes others too")
    states = [parts.state_dict() for parts in adapters]
    random = tuple(f"{at}shared." for one, _, at in leaves(configs[0], adapters[0]) if isinstance(one, VeRA))
    shared = [key for key in states[0] if key.startswith(random)]
    if not all(torch.equal(states[0][key], state[key]) for key in shared for state in states):
        raise UsageError(
            "these VeRAs have different random matrices: the average of their vectors means nothing",
            hint="combine(…, strategy='svd', rank=…) adds what they change",
        )
    lora = isinstance(configs[0], LoRA)
    if strategy != "linear" and not lora:
        raise UsageError(f"{strategy} is for LoRA", hint="strategy='linear' is for all")
    new: dict[str, torch.Tensor] = {}
    for key in states[0]:
        # With a negative weight, changing the sign of A and of B would leave their product as it was.
        own = (
            [abs(w) for w in weights] if strategy == "lora_linear_only_negate_b" and key.endswith("lora_A") else weights
        )
        new |= average_states([{key: state[key]} for state in states], own)
    parts = build(configs[0])
    parts.load_state_dict(new, assign=True)
    return configs[0], parts


def combine(
    host: Host,
    configs: Sequence[MethodConfig],
    adapters: Sequence[Parts],
    weights: Sequence[float],
    strategy: str,
    build: Build,
    make: Build,
    *,
    rank: int | None,
    density: float,
    majority: str,
) -> tuple[MethodConfig, Parts]:
    """Combine adapters by what they change; see :meth:`Panel.combine`. ``make`` gives an adapter's initial values.

    Raises:
        UsageError: The strategy is not defined for these adapters, or an option does not fit.
    """
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise UsageError(f"rank must be a positive whole number, not {rank!r}")
    if strategy not in COMBINATIONS:
        raise UsageError(f"unknown strategy {strategy!r}", hint=", ".join(COMBINATIONS))
    merge = _rule(strategy.removesuffix("_svd"), density, majority)
    loras = all(isinstance(config, LoRA) and not config.use_dora and not config.use_gating for config in configs)
    if not loras and not strategy.endswith("svd"):
        return _combine_values(configs, adapters, weights, strategy, merge, build, make)
    if not loras and rank is None:
        raise UsageError(f"{strategy} makes a LoRA, of a rank that these adapters do not say", hint="rank=16, say")
    sites: list[dict[Place, Any]] = [dict(parts.places) for parts in adapters]
    if not all(isinstance(config, OnLinears) for config in configs) or any(
        {p: leaf.target for p, leaf in own.items()} != {p: leaf.target for p, leaf in sites[0].items()} for own in sites
    ):
        raise UsageError("only what acts on the same linear layers can be combined by its changes to their weights")
    state: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for place in sites[0]:
        leaves = [own[place] for own in sites]
        module = host.module(leaves[0].target.place.path)
        with torch.no_grad():
            if strategy.endswith("svd"):
                # A change has no more directions than it has rows or columns; all slots of a layer have one rank.
                slots = zip(*(_changes(leaf, module) for leaf in leaves), strict=True)
                r = rank or max(leaf.r for leaf in leaves)
                made = _of_one_rank([_cut(merge(list(deltas), weights), r) for deltas in slots])
            else:
                pairs = zip(*(leaf.factors() for leaf in leaves), strict=True)
                made = [_combine_factors(leaves, slot, weights, strategy, merge) for slot in pairs]
            state[f"{place.key}.lora_A"] = torch.cat([a for a, _ in made])
            state[f"{place.key}.lora_B"] = torch.cat([b for _, b in made])
            ranks[leaves[0].target.place.path] = made[0][0].shape[0]
            biases = [_change_of_bias(leaf, module) for leaf in leaves]
            own = [weight for weight, bias in zip(weights, biases, strict=True) if bias is not None]
            if own:
                state[f"{place.key}.lora_bias"] = merge([bias for bias in biases if bias is not None], own)
    r = max(ranks.values())
    patterns = ranks if len(set(ranks.values())) > 1 else None
    options = {field.name: getattr(configs[0], field.name) for field in fields(OnLinears)}
    first = configs[0] if isinstance(configs[0], LoRA) and loras else LoRA(**options)
    config = replace(
        first,
        r=r,
        alpha=r,
        use_rslora=False,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        lora_bias=any(key.endswith("lora_bias") for key in state),
    )
    parts = build(config)
    for key, value in parts.state_dict().items():  # biases of layers where none is changed
        state.setdefault(key, torch.zeros_like(value, device="cpu"))
    parts.load_state_dict(state, assign=True)
    return config, parts


def _combine_values(
    configs: Sequence[MethodConfig],
    adapters: Sequence[Parts],
    weights: Sequence[float],
    strategy: str,
    merge: Rule,
    build: Build,
    make: Build,
) -> tuple[MethodConfig, Parts]:
    """Combine how far parameters are from where they change nothing."""
    starting = all(
        (isinstance(config, IA3) and not config.use_gating) or isinstance(config, TunedParameters) for config in configs
    )
    if not starting or strategy == "cat":
        raise UsageError(
            f"{strategy} is not defined for {', '.join(dict.fromkeys(config.method for config in configs))}",
            hint="a strategy with svd makes a LoRA of what changes weights; average() adds parameters of any method",
        )
    if len({_comparable(config) for config in configs}) > 1:
        raise UsageError("only adapters of one configuration can be combined by their parameters")
    start, states = make(configs[0]).state_dict(), [parts.state_dict() for parts in adapters]
    new = {}
    for key, value in start.items():
        own = value.to(states[0][key])
        new[key] = own + merge([state[key] - own for state in states], weights)
    parts = build(configs[0])
    parts.load_state_dict(new, assign=True)
    return configs[0], parts


def _changes(leaf: Any, module: nn.Module) -> list[torch.Tensor]:
    """Return the change of the weights, (outputs of the slot, inputs), for every slot of a layer."""
    if isinstance(leaf, LoRASite) and leaf.additive and leaf.gate is None:
        return [leaf.scale * (b @ a) for a, b in leaf.factors()]
    weight = weight_of(module).double()  # the change is small
    delta = (leaf.merged(weight) - weight).to(next(leaf.parameters()).dtype)
    return [delta[start:stop] for start, stop in leaf.target.slots]


def _change_of_bias(leaf: Any, module: Any) -> torch.Tensor | None:
    """Return the change of the bias, (outputs of all slots,)."""
    if isinstance(leaf, LoRASite) and leaf.additive:
        return None if leaf.lora_bias is None else leaf.scale * leaf.lora_bias
    bias = getattr(module, "bias", None)
    new = leaf.merged_bias(bias) if hasattr(leaf, "merged_bias") else None
    if new is None:
        return None
    delta = new if bias is None else new - bias
    return torch.cat([delta[start:stop] for start, stop in leaf.target.slots])


def _cut(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (r, inputs) and B (outputs, r), whose product is as near to a change as can be."""
    u, s, vh = torch.linalg.svd(delta.float(), full_matrices=False)
    return vh[:rank].to(delta.dtype), (u[:, :rank] * s[:rank]).to(delta.dtype)


Build = Callable[[MethodConfig], Parts]
Rule = Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor]


def _of_one_rank(slots: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rank = max(a.shape[0] for a, _ in slots)
    return [(F.pad(a, (0, 0, 0, rank - a.shape[0])), F.pad(b, (0, rank - b.shape[1]))) for a, b in slots]


def _combine_factors(
    leaves: Sequence[LoRASite],
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    weights: Sequence[float],
    strategy: str,
    merge: Rule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (r, inputs) and B (outputs, r) of one slot of a layer, for a factor of 1."""
    factors = [w * leaf.scale for w, leaf in zip(weights, leaves, strict=True)]
    if strategy == "cat":
        a = torch.cat([a * factor for (a, _), factor in zip(pairs, factors, strict=True)], dim=0)
        return a, torch.cat([b for _, b in pairs], dim=1)
    if len({leaf.r for leaf in leaves}) > 1:
        raise UsageError(f"{strategy} needs LoRAs of one rank", hint="use cat or svd")
    roots = [math.sqrt(abs(factor)) for factor in factors]
    signed = [math.copysign(root, factor) for root, factor in zip(roots, factors, strict=True)]
    return merge([a for a, _ in pairs], signed), merge([b for _, b in pairs], roots)


def _rule(strategy: str, density: float, majority: str) -> Rule:
    if not is_number(density) or not 0 < density <= 1:
        raise UsageError(f"density must be in (0, 1], not {density!r}")
    if majority not in ("total", "frequency"):
        raise UsageError(f"majority must be 'total' or 'frequency', not {majority!r}")
    prune = {"ties": _largest, "magnitude_prune": _largest, "dare_linear": _random, "dare_ties": _random}.get(strategy)

    def merge(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        kept = torch.stack([tensor if prune is None else prune(tensor, density) for tensor in tensors])
        scale = torch.tensor(list(weights), dtype=kept.dtype, device=kept.device).view(-1, *[1] * tensors[0].dim())
        if strategy not in ("ties", "dare_ties"):
            return (kept * scale).sum(0)
        votes = kept.sum(0) if majority == "total" else kept.sign().sum(0)
        agree = kept.sign() == torch.where(votes >= 0, 1, -1)
        return (kept * scale * agree).sum(0) / agree.sum(0).clamp(min=1)

    return merge


def _largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the share of entries with the largest magnitude."""
    kept = torch.zeros_like(tensor).view(-1)
    top = tensor.abs().view(-1).topk(int(density * tensor.numel())).indices
    kept[top] = 1
    return tensor * kept.view_as(tensor)


def _random(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Keep a random share of entries, and make them larger by what is lost (PyTorch's own generator)."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density


def share(adapters: Sequence[Parts]) -> None:
    """Give MTL-LoRAs the matrices A and B of the first; see :meth:`Panel.share_parameters`.

    Raises:
        UsageError: Another method, or other places or shapes.
    """
    first, *others = adapters
    shapes = [
        {place: (leaf.lora_A.shape, leaf.lora_B.shape) if isinstance(leaf, MTLSite) else None for place, leaf in found}
        for found in (parts.places.items() for parts in adapters)
    ]
    if None in shapes[0].values() or any(shape != shapes[0] for shape in shapes):
        raise UsageError("MTL-LoRAs of the same places, ranks and numbers of B share their matrices, and nothing else")
    for parts in others:
        for place, leaf in parts.places.items():
            own: Any = first.places[place]
            leaf.lora_A, leaf.lora_B = own.lora_A, own.lora_B


def eject_prefix(config: MethodConfig, parts: Parts, build: Build) -> tuple[MethodConfig, Parts]:
    """Return a prefix as plain parameters, without the network that made it.

    Raises:
        UsageError: Not prefix tuning.
    """
    flat = _flat(config)
    if flat is None:
        raise UsageError("only prefix tuning has a network to eject")
    new, state = build(flat), parts.state_dict()
    for path, network in parts.named_modules():
        if isinstance(network, PrefixNetwork) and not network.config.flat:
            state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
            with torch.no_grad():
                state[f"{path}.control_trans"] = network.control_trans(network.wte.weight).reshape(-1)
    new.load_state_dict(state, assign=True)
    return flat, new


def _flat(config: MethodConfig) -> MethodConfig | None:
    """Return a configuration with plain prefixes, alone or in a union; None: it has none."""
    if isinstance(config, PrefixTuning):
        return replace(config, flat=True)
    if not isinstance(config, Union):
        return None
    parts = [(part, _flat(part)) for part in config.configs]
    return Union(tuple(flat or part for part, flat in parts)) if any(flat for _, flat in parts) else None


def average_states(states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the weighted sum of state dicts with equal keys."""
    return {
        key: sum(
            (state[key] * w for state, w in zip(states[1:], weights[1:], strict=True)), states[0][key] * weights[0]
        )
        for key in states[0]
    }


def _comparable(config: MethodConfig) -> str:
    """A configuration without what does not change what its parameters mean."""
    ignored = ("dropout", "init_weights", "init_weights_seed", "stochastic_depth")
    return repr(sorted((k, repr(v)) for k, v in config.to_dict().items() if k not in ignored))
