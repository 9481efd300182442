"""Prefixes in attention, through transformers' own extension point.

Attention modules look their function up under the name in their configuration (``AttentionInterface``). A bound module
gets a copy of its configuration with our name in it; masks are made elsewhere, from the configuration it had. Our
function puts the prefix in front of keys and values, widens the mask, and calls the function of before.
"""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError
from adaptergit.splice.hooks import Undo, after, before
from adaptergit.splice.inputs import cache_in
from adaptergit.splice.interpret import PrefixState

_NAME = "adaptergit"
_BINDING, _BEFORE = "_adaptergit_binding", "_adaptergit_before"


class Binding:
    """Asked for the prefix whenever a bound attention runs."""

    before = False
    """The prefix takes the first positions."""
    relative: Any = None
    """Module that makes the relative position bias (T5), or None."""
    seen = 0
    """Tokens in the cache that come before this call's."""

    def __call__(self) -> PrefixState | None:
        """Return the prefix of this call, or None."""
        raise NotImplementedError


def bind(module: nn.Module, binding: Binding) -> Undo:
    """Make an attention module ask ``binding`` for its prefix; return what undoes it."""
    way = own_way(module)
    if way is not None:
        return way(module, binding).undo
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    own: Any = module.config
    changed = copy.copy(own)
    object.__setattr__(changed, _BINDING, binding)
    object.__setattr__(changed, _BEFORE, own)
    object.__setattr__(changed, "_attn_implementation_internal", _NAME)
    module.config = changed
    return _Unbind(module, changed)


class _Unbind:
    def __init__(self, module: nn.Module, changed: Any) -> None:
        self.module, self.changed = module, changed

    def __call__(self) -> None:
        outer: Any = self.module.config
        before = getattr(self.changed, _BEFORE)
        if outer is self.changed:
            self.module.config = before
        while (inner := getattr(outer, _BEFORE, None)) is not None:  # another panel's may be around it
            if inner is self.changed:
                object.__setattr__(outer, _BEFORE, before)
            outer = inner


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    bound: Any = None,
    **options: Any,
) -> Any:
    config = bound or module.config
    own = getattr(config, _BEFORE, None)
    if own is None:  # taken away while the module runs
        return _function(module, config._attn_implementation)(module, query, key, value, attention_mask, **options)
    name, inner = own._attn_implementation, own
    while name == _NAME:
        inner = getattr(inner, _BEFORE)
        name = inner._attn_implementation
    function = partial(_attend, bound=own) if own is not inner else _function(module, name)
    binding: Binding = getattr(config, _BINDING)
    prefix = binding()
    if prefix is None or prefix.keys is None or prefix.values is None:
        return function(module, query, key, value, attention_mask, **options)
    if name not in (None, "eager", "sdpa"):
        raise ModelError(
            f"prefix tuning does not work with the attention {name!r}",
            hint="load the model with attn_implementation='sdpa' or 'eager'",
        )
    # Without a mask, the eager function masks nothing; the fused one goes by the module.
    mask = widen(attention_mask, prefix, query, key, name == "sdpa" and _is_causal(module, options))
    if mask is not None and options.get("is_causal"):
        options["is_causal"] = False  # the mask says it
    bias = options.get("position_bias")
    if bias is not None:
        options["position_bias"] = _position_bias(binding, bias, prefix, query, key)
    keys, values = _in_front(prefix.keys, key), _in_front(prefix.values, value)
    return function(module, query, keys, values, mask, **options)


def _in_front(own: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([own.to(tensor.dtype), tensor], dim=2)


def widen(
    mask: torch.Tensor | None, prefix: PrefixState, query: torch.Tensor, key: torch.Tensor, causal: bool
) -> torch.Tensor | None:
    """Return the mask for keys with a prefix in front: every token sees every position of it that counts.

    Args:
        mask: (batch or 1, heads or 1, queries, keys), bool or added to the scores; None: what ``causal`` says.
        prefix: What is put in front.
        query: (batch, heads, queries, size).
        key: (batch, heads, keys, size), without the prefix.
        causal: Whether no mask means that tokens see only what is before them.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if prefix.counts is None and (queries == 1 or not causal):
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        if causal and queries > 1:
            mask = mask.tril()  # as the fused function has it: a static cache has room behind the tokens
        mask = mask[None, None]
        # Added to the scores: what every attention function understands.
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    boolean = mask.dtype == torch.bool
    front = mask.new_ones if boolean else mask.new_zeros
    rows = mask.shape[0] if prefix.counts is None else prefix.counts.shape[0]
    wide = front((rows, mask.shape[1], mask.shape[2], prefix.length))
    if prefix.counts is not None:
        hidden = ~prefix.counts[:, None, None, :]
        wide = wide.masked_fill(hidden, False if boolean else torch.finfo(mask.dtype).min)
    return torch.cat([wide, mask.expand(rows, -1, -1, -1)[..., :keys]], dim=-1)


def _position_bias(
    binding: Binding, bias: torch.Tensor, prefix: PrefixState, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """Return the relative position bias (1 or batch, heads, queries, length + keys).

    The keys are counted with the prefix. The queries are too if it takes positions, else not: that is what
    ``adapters`` does, and its T5 prefixes were trained with.
    """
    length = prefix.length
    if binding.relative is None:
        return F.pad(bias, (length, 0))
    past = binding.seen + (length if binding.before else 0)
    made: torch.Tensor = binding.relative.compute_bias(
        query.shape[2], length + key.shape[2], device=query.device, past_seen_tokens=past
    )
    return (made if binding.before else _by_row(made, prefix)).to(bias.dtype)


def _by_row(bias: torch.Tensor, prefix: PrefixState) -> torch.Tensor:
    """Move a bias (1, heads, queries, keys) to where every row's own prefix starts: (batch, heads, queries, keys)."""
    if prefix.counts is None:
        return bias
    filling = (~prefix.counts).sum(dim=1, keepdim=True)
    own = (torch.arange(bias.shape[-1], device=bias.device) - filling).clamp(min=0)
    return bias[0, :, :, own].permute(2, 0, 1, 3)


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _function(module: nn.Module, name: str | None) -> Callable[..., Any]:
    if name in (None, "eager"):
        function: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return function
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    named: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return named


# Attentions that compute everything themselves, and take as many keys as their projections give.
_KEY_VALUE = (("key_proj", "value_proj"), ("key", "value"), ("k", "v"))
# Only these: others of transformers 4 reshape by the length of the input, turn keys by their position or hash them.
_PROJECTING = re.compile(
    r"((Bert|BertGeneration|BlipText|Camembert|Data2VecText|Electra|Ernie|RemBert|RoCBert|Roberta|RobertaPreLayerNorm"
    r"|Tapas|VisualBert|XLMRoberta|XLMRobertaXL)(Sdpa)?Self|T5|MT5|UMT5)Attention"
)
_SCORING = re.compile(r"(GPTJ|CodeGen)Attention")


def own_way(module: nn.Module) -> Callable[[nn.Module, Binding], _Own] | None:
    """Return how to bind an attention that computes everything itself, in a way that is known; None: another.

    These are DeBERTa's, GPT-J's until transformers 5.24, and in transformers 4 those of BERT's and T5's kind.
    """
    kind = type(module).__name__
    if _SCORING.fullmatch(kind) and hasattr(module, "_attn"):
        return _ByScores
    if hasattr(module, "disentangled_att_bias"):
        return _ByOneProjection
    if hasattr(module, "disentangled_attention_bias") or (_PROJECTING.fullmatch(kind) and _major_version() < 5):
        return _ByProjections
    return None


def _major_version() -> int:
    import transformers

    return int(transformers.__version__.partition(".")[0])


class _Own:
    """Methods of a module that stand in for its class's, and hooks."""

    def __init__(self, module: Any, binding: Binding, methods: dict[str, Any], hooks: list[Undo]) -> None:
        self.module, self.binding, self.local = module, binding, threading.local()
        self.hooks, self.methods = hooks, {name: own for name, own in methods.items() if hasattr(module, name)}
        for name, own in self.methods.items():
            setattr(module, name, own)

    @property
    def prefix(self) -> PrefixState | None:
        """What stands in front in this thread's running call, if anything does."""
        found: PrefixState | None = getattr(self.local, "prefix", None)
        return None if found is None or found.keys is None else found

    def undo(self) -> None:
        """Give the module back as it was."""
        for take_away in self.hooks:
            take_away()
        for name in self.methods:
            delattr(self.module, name)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.local = threading.local()


class _ByScores(_Own):
    """Longer keys and values where they are scored: GPT-J's and CodeGen's."""

    def __init__(self, module: Any, binding: Binding) -> None:
        super().__init__(module, binding, {"_attn": self.score}, [])

    def score(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *others: Any,
    ) -> Any:
        """Score (batch, heads, seq, size) with the prefix in front."""
        prefix, score = self.binding(), type(self.module)._attn
        if prefix is None or prefix.keys is None or prefix.values is None:
            return score(self.module, query, key, value, attention_mask, *others)
        keys, values = _in_front(prefix.keys, key), _in_front(prefix.values, value)
        return score(self.module, query, keys, values, widen(attention_mask, prefix, query, key, False), *others)


class _ByProjections(_Own):
    """Longer keys and values out of the projections, a wider mask, and a relative bias that knows of the prefix."""

    def __init__(self, module: Any, binding: Binding) -> None:
        key, value = next(pair for pair in _KEY_VALUE if all(hasattr(module, name) for name in pair))
        methods = {"disentangled_attention_bias": self.bias, "compute_bias": self.relative}
        projections = after(getattr(module, key), self.keys), after(getattr(module, value), self.values)
        super().__init__(module, binding, methods, [before(module, self.begin), *projections])

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Ask for the prefix and widen the mask (…, keys)."""
        self.local.prefix, self.local.pending = None if kwargs is None else self.binding(), {"keys", "values"}
        prefix = self.prefix
        if prefix is None or kwargs is None:
            return None
        across = any(kwargs.get(name) is not None for name in ("encoder_hidden_states", "key_value_states"))
        past = cache_in(kwargs)
        if not across and past is not None and _is_filled(past, getattr(self.module, "layer_idx", None)):
            raise ModelError(
                f"in transformers 4, {type(self.module).__name__} keeps prefixes among what it has seen",
                hint="generate(…, use_cache=False), or transformers 5",
            )
        if not across and getattr(self.module, "is_decoder", False) and _none_given(args, kwargs):
            kwargs = {**kwargs, "attention_mask": _before_only(args, kwargs)}
            args = args[:1]
        named = next((name for name in ("attention_mask", "mask") if kwargs.get(name) is not None), None)
        if named is not None:
            return args, {**kwargs, named: self._wide(kwargs[named], prefix)}
        if len(args) > 1 and isinstance(args[1], torch.Tensor):
            return (args[0], self._wide(args[1], prefix), *args[2:]), kwargs
        return args, kwargs

    def _wide(self, mask: torch.Tensor, prefix: PrefixState) -> torch.Tensor:
        # To the scores; DeBERTa's is of ones and zeros, whatever its dtype.
        added = mask.is_floating_point() and mask.dim() == 4 and not hasattr(self.module, "disentangled_attention_bias")
        wide = F.pad(mask, (prefix.length, 0), value=0 if added else 1)
        if prefix.counts is not None:
            counts = prefix.counts[:, None, None, :] if mask.dim() == 4 else prefix.counts
            wide = wide.expand(counts.shape[0], *wide.shape[1:]).clone()
            hidden = torch.finfo(mask.dtype).min if added else 0
            wide[..., : prefix.length] = wide[..., : prefix.length].masked_fill(~counts, hidden)
        return wide

    def keys(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        """Put keys in front: (batch, seq, hidden)."""
        return self._front(output, "keys")

    def values(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        """Put values in front."""
        return self._front(output, "values")

    def _front(self, output: torch.Tensor, name: str) -> torch.Tensor:
        front = None if self.prefix is None else getattr(self.prefix, name)
        if front is None or name not in self.local.pending:
            return output  # a second call projects relative positions
        self.local.pending.discard(name)
        return torch.cat([front.transpose(1, 2).flatten(2).to(output.dtype), output], dim=1)

    def relative(self, *args: Any, **options: Any) -> torch.Tensor:
        """Return T5's bias, counted from where every row's own prefix starts."""
        made: torch.Tensor = type(self.module).compute_bias(self.module, *args, **options)
        return made if self.prefix is None else _by_row(made, self.prefix)

    def bias(self, query: torch.Tensor, key: torch.Tensor, *args: Any) -> torch.Tensor:
        """Return DeBERTa's bias of the tokens, and none for the prefix."""
        length = 0 if self.prefix is None else self.prefix.length
        bias: torch.Tensor = type(self.module).disentangled_attention_bias(self.module, query, key[:, length:], *args)
        return F.pad(bias, (length, 0))


def _is_filled(past: Any, layer: int | None) -> bool:
    return hasattr(past, "get_seq_length") and bool(past.get_seq_length(layer or 0))


def _none_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return not any(kwargs.get(name) is not None for name in ("attention_mask", "mask")) and not any(
        isinstance(value, torch.Tensor) for value in args[1:]
    )


def _before_only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the mask of a decoder that was given none, (1, 1, queries, keys); the fused function's moves."""
    hidden = args[0] if args else kwargs["hidden_states"]
    mask: torch.Tensor = hidden.new_full((hidden.shape[1], hidden.shape[1]), torch.finfo(hidden.dtype).min).triu(1)
    return mask[None, None]


class _ByOneProjection(_Own):
    """More rows out of DeBERTa's one projection; their queries are taken away again."""

    def __init__(self, module: Any, binding: Binding) -> None:
        hooks = [before(module, self.begin), after(module.in_proj, self.project), after(module, self.end)]
        super().__init__(module, binding, {"disentangled_att_bias": self.bias}, hooks)

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Ask for the prefix and widen the mask (batch, 1, queries, keys), of ones and zeros."""
        self.local.prefix = None if kwargs is None else self.binding()
        prefix = self.prefix
        if prefix is None or kwargs is None:
            return None
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]
        wide = F.pad(mask, (prefix.length, 0, prefix.length, 0), value=1)
        if prefix.counts is not None:
            wide = wide.expand(len(prefix.counts), *wide.shape[1:]).clone()
            wide[..., : prefix.length] *= prefix.counts[:, None, None, :].to(wide.dtype)
        if "attention_mask" in kwargs:
            return args, {**kwargs, "attention_mask": wide}
        return (args[0], wide, *args[2:]), kwargs

    def project(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        """Put rows in front of queries, keys and values, which every head has side by side: (batch, seq, 3 hidden)."""
        prefix = self.prefix
        if prefix is None or prefix.keys is None or prefix.values is None:
            return output
        keys = prefix.keys.transpose(1, 2)
        # The bias is not the prefix's, but added to every row.
        values = prefix.values.transpose(1, 2) - self.module.v_bias.view(1, 1, keys.shape[2], keys.shape[3])
        rows = torch.cat([torch.zeros_like(keys), keys, values], dim=-1)
        return torch.cat([rows.flatten(2).to(output.dtype), output], dim=1)

    def bias(self, query: torch.Tensor, key: torch.Tensor, *args: Any) -> torch.Tensor:
        """Return the bias of the tokens, and none for the prefix."""
        length = 0 if self.prefix is None else self.prefix.length
        made = type(self.module).disentangled_att_bias(self.module, query[:, :, length:], key[:, :, length:], *args)
        return F.pad(made, (length, 0, length, 0)) if isinstance(made, torch.Tensor) else made

    def end(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Take away what the rows in front have asked for."""
        prefix, self.local.prefix = self.prefix, None
        if prefix is None:
            return output
        context, scores = output
        return context[:, prefix.length :], None if scores is None else scores[:, :, prefix.length :]
