"""Checkpoints of Hugging Face's PEFT, read into our terms.

A folder holds ``adapter_config.json`` (with ``peft_type``) and ``adapter_model.safetensors``. Tensor names are
``base_model.model.<module path>.<part>``; the module paths become ``target_modules``. What has no exact equivalent
here is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from adaptergit.errors import OTHER_MODEL, ModelError, PackageError, UsageError
from adaptergit.formats.adapterhub import CONFIG, Checkpoint
from adaptergit.formats.files import Folder
from adaptergit.formats.peft_checks import check_biases, check_none_missing, check_start, check_variant, is_target
from adaptergit.splice.anatomy import is_linear
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.methods import (
    IA3,
    LoRA,
    PrefixTuning,
    PromptTuning,
    TunedParameters,
    Union,
    VeRA,
    WeightForm,
)
from adaptergit.splice.places import Host
from adaptergit.splice.sidecar import own_modules

WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]

_LORA_PARTS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_A": "lora_A",
    "lora_B": "lora_B",
    "lora_E": "lora_E",
    "lora_B.bias": "lora_bias",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector": "m",
}
FORM_PARTS = {
    "loha": ("hada_", ""),
    "lokr": ("lokr_", ""),
    "fourierft": ("fourierft_", ""),
    "miss": ("miss_", ""),
    "oft": ("oft_", ".weight"),
    "boft": ("boft_", ""),
    "hra": ("hra_", ""),
}


_TOKENS = "TRAINABLE_TOKENS"


def is_peft(folder: Folder) -> bool:
    """Tell whether a folder holds a PEFT checkpoint."""
    return CONFIG in folder and "peft_type" in folder.json(CONFIG)


def read_peft(folder: Folder, host: Host) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        NotFoundError: A file is missing.
        PackageError: Not a checkpoint this version can read, or only a pickled one.
        ModelError: Its keys name no module of the model.
    """
    return translate_peft(folder.json(CONFIG), folder.tensors(WEIGHTS, "adapter_model.bin"), host, where=str(folder))


def translate_peft(
    raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], host: Host, where: str = "checkpoint"
) -> Checkpoint:
    """Translate configuration and tensors, already in memory.

    Raises:
        PackageError, ModelError: As :func:`read_peft`.
    """
    kind = str(raw.get("peft_type"))
    readers: Mapping[str, Callable[[_Source], tuple[MethodConfig, Tensors]]] = {
        "LORA": _lora,
        "ADALORA": _adalora,
        "IA3": _ia3,
        "VERA": _vera,
        "PREFIX_TUNING": _prefix,
        "PROMPT_TUNING": _prompt,
        "P_TUNING": _prompt,
        "LN_TUNING": _norms,
        **dict.fromkeys((name.upper() for name in FORM_PARTS), _form),
    }
    if kind not in readers and kind != _TOKENS:
        what, known = f"PEFT adapters of the type {kind} have no equivalent here", ", ".join([*readers, _TOKENS])
        raise PackageError(what, where=f"{where}/{CONFIG}", hint=f"these have: {known}")
    if kind == _TOKENS:  # nothing but what others have beside a LoRA, under another name
        raw = {**raw, "trainable_token_indices": raw.get("token_indices")}
    source = _Source(raw, tensors, host, where)
    try:
        config, renamed = (None, {}) if kind == _TOKENS else readers[kind](source)
        tuned, tuned_tensors = _tuned(source)
    except (UsageError, TypeError, KeyError, ValueError) as error:
        raise PackageError(f"this {kind} checkpoint cannot be read: {error}", where=where) from error
    if config is None:
        if tuned is None:
            raise PackageError("it holds no rows of tokens", where=where)
        return Checkpoint("adapter", tuned, tuned_tensors, host)
    if tuned is not None:
        check_biases(config, source.biased(tuned), where)
        config = Union((config, tuned))
        renamed = {f"0.{k}": v for k, v in renamed.items()} | {f"1.{k}": v for k, v in tuned_tensors.items()}
    return Checkpoint("adapter", config, renamed, host)


class _Source:
    """A checkpoint's tensors by module, and what the model calls those modules."""

    def __init__(self, raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], host: Host, where: str) -> None:
        self.raw, self.host, self.where = raw, host, where
        # A safetensors file has no order.
        # No tuner wraps the model that gets a prompt.
        stem = "base_model." if "prompt_embeddings" in tensors else "base_model.model."
        self.tensors = {key.removeprefix(stem): value for key, value in sorted(tensors.items())}
        self.used: set[str] = set()
        self._wrapped: dict[str, str] = {}  # paths from the base, and from the model that PEFT wrapped
        self._base = dict(own_modules(host.base))
        self._model = dict(own_modules(host.model))
        self._prefix = next((f"{p}." for p, module in self._model.items() if module is host.base and p), "")
        self._projections = {projection.path: projection for projection in host.projections}

    def take(self, parts: Mapping[str, str]) -> dict[str, dict[str, torch.Tensor]]:
        """Return ``{path in the base: {our part: tensor}}`` of the tensors whose names end in one of ``parts``, in the
        order of the model."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in self.tensors.items():
            for theirs, ours in parts.items():
                if key.endswith(f".{theirs}"):
                    self.used.add(key)
                    wrapped = key.removesuffix(f".{theirs}")
                    path = self.in_base(wrapped)
                    self._wrapped[path] = wrapped
                    found.setdefault(path, {})[ours] = tensor
                    break
        if not found:
            raise PackageError(
                f"no tensors of {self.raw['peft_type']} are in it",
                where=self.where,
                hint="are adapter_config.json and the weights of one adapter?",
            )
        if convolved := [path for path in found if isinstance(self._base[path], torch.nn.modules.conv._ConvNd)]:
            raise PackageError(
                f"an adapter of a convolution cannot be read: {convolved[0]}",
                where=self.where,
                hint="in PEFT, leave it out of target_modules",
            )
        self.check_complete()
        return {path: found[path] for path in self._base if path in found}

    def check_complete(self) -> None:
        """Refuse a checkpoint without tensors of a module that PEFT would have put an adapter at.

        Raises:
            PackageError: There is one.
        """
        if self.raw.get("target_modules") is None or not self._wrapped:
            return
        path, wrapped = next(iter(self._wrapped.items()))
        prefix = wrapped.removesuffix(path)
        made_in = self.raw.get("auto_mapping") or {}
        same = isinstance(made_in, Mapping) and made_in.get("base_model_class") == type(self.host.model).__name__
        check_none_missing(
            [
                f"{prefix}{path}"
                for path, module in self._base.items()
                if path not in self._wrapped
                and isinstance(getattr(module, "weight", None), torch.Tensor)
                and (same or not path.startswith("pooler"))  # some classes of a base model have none
                and is_target(self.raw, f"{prefix}{path}", linear=is_linear(module))
            ],
            self.where,
        )

    def in_base(self, path: str) -> str:
        """Return a module's path from the base model."""
        names = path.split(".")
        for start in range(min(len(names), 3)):
            shorter = ".".join(names[start:])
            if shorter in self._base:
                return shorter
        if any(".".join(names[start:]) in self._model for start in range(min(len(names), 3))):
            raise ModelError(
                f"an adapter acts in the base model here, and {path!r} is beside it",
                where=self.where,
                hint="leave it out of target_modules; modules_to_save trains a module whole",
            )
        replicated = self.raw.get("layer_replication")
        raise ModelError(
            f"the model has no module {path!r}",
            where=self.where,
            hint=f"layer_replication={replicated}: replicate its layers first, as PEFT does" if replicated else None,
        )

    def in_model(self, path: str) -> str:
        """Return a module's path from the whole model."""
        return path if path in self._model else f"{self._prefix}{self.in_base(path)}"

    def key(self, path: str) -> str:
        """Return what tensor names start with at a linear layer."""
        known = self._projections.get(path)
        return known.key if known is not None else f"linear.{path}"

    def rename(self, found: Mapping[str, Mapping[str, torch.Tensor]]) -> Tensors:
        """Return the tensors by our names."""
        return {f"{self.key(p)}.{part}": t for p, parts in found.items() for part, t in parts.items()}

    def put(self, modules: Mapping[str, str]) -> None:
        """Take modules for those of the checkpoint, by path from the whole model and from the one that PEFT wrapped."""
        short = {path.removeprefix(self._prefix): wrapped for path, wrapped in modules.items()}
        self._wrapped |= {path: wrapped for path, wrapped in short.items() if path in self._base}
        self.check_complete()

    def stacks(self) -> int:
        """Return how many stacks of the model a prompt is for."""
        named = self.raw.get("num_transformer_submodules")
        return int(named or (2 if self.raw.get("task_type") == "SEQ_2_SEQ_LM" else 1))

    def parameters(self, modules: Iterable[str]) -> set[str]:
        """Return what parameters modules have, by path from the whole model."""
        return {f"{path}.{name}" for path in modules for name, _ in self._model[path].named_parameters()}

    def saved(self) -> list[str]:
        """Return the modules that ``modules_to_save`` names, by path from the whole model."""
        names = self.raw.get("modules_to_save") or ()
        return [path for path in self._model if any(path == name or path.endswith(f".{name}") for name in names)]

    def biased(self, tuned: TunedParameters) -> set[str]:
        """Return the layers with tensors of the adapter and a tuned bias."""
        return {path for path in self._wrapped if f"{self._prefix}{path}.bias" in tuned.parameters}

    def pattern(self, name: str, path: str, default: Any) -> Any:
        """Return a module's value of ``rank_pattern`` or ``alpha_pattern``: the first that matches the end of its path
        from the model that PEFT wrapped, or with ``^`` all of it."""
        given = self.raw.get(name) or {}
        if not isinstance(given, Mapping):
            raise UsageError(f"{name}: expected an object")
        for key, value in given.items():
            try:
                matched = re.fullmatch(rf"(.*\.)?({key})", self._wrapped[path])
            except re.error as error:
                raise UsageError(f"{name}: {key!r} is no regular expression: {error}") from error
            if matched:
                return value
        return default


def _lora(source: _Source) -> tuple[MethodConfig, Tensors]:
    raw = source.raw
    check_variant(raw, source.where)
    check_start(raw, source.where)
    found = source.take(_LORA_PARTS)
    for parts in found.values():
        if "m" in parts:
            parts["m"] = parts["m"].reshape(-1, 1)
    return _low_rank(source, found), source.rename(found)


def _low_rank(source: _Source, found: Mapping[str, Mapping[str, torch.Tensor]]) -> LoRA:
    raw = source.raw
    r, alpha = int(raw["r"]), float(raw["lora_alpha"])
    ranks = {path: int(parts["lora_A"].shape[0]) for path, parts in found.items()}
    alphas = {path: float(source.pattern("alpha_pattern", path, alpha)) for path in found}
    return LoRA(
        r=r,
        alpha=alpha,
        dropout=float(raw.get("lora_dropout") or 0.0),
        use_dora=bool(raw.get("use_dora")),
        use_rslora=bool(raw.get("use_rslora")),
        lora_bias=any("lora_bias" in parts for parts in found.values()),
        target_modules=tuple(found),
        rank_pattern={path: rank for path, rank in ranks.items() if rank != r} or None,
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha} or None,
    )


def _adalora(source: _Source) -> tuple[MethodConfig, Tensors]:
    """AdaLoRA is LoRA once its singular values are multiplied into A; it divides by the rank and a little."""
    found = source.take(_LORA_PARTS)
    for parts in found.values():
        parts["lora_A"] = parts["lora_A"] * parts.pop("lora_E")
    config = _low_rank(source, found)
    initial = int(source.raw.get("init_r") or config.r)
    ranks = {path: int(parts["lora_A"].shape[0]) for path, parts in found.items()}
    alphas = {path: config.alpha * rank / (initial + 1e-5) for path, rank in ranks.items()}
    # It looks at use_rslora no more than at the patterns.
    return replace(config, r=initial, use_rslora=False, rank_pattern=ranks, alpha_pattern=alphas), source.rename(found)


def _ia3(source: _Source) -> tuple[MethodConfig, Tensors]:
    found = source.take({"ia3_l": "factors"})
    forward = [path for path, parts in found.items() if parts["factors"].shape[0] == 1]
    flat = {path: {"factors": parts["factors"].reshape(-1)} for path, parts in found.items()}
    return IA3(target_modules=tuple(found), feedforward_modules=tuple(forward)), source.rename(flat)


def _vera(source: _Source) -> tuple[MethodConfig, Tensors]:
    raw = source.raw
    found = source.take({"vera_lambda_b": "vera_B", "vera_lambda_d": "vera_D"})
    r = int(raw["r"])
    renamed = source.rename(found)
    shared = {name: source.tensors.get(f"base_model.{name}", source.tensors.get(name)) for name in ("vera_A", "vera_B")}
    source.used |= {"base_model.vera_A", "base_model.vera_B", "vera_A", "vera_B"}
    if shared["vera_A"] is None or shared["vera_B"] is None:
        # Not stored: made again from the key, as PEFT makes them.
        sizes = [source.host.features(source._projections[path]) for path in found]
        generator = torch.Generator().manual_seed(int(raw["projection_prng_key"]))
        shared["vera_A"] = _kaiming((r, max(inputs for inputs, _ in sizes)), generator)
        shared["vera_B"] = _kaiming((max(outputs for _, outputs in sizes), r), generator)
    matrices = {"shared.lora_A": shared["vera_A"], "shared.lora_B": shared["vera_B"]}
    config = VeRA(r=r, alpha=r, dropout=float(raw.get("vera_dropout") or 0.0), target_modules=tuple(found))
    return config, renamed | {key: value for key, value in matrices.items() if value is not None}


def _kaiming(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _form(source: _Source) -> tuple[MethodConfig, Tensors]:
    raw = source.raw
    kind = str(raw["peft_type"]).lower()
    prefix, suffix = FORM_PARTS[kind]
    names = {key.rpartition(f".{prefix}")[2].removesuffix(suffix) for key in source.tensors if f".{prefix}" in key}
    if any("embedding_" in name for name in names):
        raise PackageError(
            f"{kind.upper()} of an embedding cannot be read",
            where=source.where,
            hint="in PEFT, leave it out of target_modules",
        )
    found = source.take({f"{prefix}{name}{suffix}": name for name in names})
    if raw.get("coft"):
        eps = float(raw.get("eps", 6e-5))
        found = {path: {part: _constrained(t, eps) for part, t in parts.items()} for path, parts in found.items()}
    r = int(raw.get("r") or 0)
    first = next(iter(found.values()))
    if kind == "boft" and first["R"].shape[0] > 1:
        raise PackageError(
            "BOFT with more than one butterfly factor cannot be read",
            where=source.where,
            hint="in PEFT, train with boft_n_butterfly_factor=1",
        )
    if kind == "miss" and raw.get("init_weights") in ("bat", "mini"):
        raise PackageError(
            f"MiSS of the kind {raw['init_weights']!r} cannot be read",
            where=source.where,
            hint="in PEFT, train with init_weights=True",
        )
    if raw.get("n_frequency_pattern"):
        raise PackageError(
            "FourierFT with a number of frequencies for each layer cannot be read",
            where=source.where,
            hint="in PEFT, train without n_frequency_pattern",
        )
    if len(sizes := {_block_size(kind, raw, parts) for parts in found.values()}) > 1:
        raise PackageError(
            f"{kind.upper()} with blocks of several sizes cannot be read: {sorted(sizes)}",
            where=source.where,
            hint="in PEFT, give the size of a block in place of their number",
        )
    alpha = float(raw.get("alpha") or 8)
    ranks = {path: int(source.pattern("rank_pattern", path, r)) for path in found}
    alphas = {path: float(source.pattern("alpha_pattern", path, alpha)) for path in found}
    terms = int(raw["num_cayley_neumann_terms"]) if raw.get("use_cayley_neumann") else 0
    config = WeightForm(
        kind=kind,
        r=r or 8,
        alpha=alpha,
        factor=int(raw.get("decompose_factor") or -1),
        decompose_both=bool(raw.get("decompose_both")),
        n_frequency=int(raw.get("n_frequency") or 1000),
        scaling=float(raw.get("scaling") or 150.0),
        random_loc_seed=int(raw.get("random_loc_seed") or 777),
        block_size=_block_size(kind, raw, first),
        block_share=bool(raw.get("block_share")),
        neumann_terms=4 if terms == 3 else terms,  # PEFT computes the same with both
        orthogonal=bool(raw.get("apply_GS")),
        target_modules=tuple(found),
        rank_pattern={path: rank for path, rank in ranks.items() if rank != r} or None,
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha} or None,
    )
    return config, source.rename(found)


def _constrained(angles: torch.Tensor, eps: float) -> torch.Tensor:
    """Return what constrained OFT makes of the angles of blocks, (blocks, angles), whenever it uses them.

    The norm of a block's skew-symmetric matrix has a limit; every angle stands in it twice.
    """
    norms, limit = math.sqrt(2) * angles.norm(dim=-1, keepdim=True), eps / math.sqrt(angles.shape[0])
    return torch.where(norms <= limit, angles, angles * (limit / norms))


def _block_size(kind: str, raw: Mapping[str, Any], first: Mapping[str, torch.Tensor]) -> int:
    if kind == "boft":
        return int(first["R"].shape[-1])
    if kind == "oft":  # a block of size s has s (s - 1) / 2 angles
        return int((1 + math.isqrt(1 + 8 * first["R"].shape[-1])) // 2)
    return 0


def _prefix(source: _Source) -> tuple[MethodConfig, Tensors]:
    embeddings = source.tensors["prompt_embeddings"]
    source.used.add("prompt_embeddings")
    if source.stacks() == 2:
        # In encoder-decoder models PEFT deals every block four of the tensors in turn, of which the decoder uses two.
        layers = int(source.raw["num_layers"])
        whole = embeddings.view(embeddings.shape[0], 2 * layers, -1)
        order = [(4 * layer + part) % (2 * layers) for layer in range(layers) for part in (0, 1)]
        embeddings = whole[:, order].reshape(embeddings.shape)
    config = PrefixTuning(
        flat=True, prefix_length=embeddings.shape[0], positions="before", encoder_prefix=False, cross_prefix=False
    )
    return config, {"shared.self_prefix.control_trans": embeddings.reshape(-1)}


def _prompt(source: _Source) -> tuple[MethodConfig, Tensors]:
    embeddings = source.tensors["prompt_embeddings"]
    source.used.add("prompt_embeddings")
    if source.stacks() == 2:
        raise PackageError(
            "PEFT puts half of these prompts into the decoder, which has none here",
            where=source.where,
            hint="in PEFT, train it with num_transformer_submodules=1",
        )
    return PromptTuning(prompt_length=embeddings.shape[0], before_positions=True), {
        "prompt.prompt_embedding": embeddings
    }


def _norms(source: _Source) -> tuple[MethodConfig, Tensors]:
    found, modules = {}, {}
    for key, tensor in source.tensors.items():
        path, _, name = key.rpartition(".ln_tuning_layers.")
        if path:
            source.used.add(key)
            where = source.in_model(path)
            modules[where] = path
            found[f"{where}.{name}"] = tensor
    source.put(modules)
    check_none_missing(source.parameters(modules) - found.keys(), source.where)
    return TunedParameters(tuple(found)), {f"tuned.{key}": tensor for key, tensor in found.items()}


def _tuned(source: _Source) -> tuple[TunedParameters | None, Tensors]:
    """Collect what a checkpoint stores of the model itself: biases, whole modules, rows for tokens."""
    values: dict[str, torch.Tensor] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    rows: Tensors = {}
    seen: set[str] = set()
    for key, tensor in source.tensors.items():
        if key in source.used:
            continue
        if key.endswith("trainable_tokens_delta"):
            wrapped = re.sub(r"(\.token_adapter)?\.trainable_tokens_delta$", "", key)
            path = source.in_model(wrapped)
            tokens[path] = _tokens(source, wrapped)
            rows[f"tuned.{path}.rows"] = tensor
            continue
        if ".original_module." in key:
            continue
        path = re.sub(r"\.(token_adapter\.)?base_layer\.|\.modules_to_save(\.default)?\.", ".", key)
        module, _, name = path.rpartition(".")
        where = source.in_model(module)
        own = getattr(source._model.get(where), name, None)
        if not isinstance(own, torch.Tensor):
            raise ModelError(f"the model has no parameter {path!r}", where=source.where, hint=OTHER_MODEL)
        seen.add(f"{where}.{name}")
        if not torch.equal(own.detach().cpu().to(tensor.dtype), tensor):  # the model's own value needs no copy
            values[f"{where}.{name}"] = tensor
    check_none_missing(source.parameters(source.saved()) - seen, source.where)
    if source.raw.get("trainable_token_indices") and not tokens:
        check_none_missing(["trainable_token_indices"], source.where)
    if not values and not tokens:
        return None, {}
    return TunedParameters(tuple(values), tokens or None), {f"tuned.{k}": v for k, v in values.items()} | rows


def _tokens(source: _Source, path: str) -> tuple[int, ...]:
    given = source.raw.get("trainable_token_indices")
    if isinstance(given, Mapping):
        given = next((value for name, value in given.items() if path.endswith(name)), None)
    if not isinstance(given, list):
        raise PackageError("trainable_token_indices: expected a list of tokens", where=source.where)
    return tuple(int(token) for token in given)
