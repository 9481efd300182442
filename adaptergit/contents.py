"""What a reference or a folder holds, looked at and not loaded: card, configuration, and the headers of its weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, UsageError
from adaptergit.hf import Checkpoint, fetch_hub
from adaptergit.package import CARD, Card
from adaptergit.package.folder import read_bounded
from adaptergit.package.local import local_card
from adaptergit.package.weights import SETUP, Tensor, files_of, tensors_in
from adaptergit.reference import expand, is_folder, is_hub
from adaptergit.resolve import Fetched, fetch
from adaptergit.settings import load_settings

CONFIG = "adapter_config.json"
_CONFIGS = (CONFIG, "head_config.json", "adapter_fusion_config.json", SETUP)
_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class Contents:
    """What is there."""

    label: str
    """As it was asked for."""
    path: Path
    card: Card | None
    """None for a checkpoint of others without one."""
    configs: Mapping[str, Any]
    """Configurations of others by the path of their file."""
    tensors: Mapping[str, Tensor]
    digest: str | None = None
    """sha256 of the manifest of a release, or of the list of files of an unsigned checkpoint."""

    @property
    def format(self) -> str:
        """Whose files they are: "adaptergit", "adapterhub" or "peft"."""
        if self.card is not None:
            return str(self.card.data["adapter"]["format"])
        return "peft" if "peft_type" in self.configs.get(CONFIG, {}) else "adapterhub"


def contents(ref: str | Path, *, policy: str | None = "unsigned", **fetching: Any) -> Contents:
    """Look at a reference or a folder; a release is fetched, and its bytes are compared with its manifest.

    Args:
        ref: A reference, also ``hf:org/repo``, a package folder, or a folder of AdapterHub's or PEFT's.
        policy: Whose word is enough; default: anybody's, since nothing is loaded.
        fetching: ``offline``, ``index``, ``lock``: see :func:`~adaptergit.resolve.fetch`.

    Raises:
        UsageError, NotFoundError, TransportError: It cannot be had.
        PackageError, TrustError: It is damaged, or refused.
    """
    if is_folder(ref):
        folder = expand(ref)
        found = dict(_configs(folder)) if folder.is_dir() else {}
        card = None if found and not (folder / CARD).exists() else local_card(folder, load_settings().limits)
        return _with_weights(Contents(str(ref), folder, card, found, {}))
    with warnings.catch_warnings():
        if policy == "unsigned":
            warnings.simplefilter("ignore", AdaptergitWarning)  # of what looking is not in danger of
        release = _fetched(str(ref), policy, fetching)
    card, digest = (None, release.identity) if isinstance(release, Checkpoint) else (release.card, release.digest)
    if isinstance(release, Checkpoint) and CARD in release.digests:
        card = local_card(release.path, load_settings().limits)
    return _with_weights(Contents(str(ref), release.path, card, dict(_configs(release.path)), {}, digest))


def _fetched(ref: str, policy: str | None, fetching: Mapping[str, Any]) -> Fetched | Checkpoint:
    if not is_hub(ref):
        return fetch(ref, policy=policy, **fetching)
    if unknown := {key for key, value in fetching.items() if value is not None} - {"offline"}:
        raise UsageError(f"{', '.join(sorted(unknown))}: not for what is on the Hub", where=ref)
    return fetch_hub(ref, policy=policy, offline=bool(fetching.get("offline")))


def _with_weights(found: Contents) -> Contents:
    tensors = tensors_in(found.path)
    if not tensors and not any(found.path.glob("*.safetensors")):
        pickled = next(found.path.glob("*.bin"), None)
        hint = "adaptergit convert --allow-pickle makes safetensors of pickled weights" if pickled else None
        raise NotFoundError("there are no weights (*.safetensors)", where=str(found.path), hint=hint)
    return Contents(found.label, found.path, found.card, found.configs, tensors, found.digest)


def _configs(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in files_of(folder):
        if path.name in _CONFIGS:
            try:
                raw = json.loads(read_bounded(path, _MAX_CONFIG))
            except (ValueError, RecursionError) as error:
                raise PackageError(f"not JSON: {error}", where=str(path)) from error
            if not isinstance(raw, dict):
                raise PackageError("expected a JSON object", where=str(path))
            yield path.relative_to(folder).as_posix(), raw
