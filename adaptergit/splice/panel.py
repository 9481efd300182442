"""The panel: the adapters of one model, as a person holds them.

The model stays its own class and its ``state_dict`` stays the base model's; ``detach`` gives it back bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from adaptergit.errors import AdaptergitWarning, ModelError, UsageError, did_you_mean
from adaptergit.splice.anatomy import Projection, Site, anatomy_of, by_hand
from adaptergit.splice.checkpoint import card_name, save
from adaptergit.splice.composition import (
    Block,
    Composition,
    Fuse,
    Route,
    Split,
    Stack,
    ends_of,
    holds,
    on_every_row,
    parse_composition,
    partitions_rows,
    without,
)
from adaptergit.splice.config import MethodConfig, parse_config
from adaptergit.splice.embeddings import Embeddings, config_for, input_paths
from adaptergit.splice.engine import EMPTY, Engine
from adaptergit.splice.families import POSITIONS_FIRST, family_of
from adaptergit.splice.fusion import Fusion, FusionConfig, fusion_config
from adaptergit.splice.heads import HeadConfig, StaticModule, build_head, static_head_of, static_paths
from adaptergit.splice.inputs import tiny_inputs
from adaptergit.splice.inventory import ATTRIBUTE, Inventory, check_new, panel_of
from adaptergit.splice.layers import is_number
from adaptergit.splice.merging import average, average_states, combine, eject_prefix, merge_into, share
from adaptergit.splice.methods import LoRA, ReFT
from adaptergit.splice.methods.projections import LowRank
from adaptergit.splice.places import Attention, BlockOutput, Embedding, Linear, Parts, Place, Prompt
from adaptergit.splice.plan import Answer, Plan, task_list
from adaptergit.splice.replicas import Replicate
from adaptergit.splice.rows import not_called, not_first
from adaptergit.splice.setup import fused, fuses, several, single
from adaptergit.splice.trace import evaluating

T = TypeVar("T")


def check_model(model: object) -> None:
    """Refuse what is no model.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(model, nn.Module):
        hint = "AutoModel.from_pretrained(…) makes one"
        raise UsageError(f"model must be a transformers model, not {type(model).__name__}", hint=hint)


def adapters(
    model: nn.Module,
    *,
    sites: Iterable[Site | Mapping[str, Any]] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Panel:
    """Return the panel of a model, making it on first use.

    Args:
        model: A transformers model, with or without head.
        sites: Where the residual branches are; default: found, see :func:`~adaptergit.splice.anatomy.anatomy_of`.
        inputs: For a model that must be watched: keyword arguments of one small forward.

    Raises:
        UsageError: The model has a panel, with other sites.
        ModelError: The model's architecture is not understood.
    """
    check_model(model)
    found: Panel | None = panel_of(model)
    if found is None:
        return Panel(model, sites, inputs)
    if sites is not None and by_hand(sites) != found.anatomy.sites:
        raise UsageError("the model has a panel with other sites", hint="panel.detach() first")
    return found


class Panel(Inventory):
    """The adapters and heads of one model; made by :func:`adapters`."""

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[Site | Mapping[str, Any]] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        if hasattr(model, ATTRIBUTE):
            raise ModelError(f"the model has an attribute {ATTRIBUTE!r} that is not a panel")
        super().__init__(model, anatomy_of(model, sites, inputs))
        self._engine = Engine(model, self.anatomy.pooling)
        Replicate.install(model, self._engine)
        self._inputs = inputs
        self._rows_first: set[str] = set()
        """Modules that are known to give the rows of a batch first."""
        self._detached = False
        self._active: Composition | None = None
        self._merged: dict[str, Callable[[], None]] = {}

    def insert(self, name: str, config: MethodConfig, parts: Parts, **options: Any) -> None:
        """Put an adapter with its weights into the panel; it stays inactive.

        Raises:
            UsageError: The name is taken, or the dtype is none.
            ModelError: The model's forward fails with it.
        """
        self._check_attached()
        self._check_called(parts)
        super().insert(name, config, parts, **options)
        if family_of(self.host.model_type) is None and any(
            isinstance(place, Prompt | BlockOutput | Embedding | Attention) for place in parts.places
        ):
            self._rehearse(name)

    def _check_called(self, parts: Parts) -> None:
        """Refuse tables that nobody looks up: models have others with the same weights (``shared`` of T5)."""
        places = [place.path for place in parts.places if isinstance(place, Linear)]
        tables = [path for path in places if isinstance(self.host.module(path), nn.Embedding)]
        unused = self._watched(lambda inputs: not_called(self._model, self._base, tables, inputs)) if tables else None
        if unused:
            raise ModelError(
                f"the model never looks {unused[0]} up: an adapter would do nothing there",
                hint="name the tables with the same weights that it does look up: encoder.embed_tokens …",
            )

    def _watched(self, watch: Callable[[Mapping[str, Any]], T]) -> T | None:
        """Watch a tiny forward without adapters; None: the model's own code fails, and nothing can be learnt."""
        try:
            with self.using(None, head=[]):
                return watch(self._inputs or tiny_inputs(self._model))
        except Exception:  # noqa: BLE001 - whatever a model's own code raises
            return None

    def _rehearse(self, name: str) -> None:
        """Run one tiny forward with an adapter: blocks may change the stream's width, count positions, attend twice."""
        failed = self._failure(name)
        if failed is None or self._failure(None) is not None:
            return  # it runs, or nothing can be learnt: it does not run without the adapter either
        method = self.config(name).method
        self.remove(name)
        raise ModelError(
            f"{type(self._model).__name__} takes no {method}: with it, {type(failed).__name__}: {failed}",
            hint="another method: adaptergit inspect shows where methods can act",
        ) from failed

    def _failure(self, name: str | None) -> Exception | None:
        """Return what one tiny forward raises."""
        try:
            inputs = self._inputs or tiny_inputs(self._model)
            with evaluating(self._model), torch.no_grad(), self.using(name, head=[]):
                self._model(**inputs)
        except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
            return error
        return None

    def add(self, name: str, config: str | MethodConfig = "seq_bn", *, dtype: torch.dtype | None = None) -> None:
        """Add a freshly initialised adapter. It does nothing until it is activated.

        Args:
            name: A new name.
            config: A method configuration or config string.
            dtype: Of its parameters; default: the host block's.

        Raises:
            UsageError: The name is taken or the config string is malformed.
            ModelError: The model has no place that the configuration asks for.
        """
        parsed = parse_config(config)
        check_new(name, self._adapters)
        self._warn_of_unknown_modules(parsed)
        self.insert(name, parsed, self.make(parsed), dtype=dtype)

    def _warn_of_unknown_modules(self, config: MethodConfig) -> None:
        """Lists are written for many models at once, as PEFT takes them; half of a misspelt one would be missed."""
        paths = [path for path, _ in self.host.base.named_modules()]
        for part in (config, *getattr(config, "configs", ())):
            wanted = getattr(part, "target_modules", None)
            for end in wanted if isinstance(wanted, tuple) else ():
                if not any(path == end or path.endswith(f".{end}") for path in paths):
                    near = (
                        did_you_mean(end, {path.rpartition(".")[2] for path in paths}) or "adaptergit inspect shows all"
                    )
                    told = f"target_modules: nothing in the model is called {end!r}: it is left out\n  hint: {near}"
                    warnings.warn(told, AdaptergitWarning, stacklevel=3)

    def add_fusion(
        self, children: str | Fuse | Sequence[str], config: str | FusionConfig = "dynamic", *, name: str | None = None
    ) -> None:
        """Add a freshly initialised AdapterFusion of adapters that are here.

        Args:
            children: Adapters, or the block they will be activated as.
            config: "dynamic", "static" or a configuration.
            name: Default: the adapters' names joined with commas.

        Raises:
            UsageError: The name is taken, an adapter is not there, or they act at different places.
        """
        parsed = parse_composition(children) if isinstance(children, str) and "(" in children else children
        if isinstance(parsed, Block) and not isinstance(parsed, Fuse):
            raise UsageError(f"{parsed} is not a Fuse", hint='write ["a", "b"], or Fuse("a", "b")')
        listed = parsed.split(",") if isinstance(parsed, str) else parsed
        fuse = listed if isinstance(listed, Fuse) else Fuse(*(child.strip() for child in listed))
        if name is not None:
            fuse = Fuse(*(child for child in fuse.children if child is not None), name=name)
        wanted = fusion_config(config)
        modules: dict[Place, Fusion] = {}
        for place in self.branches_of(fuse.names()):
            if not all(place in self.spliced(child).parts.places for child in fuse.names()):
                raise UsageError(f"not all of {fuse.key} act at {place.key}", hint="fuse adapters of one configuration")
            modules[place] = Fusion(wanted, self.host.width(place))
            modules[place].reset_parameters()
        if not modules:
            raise UsageError(
                f"{fuse.key}: AdapterFusion is defined for bottleneck adapters", hint="Average and Stack take others"
            )
        self.insert_fusion(fuse.key, wanted, modules, _fused_by(fuse))

    def remove_fusion(self, name: str) -> None:
        """Forget a fusion; if it is active, all adapters are switched off.

        Raises:
            UsageError: No fusion of that name.
        """
        self.fused(name)
        if name in fused(self._active):
            self.activate(None)
        self.drop_fusion(name)

    def add_embeddings(
        self,
        name: str,
        tokenizer: Any,
        *,
        reference_tokenizer: Any = None,
        reference: str | None = None,
    ) -> None:
        """Add embeddings for another vocabulary (MAD-X 2.0); they act with an adapter of their name, or when asked for.

        They are saved, published and loaded with the adapter of the same name, tokenizer and all.

        Args:
            name: A new name.
            tokenizer: Whose tokens they are; a number of tokens, if there is no tokenizer to keep.
            reference_tokenizer: Tokens that it has too start as its embeddings have them.
            reference: Added embeddings that ``reference_tokenizer`` belongs to; default: the model's own.

        Raises:
            UsageError: The name is taken.
            ModelError: The model embeds no tokens.
        """
        check_new(name, self._tokenizers)
        known = type(tokenizer) is not int
        for given in (tokenizer,) * known + (reference_tokenizer,) * (reference_tokenizer is not None):
            if not hasattr(given, "get_vocab"):
                raise UsageError(
                    f"{given!r} is not a tokenizer", hint="AutoTokenizer.from_pretrained(…), or a number of tokens"
                )
        config = config_for(
            self._model, len(tokenizer) if known else tokenizer, getattr(tokenizer, "pad_token_id", None)
        )
        module = Embeddings(config, self._model)
        module.reset_parameters()
        if reference_tokenizer is not None:
            if not known:
                raise UsageError(
                    "tokens can be compared only between two tokenizers",
                    hint="give a tokenizer in place of a number, or no reference_tokenizer",
                )
            theirs = reference_tokenizer.get_vocab()
            pairs = {index: theirs[token] for token, index in tokenizer.get_vocab().items() if token in theirs}
            module.copy_tokens(pairs, self._model if reference is None else self.embeddings_module(reference))
        module.requires_grad_(False)
        self.insert_embeddings(name, module, tokenizer if known else None)

    def remove_embeddings(self, name: str) -> None:
        """Forget embeddings; if they are active, all adapters are switched off.

        Raises:
            UsageError: No embeddings of that name.
        """
        if self.embeddings_module(name) is self._engine.plan.embeddings:
            self.activate(None)
        self.drop_embeddings(name)

    def add_head(self, name: str, config: HeadConfig) -> None:
        """Add a freshly initialised head; it acts when an adapter of the same name, or ``head=name``, is active.

        After :meth:`train`, it is trained if the adapter of its name is.

        Raises:
            UsageError: The name is taken.
            ModelError: The head does not fit the model's class.
        """
        self.insert_head(name, config, build_head(config, self._model, self.anatomy.hidden_size))

    @property
    def active(self) -> Composition | None:
        """The active composition; assigning activates, None switches all adapters off."""
        return self._active

    @active.setter
    def active(self, composition: Composition | None) -> None:
        self.activate(composition)

    @property
    def active_head(self) -> str | None:
        """The active head, or None: the model answers as its own class does. Of several, the first."""
        return next(iter(self._active_heads), None)

    @property
    def _active_heads(self) -> list[str]:
        answer = self._engine.plan.answer
        return [] if answer is None else list(answer.heads)

    @property
    def active_embeddings(self) -> str | None:
        """The active embeddings, or None: the model's own."""
        acting = self._engine.plan.embeddings
        return next((name for name in self.embeddings if self.embeddings_module(name) is acting), None)

    def activate(
        self,
        composition: Composition | None,
        head: str | Sequence[str] | None = None,
        skip_layers: Iterable[int] = (),
        *,
        task_ids: Sequence[int] | torch.Tensor | None = None,
        embeddings: str | None = None,
    ) -> None:
        """Choose what acts in every forward from now on.

        Args:
            composition: A name, a block, a composition string, or None.
            head: Default: the head named like the last adapter, if there is one; where rows have adapters of their
                own, each row's. Several that are named answer together; in Parallel and BatchSplit with as many
                children, each for its child's rows. An empty list: the model answers as its own class does.
            skip_layers: Blocks in which adapters do nothing (AdapterDrop, Rücklé et al. 2021); a number that no block
                has means nothing.
            task_ids: For MultiTask: which child each row goes to.
            embeddings: Added embeddings; default: those named like an adapter, if there are any.

        Raises:
            UsageError: An adapter, head or embeddings that are not there, or rows of which some have a head; nothing
                changes.
        """
        parsed = self._parse(composition)
        self._engine.plan = self._compile(parsed, head, frozenset(skip_layers), task_ids, embeddings)
        self._active = parsed

    def route(self, rows: Sequence[str | None], head: str | Sequence[str] | None = None) -> None:
        """Give every row of the batch an adapter of its own, or none: ``route(["a", "b", None])``.

        Raises:
            UsageError: An adapter that is not there, or rows of which some have a head.
        """
        if isinstance(rows, str) or not isinstance(rows, Sequence):
            raise UsageError(f"expected a name for each row, not {rows!r}", hint='panel.route(["a", "b", None])')
        self.activate(Route(*rows), head)

    @contextmanager
    def using(
        self,
        composition: Composition | None,
        head: str | Sequence[str] | None = None,
        skip_layers: Iterable[int] = (),
        *,
        task_ids: Sequence[int] | torch.Tensor | None = None,
        embeddings: str | None = None,
    ) -> Iterator[None]:
        """Use other adapters and heads inside the block, in this thread or task only; see :meth:`activate`.

        Raises:
            UsageError: An adapter, head or embeddings that are not there, or rows of which some have a head.
        """
        with self._engine.override(
            self._compile(self._parse(composition), head, frozenset(skip_layers), task_ids, embeddings)
        ):
            yield

    def train(self, *names: str, train_embeddings: bool = False) -> None:
        """Freeze everything but these adapters and their heads, and activate them as a Stack.

        On a model whose class has a head (``AutoModelForSequenceClassification``), that head is trained too: a copy of
        it, kept beside the model like the adapter.

        Args:
            names: Adapters, first to last.
            train_embeddings: Also train the added embeddings that act with them.

        Raises:
            UsageError: No adapter of that name, or no name.
        """
        if not names:
            raise UsageError("name at least one adapter to train", hint=f"adapters: {', '.join(self.names) or 'none'}")
        if not all(isinstance(name, str) for name in names):
            raise UsageError(
                "train takes names", hint='panel.train("a", "b"); a fusion: panel.train_fusion("Fuse(a, b)")'
            )
        for name in names:
            self.spliced(name)
        acting = self._embeddings_of(Stack(*names))
        if train_embeddings and acting is None:
            raise UsageError("none of these adapters has embeddings", hint="panel.add_embeddings(name, tokenizer)")
        if names[-1] not in self._heads and static_paths(self._model):
            self.add_head(names[-1], static_head_of(self._model))
        if self._trainable is None:
            self._trainable = {n: p.requires_grad for n, p in self._model.named_parameters() if not self._is_ours(n)}
        self._model.requires_grad_(False)
        for name in names:
            for key, parameter in self.module(name).named_parameters():
                parameter.requires_grad_(key not in self.spliced(name).frozen)
            if name in self._heads:
                self.head_module(name).requires_grad_(True)
        self.activate(Stack(*names))
        if train_embeddings and acting is not None:
            self.embeddings_module(acting).requires_grad_(True)
        self._model.train()

    def train_fusion(self, fuse: str | Fuse) -> None:
        """Freeze everything but a fusion and the head of its last adapter, and activate it.

        Add :func:`~adaptergit.splice.fusion.regularisation` of :meth:`fusion_module` to the loss.

        Raises:
            UsageError: No such fusion.
        """
        parsed = self._parse(fuse)
        keys = list(fused(parsed))
        if not keys or parsed is None:
            raise UsageError(f"{fuse} holds no Fuse", hint='write "Fuse(a, b)"')
        modules = [self.fusion_module(key) for key in keys]
        self.train(*dict.fromkeys(_names(parsed)))
        for name in _names(parsed):
            self.module(name).requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        self.activate(parsed)

    def merge(self, name: str) -> None:
        """Write an adapter's updates into the model's weights (LoRA and its relatives, IA3); it acts at no cost.

        If it is active, alone or in a Stack, what else is active stays so. Until it is taken out the merged weights are
        the model's: what is added and starts from them (DoRA's magnitudes, tuned parameters) starts from these.

        Raises:
            UsageError: The method cannot be merged, the adapter is merged already, or it is active in another block or
                with others at its places.
            ModelError: The weights are quantised.
        """
        spliced = self.spliced(name)
        if name in self._merged:
            raise UsageError(f"{name!r} is merged already", hint=f"panel.unmerge({name!r}) takes it out")
        if self._engine.overridden:
            raise UsageError("weights cannot be merged while using() is in use", hint="leave the with block first")
        rest = without(self._active, name)
        acting = self._engine.plan.leaves
        if rest != self._active and any(name not in acting.get(place, {}) for place in spliced.parts.places):
            raise UsageError(f"{name!r} is left out in some blocks; merged, it would act in all", hint="no skip_layers")
        beside = [other for other in _names(rest) if other != name] if rest is not None and rest != self._active else []
        for other in beside:
            theirs = {self.host.module_of(place) for place in self.spliced(other).parts.places}
            shared = next((p for p in spliced.parts.places if self.host.module_of(p) in theirs), None)
            if shared is not None:
                raise UsageError(
                    f"in {self._active}, {other!r} works on what {name!r} makes at {shared.key}: it would no longer",
                    hint="combine() them into one, or switch them off first: panel.active = None",
                )
        restore = merge_into(self.host, spliced.parts)
        if rest is None and self._active is not None:
            plan = self._engine.plan
            self._engine.plan = Plan(answer=plan.answer, embeddings=plan.embeddings)  # its head goes on answering
            self._active = None
        elif rest != self._active:
            plan = self._engine.plan
            left = {place: {n: leaf for n, leaf in own.items() if n != name} for place, own in plan.leaves.items()}
            self._engine.plan = replace(plan, tree=rest, leaves={place: own for place, own in left.items() if own})
            self._active = rest
        self._merged[name] = restore

    def unmerge(self, name: str) -> None:
        """Give the model's weights back, bit for bit; adapters that were merged later are taken out first.

        Raises:
            UsageError: The adapter is not merged.
        """
        if name not in self._merged:
            raise UsageError(f"{name!r} is not merged", hint=f"merged: {', '.join(self._merged) or 'none'}")
        while name in self._merged:
            _, restore = self._merged.popitem()
            restore()

    @property
    def merged(self) -> list[str]:
        """Adapters that are merged into the weights, in order."""
        return list(self._merged)

    def average(
        self,
        name: str,
        names: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        strategy: str = "linear",
        normalize_weights: bool = True,
        rank: int | None = None,
    ) -> None:
        """Add an adapter whose parameters are the weighted sum of others' of the same configuration.

        Args:
            name: Of the new adapter.
            names: What is averaged; heads of these names too, if all have one of one configuration.
            weights: Default: equal.
            strategy: "linear"; for LoRA also "lora_linear_only_negate_b" (negative weights change the sign of B only)
                and "lora_delta_w_svd" (the weighted sum of ΔW, cut to ``rank``; what else changes weights becomes a
                LoRA).
            normalize_weights: Divide the weights by their sum.
            rank: For "lora_delta_w_svd"; default: the largest.

        Raises:
            UsageError: Names, weights or configurations do not fit.
        """
        own = self._weights(names, weights, normalize_weights)
        configs, parts = [self.config(n) for n in names], [self.spliced(n).parts for n in names]
        check_new(name, self._adapters)
        if strategy == "lora_delta_w_svd":
            self._refuse_merged(names)
            made = combine(
                self.host,
                configs,
                parts,
                own,
                "svd",
                self.build,
                self.make,
                rank=rank,
                density=1.0,
                majority="total",
            )
        else:
            made = average(configs, parts, own, strategy, self.build)
        self.insert(name, *made, dtype=self._dtype_of(names[0]))
        if self._of_one_head(names) and name not in self._heads:
            self.average_head(name, names, own, normalize_weights=False)

    def combine(
        self,
        name: str,
        names: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        strategy: str = "cat",
        rank: int | None = None,
        density: float = 1.0,
        majority: str = "total",
    ) -> None:
        """Add an adapter that changes the weighted sum of what others change (task arithmetic, Ilharco et al. 2023).

        Args:
            name: Of the new adapter.
            names: LoRAs at the same places, with any strategy; with svd, whatever changes the weights of the same
                linear layers (DoRA, VeRA, IA3, LoHa, OFT …), and what is made is a LoRA; with what is neither cat nor
                svd, IA3s or tuned parameters of one configuration, by how far they are from changing nothing. Of heads
                of these names, if all have one of one configuration, the weighted mean of those that are added: what is
                taken away answers nothing.
            weights: Default: all 1.
            strategy: "cat" (exact, ranks add up), "svd" (cut to ``rank``), "linear" (of the factors), "ties",
                "dare_linear", "dare_ties", "magnitude_prune", and these with "_svd" (on ΔW, not on the factors).
            rank: For svd; default: the largest of the LoRAs; others need one.
            density: Share of entries that pruning keeps.
            majority: Sign of an entry by "total" value or by "frequency".

        Raises:
            UsageError: Names or options do not fit.
        """
        own = self._weights(names, weights if weights is not None else [1.0] * len(names), False)
        check_new(name, self._adapters)
        self._refuse_merged(names)
        made = combine(
            self.host,
            [self.config(n) for n in names],
            [self.spliced(n).parts for n in names],
            own,
            strategy,
            self.build,
            self.make,
            rank=rank,
            density=density,
            majority=majority,
        )
        self.insert(name, *made, dtype=self._dtype_of(names[0]))
        added = [max(0.0, weight) for weight in own]
        if self._of_one_head(names) and name not in self._heads and any(added):
            self.average_head(name, names, added)

    def _dtype_of(self, name: str) -> torch.dtype | None:
        """Return what an adapter's parameters are, for those that are made of them."""
        return next((one.dtype for one in self.module(name).parameters() if one.is_floating_point()), None)

    def _refuse_merged(self, names: Sequence[str]) -> None:
        """What others change is read off the weights, which must be the model's own."""
        plain = all(isinstance(c := self.config(n), LoRA) and not c.use_dora for n in names)
        if self._merged and not plain:
            raise UsageError(
                f"{', '.join(self._merged)} is merged into the weights that these adapters change",
                hint=f"panel.unmerge({next(iter(self._merged))!r}), and combine then",
            )

    def _of_one_head(self, names: Sequence[str]) -> bool:
        heads = [self._heads.get(one) for one in names]
        return heads[0] is not None and all(head == heads[0] for head in heads)

    def average_head(
        self, name: str, names: Sequence[str], weights: Sequence[float] | None = None, *, normalize_weights: bool = True
    ) -> None:
        """Add a head whose parameters are the weighted sum of others'.

        Raises:
            UsageError: Names, weights or configurations do not fit.
        """
        own = self._weights(names, weights, normalize_weights)
        configs = [self.head_config(n) for n in names]
        if any(config != configs[0] for config in configs):
            raise UsageError("only heads of one configuration can be averaged")
        module = build_head(configs[0], self._model, self.anatomy.hidden_size)
        module.load_state_dict(average_states([self.head_module(n).state_dict() for n in names], own))
        self.insert_head(name, configs[0], module)

    def share_parameters(self, *names: str) -> None:
        """Let MTL-LoRAs have their matrices A and B in common: what one task teaches them, the others know.

        What is a task's own (its transformation and its mixture of B's) stays so. Each adapter is saved with all its
        tensors; share them again after loading.

        Args:
            names: Two adapters or more; all get the matrices of the first.

        Raises:
            UsageError: Other methods, or sizes that differ.
        """
        if len(names) < 2:
            raise UsageError("name at least two adapters that share their parameters")
        share([self.spliced(name).parts for name in names])

    def eject_prefix(self, name: str) -> None:
        """Replace the network that makes a prefix by what it makes.

        Raises:
            UsageError: Not prefix tuning, or the adapter is active.
        """
        spliced = self.spliced(name)
        if self._active is not None and name in _names(self._active):
            raise UsageError(f"{name!r} is active", hint="set active to None first")
        config, parts = eject_prefix(spliced.config, spliced.parts, self.build)
        dtype = self._dtype_of(name)
        del self._adapters[name]
        self.insert(name, config, parts, dtype=dtype, about=spliced.about)

    @staticmethod
    def _weights(names: Sequence[str], weights: Sequence[float] | None, normalise: bool) -> list[float]:
        own = [1.0] * len(names) if weights is None else list(weights)
        if not names or len(own) != len(names):
            raise UsageError(f"{len(names)} adapters and {len(own)} weights")
        if not all(is_number(weight) and math.isfinite(weight) for weight in own):
            raise UsageError(f"weights must be finite numbers, not {own}")
        if normalise and not sum(own):
            raise UsageError("the weights sum to zero", hint="set normalize_weights=False")
        return [w / sum(own) for w in own] if normalise else own

    def remove(self, name: str) -> None:
        """Forget an adapter, its head, its embeddings and fusions over it; if it is active, all are switched off.

        Raises:
            UsageError: No adapter of that name.
        """
        self.spliced(name)
        if name in self._merged:
            self.unmerge(name)
        if self._active is not None and name in _names(self._active):
            self.activate(None)
        if name in self.heads:
            self.remove_head(name)
        for fusion in [key for key in self.fusions if name in self.fused(key).children]:
            self.remove_fusion(fusion)
        if name in self.embeddings:
            self.remove_embeddings(name)
        self.drop(name)

    def remove_head(self, name: str) -> None:
        """Forget a head; if it answers, the model answers as its own class does.

        Raises:
            UsageError: No head of that name.
        """
        self.head_config(name)
        if name in self._active_heads:
            self._engine.plan = replace(self._engine.plan, answer=None)
        self.drop_head(name)

    def snapshot(self) -> Callable[[], None]:
        """Return a function that takes back everything added or activated since."""
        taken_back = super().snapshot()
        plan, active = self._engine.plan, self._active

        def restore() -> None:
            self._engine.plan, self._active = plan, active
            taken_back()

        return restore

    def detach(self) -> nn.Module:
        """Remove every trace of the panel and return the model, bit for bit what it was.

        Whether it is in training or in evaluation mode is left as it is.

        Raises:
            UsageError: :meth:`using` is in use.
        """
        if self._engine.overridden:
            raise UsageError("a panel is not taken away while using() is in use", hint="leave the with block first")
        self._detached = True
        for name in self.merged[:1]:
            self.unmerge(name)
        self._engine.plan = EMPTY
        if self._trainable is not None:
            for name, parameter in self._model.named_parameters():
                if name in self._trainable:
                    parameter.requires_grad_(self._trainable[name])
        with contextlib.suppress(AttributeError):
            delattr(self._model, ATTRIBUTE)
        Replicate.remove(self._model)
        return self._model

    def save(self, name: str, folder: Any, /, **about: Any) -> None:
        """Write an adapter and its head as a package folder that can be loaded or published.

        Args:
            name: Adapter to save.
            folder: Created if missing; files of an earlier save are replaced.
            about: Card fields to set (``description``, ``license``, ``task`` …).

        Raises:
            UsageError: No adapter of that name, or the folder holds another one or a signed package.
            PackageError: A card field is not valid; nothing is written.
        """
        save(self, single(self, name), folder, about)

    def save_setup(
        self,
        folder: Any,
        /,
        composition: Composition | None = None,
        *,
        heads: Iterable[str] | None = None,
        embeddings: Iterable[str] | None = None,
        **about: Any,
    ) -> None:
        """Write a composition with all that acts in it as one package folder.

        Args:
            folder: Created if missing; files of an earlier save are replaced.
            composition: Default: the active one.
            heads: Default: the active ones for the active composition; for another, what would answer for it.
            embeddings: Default: those that act with it.
            about: Card fields; ``name`` is needed.

        Raises:
            UsageError: Something is not there, or there is nothing to save.
            PackageError: A card field is not valid; nothing is written.
        """
        parsed = self._active if composition is None else self._parse(composition)
        as_it_is = composition is None or str(parsed) == str(self._active)
        chosen = list(heads) if heads is not None else self._active_heads if as_it_is else self._heads_of(parsed)
        if embeddings is None:
            acting = self.active_embeddings if as_it_is else self._embeddings_of(parsed)
            embeddings = [] if acting is None else [acting]
        save(self, several(self, parsed, chosen, embeddings), folder, about)

    def save_head(self, name: str, folder: Any, /, **about: Any) -> None:
        """Write a head alone as a package folder; see :meth:`save`."""
        save(self, several(self, None, [name], []), folder, {"name": card_name(name), **about})

    def save_fusion(self, name: str, folder: Any, /, **about: Any) -> None:
        """Write a fusion without its adapters as a package folder; ``name`` is needed among the card fields."""
        children = self.fused(name).children
        block = Fuse(*children) if Fuse(*children).key == name else Fuse(*children, name=name)
        setup = several(self, block, [], [])
        save(self, replace(setup, adapters={}), folder, about)

    def _parse(self, composition: Composition | None) -> Composition | None:
        # A name that is no word of the grammar is a name all the same.
        if composition is None or (isinstance(composition, str) and composition in self._adapters):
            return composition
        return parse_composition(composition)

    def _check_attached(self) -> None:
        if self._detached:
            raise UsageError(
                "the panel was taken away from its model", hint="adaptergit.adapters(model) makes a new one"
            )

    def _compile(
        self,
        composition: Composition | None,
        head: str | Sequence[str] | None,
        skip: frozenset[int],
        task_ids: Sequence[int] | torch.Tensor | None,
        embeddings: str | None,
    ) -> Plan:
        self._check_attached()
        kind = self.host.model_type
        if kind in POSITIONS_FIRST and partitions_rows(composition):
            raise UsageError(
                f"{kind} keeps positions before rows: its rows cannot have adapters of their own",
                hint="run the rows of each adapter by themselves",
            )
        if kind in POSITIONS_FIRST and composition is not None:
            self._check_positions(kind, composition)
        strange = [index for index in skip if type(index) is not int or index < 0]
        if strange:
            raise UsageError(f"{strange[0]!r} is no number of a block", hint=f"blocks: 0 to {self.anatomy.blocks - 1}")
        chosen = embeddings or self._embeddings_of(composition)
        acting = None if chosen is None else self.embeddings_module(chosen)
        answer = self._answer(composition, head)
        if composition is None:
            return EMPTY if acting is None and answer is None else Plan(answer=answer, embeddings=acting)
        leaves: dict[Place, dict[str, nn.Module]] = {}
        for name in dict.fromkeys(_names(composition)):
            if name in self._merged:
                raise UsageError(
                    f"{name!r} is merged into the weights and acts already", hint=f"panel.unmerge({name!r})"
                )
            for place, leaf in self.spliced(name).parts.places.items():
                if not skip or self.host.block_of(place) not in skip:
                    leaves.setdefault(place, {})[name] = leaf
        if partitions_rows(composition):
            self._check_rows(leaves)
        looked_up = set(input_paths(self._base)) if acting is not None else ()
        for place in leaves:
            if isinstance(place, BlockOutput):
                self.host.module(place.path)
            if isinstance(place, Linear) and place.path in looked_up:
                raise UsageError(
                    f"an adapter acts on {place.path}, which added embeddings stand in for",
                    hint="make it without that layer in target_modules",
                )
        fusions: dict[Place, dict[str, nn.Module]] = {}
        for fuse in fuses(composition):
            key, record = fuse.key, self.fused(fuse.key)
            if record.children != _fused_by(fuse):
                raise UsageError(
                    f"the fusion {key!r} was made for {', '.join(record.children)}, and not for {fuse}",
                    hint="panel.add_fusion(…, name=…) makes another",
                )
            for place, fusion in record.modules.items():
                fusions.setdefault(place, {})[key] = fusion
        tasks = None if task_ids is None else task_list(task_ids)
        return Plan(composition, leaves, fusions, tasks, answer, acting)

    def _check_rows(self, places: Iterable[Place]) -> None:
        """Refuse rows of their own where a model that is not in the table keeps positions before rows."""
        acting = (place for place in places if isinstance(place, Site | Projection | Linear))
        paths = {place.output if isinstance(place, Site) else place.path for place in acting}
        new = paths - self._rows_first - {""}
        if not new or family_of(self.host.model_type) is not None:
            return
        wrong = self._watched(lambda inputs: not_first(self._model, self._base, sorted(new), inputs))
        if wrong is not None:
            raise UsageError(
                f"{wrong} keeps positions before rows: its rows cannot have adapters of their own",
                hint="run the rows of each adapter by themselves",
            )
        self._rows_first |= new

    def _check_positions(self, kind: str, composition: Composition) -> None:
        """Refuse what tells positions from rows where they are the other way round: everywhere, or in projections."""
        projections = POSITIONS_FIRST[kind]
        for name in dict.fromkeys(_names(composition)):
            config = self.config(name)
            inside = any(isinstance(place, Projection | Linear) for place in self.spliced(name).parts.places)
            for part in getattr(config, "configs", (config,)):
                gated = getattr(part, "use_gating", False) and (isinstance(part, LowRank) or not projections)
                if gated or (isinstance(part, ReFT) and not projections):
                    raise UsageError(f"{kind} keeps positions before rows: {part.method} would take one for the other")
            if holds(composition, Split) and (inside or not projections):
                raise UsageError(f"{kind} keeps positions before rows: Split would take one for the other")

    def _answer(self, composition: Composition | None, head: str | Sequence[str] | None) -> Answer | None:
        names = self._heads_of(composition) if head is None else [head] if isinstance(head, str) else list(head)
        modules = {name: self.head_module(name) for name in names}
        own = set(names) == set(ends_of(composition))
        if len(names) > 1 and any(isinstance(module, StaticModule) for module in modules.values()):
            if not all(isinstance(module, StaticModule) for module in modules.values()):
                raise UsageError("the head of the model's own class cannot answer together with others")
            if not own:
                raise UsageError(
                    f"each of {', '.join(names)} is the whole head of the model's class: name one",
                    hint=f"head={names[0]!r}",
                )
        return Answer(modules, own) if modules else None

    def _heads_of(self, composition: Composition | None) -> list[str]:
        """Return the heads named like the last adapter of every row."""
        ends = ends_of(composition)
        own = [str(end) for end in ends if end in self._heads]
        if own and len(own) < len(ends):
            without = ", ".join("rows without an adapter" if end is None else end for end in ends if end not in own)
            raise UsageError(
                f"in {composition}, {', '.join(own)} and not {without} would be answered by a head of that name",
                hint=f"head={own[0]!r} for all rows, or head=[] for what the model's own class answers",
            )
        return own

    def _embeddings_of(self, composition: Composition | None) -> str | None:
        """Return the embeddings named like an adapter that acts on all rows."""
        if composition is None:
            return None
        own = [name for name in dict.fromkeys(_names(composition)) if name in self._tokenizers]
        if not own:
            return None
        if len(own) > 1 or not on_every_row(composition, own[0]):
            raise UsageError(
                f"the adapters of {composition} read different embeddings", hint=f"choose: embeddings={own[0]!r}"
            )
        return own[0]

    @staticmethod
    def _is_ours(parameter_name: str) -> bool:
        return parameter_name.startswith(f"{ATTRIBUTE}.")

    def __repr__(self) -> str:
        lines = [f"{n}: {s.config.method}, {self.parameters_of(n):,} parameters" for n, s in self._adapters.items()]
        return f"Panel of {type(self._model).__name__}, active: {self._active}\n  " + "\n  ".join(
            lines or ["no adapters"]
        )


def _fused_by(fuse: Fuse) -> tuple[str, ...]:
    """Return the adapters that a fusion weighs: the last one of every child."""
    return tuple(str(end) for child in fuse.children for end in ends_of(child))


def _names(composition: Composition) -> list[str]:
    return [composition] if isinstance(composition, str) else list(composition.names())
