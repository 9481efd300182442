"""Anatomy: the places of a model where adapters can be spliced in.

A *site* is one residual branch of one block. With ``h`` the branch's output and ``x`` the residual stream, the host
computes ``x + h`` (pre-norm) or ``norm(h + x)`` (post-norm); adapters work on ``h``, and may read ``x`` and ``norm``.
A *projection* is one linear layer of a block, by the role it plays (q, k, v, o, up, gate, down).

Sites come from the card, from the table of families, or from watching one tiny forward (``trace.py``).
"""

from __future__ import annotations

import inspect as pysource
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.families import Branch, family_of
from adaptergit.splice.sidecar import Sidecar
from adaptergit.splice.site_records import records_of
from adaptergit.splice.trace import Found, faults, group_blocks, trace, within

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """One residual branch of one block. Paths start at the base model."""

    block: int
    """Counted over all stacks of the model in the order they run: a decoder goes on where its encoder ends."""
    branch: Branch
    output: str
    """Module whose output (or first output) is the branch ``h``, shape (batch, seq, hidden)."""
    residual: str | None
    """Module whose first tensor argument is the residual stream ``x``, shape (batch, seq, hidden); None: not to be had.
    ``"a+b"``: the first argument of ``a`` plus the output of ``b``, which runs between them."""
    norm: str | None
    """Post-norm applied to ``h + x``, or None."""
    hidden_size: int = 0
    """Last dimension of ``h``; 0: the model's ``hidden_size``."""
    ordinal: int = 1
    """Which of the block's branches of this kind it is."""
    channels_first: bool = False
    """``h`` and ``x`` are (batch, hidden, height, width)."""
    swapped: bool = False
    """Adapters get ``x`` for ``h`` and ``h`` for ``x``: what ``adapters`` does in ALBERT's attention."""

    @property
    def name(self) -> str:
        """``ffn``, or ``ffn2`` for the second of a block."""
        return self.branch if self.ordinal == 1 else f"{self.branch}{self.ordinal}"

    @property
    def key(self) -> str:
        """Architecture-free name, as tensor names start with: ``blocks.3.ffn``."""
        return f"blocks.{self.block}.{self.name}"


@dataclass(frozen=True)
class Projection:
    """One linear layer of a block."""

    block: int
    branch: Branch
    role: str
    """``q``, ``k``, ``v``, ``qkv``, ``o`` in attention, ``up``, ``gate``, ``down`` elsewhere."""
    path: str

    @property
    def key(self) -> str:
        """Architecture-free name: ``blocks.3.attention.q``."""
        return f"blocks.{self.block}.{self.branch}.{self.role}"


@dataclass(frozen=True)
class Anatomy:
    """All places of one model."""

    sites: tuple[Site, ...]
    hidden_size: int
    block_paths: tuple[str, ...]
    """Path of every block from the base model."""
    pooling: Literal["first", "last", "eos"]
    """Position a classification head reads."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_paths)


def base_of(model: nn.Module) -> nn.Module:
    """Return the model without its head: ``model.base_model`` of transformers, or the model itself."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def called_of(base: nn.Module) -> nn.Module:
    """Return the module that every call of a base model reaches.

    It is the base, or its only stack where the base does nothing but pass its arguments on (OPT, BART as a decoder):
    heads of transformers call that past the base.
    """
    stack = getattr(base, "decoder", None)
    if not isinstance(stack, nn.Module):
        return base
    within = set(stack.parameters())
    others = (child for child in base.children() if child is not stack and not isinstance(child, Sidecar))
    return base if any(parameter not in within for child in others for parameter in child.parameters()) else stack


def anatomy_of(
    model: nn.Module, sites: Iterable[Site | Mapping[str, Any]] | None = None, inputs: Mapping[str, Any] | None = None
) -> Anatomy:
    """Find the sites of a model.

    Args:
        model: A transformers model, with or without head.
        sites: Sites by hand; one small forward shows whether they are what they say.
        inputs: Keyword arguments of that forward, which models that are not in the table of families are watched in
            too; default: made up from the model's configuration.

    Raises:
        UsageError: A record is not that of a site.
        ModelError: A module is missing, a site is no branch, or nothing that looks like residual blocks was seen.
    """
    base = base_of(model)
    model_type = str(getattr(getattr(base, "config", None), "model_type", type(base).__name__))
    family = family_of(model_type)
    if sites is not None:
        found = by_hand(sites)
    elif family is not None:
        blocks = _module(base, family.blocks, model_type)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise ModelError(f"{model_type}: {family.blocks} is not a list of blocks")
        found = tuple(
            Site(
                block=index,
                branch=row.branch,
                output=f"{family.blocks}.{index}.{row.output}",
                residual=f"{family.blocks}.{index}.{row.residual}",
                norm=f"{family.blocks}.{index}.{row.norm}" if row.norm else None,
                hidden_size=_hidden_size(base),
            )
            for index, block in enumerate(blocks)
            for row in family.branches
            if row.branch != "cross_attention" or hasattr(block, row.output.partition(".")[0])
        )
    else:
        found = introspect(model, inputs)
    for site in found:
        for path in (site.output, *(site.residual or "").split("+"), site.norm):
            if path:
                _module(base, path, model_type)
    if sites is not None:
        _check(model, found, inputs)
    encoder_decoder = bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))
    decoder = family.pooling == "last" if family else _is_decoder(base)
    pooling: Literal["first", "last", "eos"] = "eos" if encoder_decoder else "last" if decoder else "first"
    return Anatomy(found, _hidden_size(base) or found[0].hidden_size, _block_paths(found), pooling)


def introspect(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Watch one tiny forward of the model and return its sites.

    Raises:
        ModelError: No inputs could be made up, the forward failed, or no residual blocks were seen.
    """
    base = base_of(model)
    prefix = _prefix(model)
    found = [one for one in _watch(model, inputs, trace) if one.output.startswith(prefix)]
    if not found:
        raise ModelError(f"no residual blocks were found in {type(base).__name__}", hint=tree(base))
    blocks: dict[str, int] = {}
    seen: Counter[tuple[int, Branch]] = Counter()
    sites = []
    for one, block in zip(found, group_blocks(found), strict=True):
        index = blocks.setdefault(block, len(blocks))
        seen[index, one.branch] += 1
        sites.append(_site(one, index, seen[index, one.branch], len(prefix)))
    return tuple(sites)


def _watch(model: nn.Module, inputs: Mapping[str, Any] | None, watch: Callable[[nn.Module, Mapping[str, Any]], T]) -> T:
    from adaptergit.splice.inputs import tiny_inputs

    given = tiny_inputs(model) if inputs is None else inputs
    try:
        return watch(model, given)
    except Exception as error:  # whatever a model's own code raises
        raise ModelError(
            f"{type(model).__name__} could not be watched: its forward failed with {type(error).__name__}: {error}",
            hint=f"pass inputs= for one small forward\n{tree(base_of(model))}",
        ) from error


def _prefix(model: nn.Module) -> str:
    base = base_of(model)
    return next((f"{path}." for path, module in model.named_modules() if module is base and path), "")


def _site(one: Found, block: int, ordinal: int, skip: int) -> Site:
    residual = one.residual[skip:] if one.residual is not None else None
    norm = one.norm[skip:] if one.norm is not None else None
    return Site(block, one.branch, one.output[skip:], residual, norm, one.hidden_size, ordinal, one.channels_first)


def by_hand(sites: Iterable[Site | Mapping[str, Any]]) -> tuple[Site, ...]:
    """Read sites that somebody gives.

    Raises:
        UsageError: A record is not that of a site, or blocks or ordinals have gaps.
    """
    found = tuple(Site(**record) for record in records_of(sites))
    ordinals: dict[tuple[int, Branch], list[int]] = defaultdict(list)
    for site in found:
        ordinals[site.block, site.branch].append(site.ordinal)
    for (block, branch), given in ordinals.items():
        if sorted(given) != list(range(1, len(given) + 1)):
            raise UsageError(
                f"sites of blocks.{block}.{branch} have the ordinals {', '.join(map(str, given))}",
                hint="the second of a block's branches has ordinal=2, and the first ordinal=1",
            )
    blocks = sorted({site.block for site in found})
    if not found or blocks != list(range(len(blocks))):
        raise UsageError(
            f"sites by hand are of blocks {blocks}, and blocks are counted from 0 on without gaps",
            hint="name the sites of every block, and leave blocks out in configurations: leave_out=[…]",
        )
    return found


def _check(model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Any] | None) -> None:
    """Compare sites by hand with what the model does in one small forward."""
    prefix, base = _prefix(model), base_of(model)

    def whole(path: str | None) -> str | None:
        return "+".join(prefix + part for part in path.split("+")) if path else None

    given = []
    for site in sites:
        width, paths = site.hidden_size or _hidden_size(base), (prefix + site.output, whole(site.residual))
        given.append(Found(site.branch, *paths, whole(site.norm), width, site.channels_first))
    wrong = _watch(model, inputs, lambda watched, tiny: faults(watched, tiny, given))
    found = [f"{site.key}: {why}" for site, why in zip(sites, wrong, strict=True) if why is not None]
    if found:
        raise ModelError(f"these are no branches of {type(base).__name__}: " + "; ".join(found[:3]), hint=tree(base))


def as_records(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """Return sites as a card stores them."""
    return [asdict(site) for site in sites]


def parameter_of(base: nn.Module, path: str) -> torch.Tensor:
    """Return a floating-point parameter near a module: adapters take its device and dtype."""
    parent = base.get_submodule(path.rpartition(".")[0]) if path else base
    for module in (parent, base):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter
    raise ModelError("the model has no floating-point parameter", where=path)


_ROLES: Mapping[str, str] = {
    name: role
    for role, names in {
        "q": "query q_proj q q_lin query_proj wq to_q q_linear query_layer linear_q",
        "k": "key k_proj k k_lin key_proj wk to_k k_linear key_layer linear_k",
        "v": "value v_proj v v_lin value_proj wv to_v v_linear value_layer linear_v",
        "qkv": "query_key_value c_attn qkv qkv_proj wqkv in_proj att_proj to_qkv qkv_lin",
        "o": "o_proj out_proj o out_lin wo_attn o_lin to_out linear_out projection",
        "up": "up_proj intermediate_dense fc1 c_fc lin1 ffn wi wi_1 dense_h_to_4h fc_in w1 linear1 linear_1 "
        "up_gate_proj gate_up_proj",
        "gate": "gate_proj wi_0 w3",
        "down": "down_proj output_dense fc2 ffn_output lin2 wo dense_4h_to_h fc_out w2 linear2 linear_2",
    }.items()
    for name in names.split()
}
_INSIDE_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_INSIDE_CROSS = re.compile(r"cross|enc_?dec|encoder_attn", re.IGNORECASE)


def projections_of(base: nn.Module, anatomy: Anatomy) -> tuple[Projection, ...]:
    """Return the linear layers of the blocks whose role is known by their name and place.

    Where a block has several of one role (experts), none of them is returned.
    """
    modules = dict(base.named_modules())
    found: dict[str, list[Projection]] = defaultdict(list)
    for index, block in enumerate(anatomy.block_paths):
        branches = {site.branch for site in anatomy.sites if site.block == index}
        for path, module in modules.items():
            inner = within(path, block)
            if not inner or not is_linear(module):
                continue
            branch, role = branch_and_role(inner)
            if role is None:
                continue
            parent: Any = type(modules[path.rpartition(".")[0]])
            if _reads_weights(parent):
                continue
            if branch == "attention" and branch not in branches:
                branch = "mixer"
            projection = Projection(index, branch, role, path)
            found[projection.key].append(projection)
    return tuple(group[0] for group in found.values() if len(group) == 1)


@cache
def _reads_weights(parent: Any) -> bool:
    """Tell whether a module takes its linear layers' weights instead of calling them: hooks on those never run."""
    try:
        return "multi_head_attention_forward" in pysource.getsource(parent)
    except (OSError, TypeError):
        return False


def branch_and_role(inner: str) -> tuple[Branch, str | None]:
    """Say from its path within a block what a linear layer does there.

    >>> branch_and_role("attention.self.query")
    ('attention', 'q')
    """
    in_attention = bool(_INSIDE_ATTENTION.search(inner))
    role = _role(inner.split("."), in_attention)
    if not in_attention or role in ("up", "gate", "down"):
        return "ffn", role if role in ("up", "gate", "down") else None
    if _INSIDE_CROSS.search(inner):
        return "cross_attention", None if role == "qkv" else role  # in GPT-2's, keys and values alone
    return "attention", role


def _role(names: list[str], in_attention: bool) -> str | None:
    last = names[-1].lower()
    if last == "dense":
        return "o" if in_attention else {"intermediate": "up", "output": "down"}.get(names[-2] if names[1:] else "")
    if last == "c_proj":
        return "o" if in_attention else "down"
    if last in ("wi", "wo") and "attn" in names:  # ModernBERT: attn.Wo and mlp.Wo
        return "o" if last == "wo" else None
    return _ROLES.get(names[-2].lower() if last == "linear" and names[1:] else last)


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module maps the last dimension by a matrix: ``nn.Linear``, quantised ones, GPT-2's ``Conv1D``."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return True
    return hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")


def features_of(module: nn.Module) -> tuple[int, int]:
    """Return the input and output size of a linear layer."""
    if type(module).__name__ == "Conv1D":
        return int(module.weight.shape[0]), int(module.weight.shape[1])  # type: ignore[index]
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def _block_paths(sites: tuple[Site, ...]) -> tuple[str, ...]:
    """Name the blocks: the longest numbered path that all of a block's sites share."""
    paths = group_blocks([Found(s.branch, s.output, s.residual, s.norm, s.hidden_size) for s in sites])
    named = {site.block: path for site, path in zip(sites, paths, strict=True)}
    return tuple(named[index] for index in sorted(named))


def _module(base: nn.Module, path: str, model_type: str) -> nn.Module:
    try:
        return base.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"this {model_type} model has no module {path!r}", where=type(base).__name__, hint=tree(base)
        ) from error


def _hidden_size(base: nn.Module) -> int:
    size = getattr(getattr(base, "config", None), "hidden_size", None)
    return size if isinstance(size, int) else 0


def _is_decoder(base: nn.Module) -> bool:
    config = getattr(base, "config", None)
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = getattr(config, "model_type", "")
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def tree(base: nn.Module, depth: int = 6) -> str:
    """Print the module tree, with runs of numbered children shown once."""
    lines = ["the model's modules are:"]
    for name, module in base.named_modules():
        parts = name.split(".")
        if name and len(parts) <= depth and not any(part.isdigit() and part != "0" for part in parts):
            lines.append(f"    {name}: {type(module).__name__}")
    return "\n".join(lines[:80])
