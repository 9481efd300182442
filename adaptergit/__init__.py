"""adaptergit: a git-native, decentralised hub for transformer adapters.

>>> import adaptergit
>>> model = adaptergit.load("acme/adapters@sst2")  # doctest: +SKIP

The names below are imported on first use, so that ``import adaptergit`` costs milliseconds and no torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from adaptergit._version import __version__

if TYPE_CHECKING:
    from adaptergit.bundle import export_bundle, import_bundle
    from adaptergit.convert import convert, describe
    from adaptergit.diff import diff
    from adaptergit.doctor import doctor
    from adaptergit.errors import (
        AdaptergitError,
        AdaptergitWarning,
        DataError,
        ModelError,
        NotFoundError,
        PackageError,
        ReleaseError,
        TransportError,
        TrustError,
        UsageError,
    )
    from adaptergit.evaluation import evaluate
    from adaptergit.export import export
    from adaptergit.hf import Checkpoint, HubReference, fetch_hub
    from adaptergit.housekeeping import prune, stored, verify_store
    from adaptergit.load import load
    from adaptergit.lock import check_lock, lock, sync
    from adaptergit.mirror import mirror
    from adaptergit.package.editing import edit_card, render_card
    from adaptergit.predict import predict
    from adaptergit.progress import Progress, watching
    from adaptergit.publish import publish, publish_all, yank
    from adaptergit.reference import Reference
    from adaptergit.resolve import fetch, resolve, verify
    from adaptergit.rotate import rotate
    from adaptergit.search import search, show
    from adaptergit.splice import (
        IA3,
        Average,
        BatchSplit,
        Bottleneck,
        ClassificationHead,
        Fuse,
        LoRA,
        MTLLoRA,
        MultiTask,
        Parallel,
        PrefixTuning,
        PromptTuning,
        ReFT,
        Route,
        Split,
        Stack,
        VeRA,
        adapters,
        inspect,
    )
    from adaptergit.summary import summary
    from adaptergit.trust import Verdict

_HOMES = {
    "adaptergit.bundle": ("export_bundle", "import_bundle"),
    "adaptergit.convert": ("convert", "describe"),
    "adaptergit.diff": ("diff",),
    "adaptergit.doctor": ("doctor",),
    "adaptergit.errors": (
        "AdaptergitError",
        "AdaptergitWarning",
        "DataError",
        "ModelError",
        "NotFoundError",
        "PackageError",
        "ReleaseError",
        "TransportError",
        "TrustError",
        "UsageError",
    ),
    "adaptergit.evaluation": ("evaluate",),
    "adaptergit.export": ("export",),
    "adaptergit.hf": ("Checkpoint", "HubReference", "fetch_hub"),
    "adaptergit.housekeeping": ("prune", "stored", "verify_store"),
    "adaptergit.load": ("load",),
    "adaptergit.lock": ("check_lock", "lock", "sync"),
    "adaptergit.mirror": ("mirror",),
    "adaptergit.package.editing": ("edit_card", "render_card"),
    "adaptergit.predict": ("predict",),
    "adaptergit.progress": ("Progress", "watching"),
    "adaptergit.publish": ("publish", "publish_all", "yank"),
    "adaptergit.reference": ("Reference",),
    "adaptergit.resolve": ("fetch", "resolve", "verify"),
    "adaptergit.rotate": ("rotate",),
    "adaptergit.search": ("search", "show"),
    "adaptergit.splice": (
        "IA3",
        "Average",
        "BatchSplit",
        "Bottleneck",
        "ClassificationHead",
        "Fuse",
        "LoRA",
        "MTLLoRA",
        "MultiTask",
        "Parallel",
        "PrefixTuning",
        "PromptTuning",
        "ReFT",
        "Route",
        "Split",
        "Stack",
        "VeRA",
        "adapters",
        "inspect",
    ),
    "adaptergit.summary": ("summary",),
    "adaptergit.trust": ("Verdict",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "IA3",
    "AdaptergitError",
    "AdaptergitWarning",
    "Average",
    "BatchSplit",
    "Bottleneck",
    "Checkpoint",
    "ClassificationHead",
    "DataError",
    "Fuse",
    "HubReference",
    "LoRA",
    "MTLLoRA",
    "ModelError",
    "MultiTask",
    "NotFoundError",
    "PackageError",
    "Parallel",
    "PrefixTuning",
    "Progress",
    "PromptTuning",
    "ReFT",
    "Reference",
    "ReleaseError",
    "Route",
    "Split",
    "Stack",
    "TransportError",
    "TrustError",
    "UsageError",
    "VeRA",
    "Verdict",
    "__version__",
    "adapters",
    "check_lock",
    "convert",
    "describe",
    "diff",
    "doctor",
    "edit_card",
    "evaluate",
    "export",
    "export_bundle",
    "fetch",
    "fetch_hub",
    "import_bundle",
    "inspect",
    "load",
    "lock",
    "mirror",
    "predict",
    "prune",
    "publish",
    "publish_all",
    "render_card",
    "resolve",
    "rotate",
    "search",
    "show",
    "stored",
    "summary",
    "sync",
    "verify",
    "verify_store",
    "watching",
    "yank",
]


class _Package(types.ModuleType):
    """Keeps functions and not the modules of the same names: importing ``adaptergit.load`` would hide ``load``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME_OF or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'adaptergit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
