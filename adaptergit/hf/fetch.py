"""From a reference to a folder on the Hub to files that may be used.

revision → commit → listing → the small files → policy → the weights → kept by what they are. Where the folder holds a
signed package, it is judged like any other release; everything else is an unsigned checkpoint. What is refused is
neither kept nor remembered, and weights move only after the policy has decided.
"""

from __future__ import annotations

import time

from adaptergit.errors import NotFoundError, PackageError, TrustError
from adaptergit.hf.client import Hub, offline_by_environment
from adaptergit.hf.reference import HubReference
from adaptergit.hf.signed import accepted_package, check_place, fetch_package
from adaptergit.hf.unsigned import Checkpoint, fetch_checkpoint, used_checkpoint
from adaptergit.hf.wanted import Found, Wanted, recall
from adaptergit.indexes import word_on
from adaptergit.judge import take_over
from adaptergit.package import MANIFEST, Manifest
from adaptergit.resolve import Fetched, check_policy
from adaptergit.settings import Settings, cache_dir, load_settings


def fetch_hub(
    ref: str | HubReference,
    *,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    pickles: bool = False,
    settings: Settings | None = None,
) -> Fetched | Checkpoint:
    """Fetch what a reference to the Hugging Face Hub names, and return its folder.

    A pinned digest or a commit that was fetched before needs no network; neither does a branch or a tag, for
    ``resolution_max_age`` seconds after the Hub was last asked.

    Args:
        ref: ``hf:org/repo[/folder][@revision][#sha256:…]``.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say for the repository.
        offline: Never touch the network; ``ADAPTERGIT_OFFLINE=1`` and ``HF_HUB_OFFLINE=1`` do the same.
        refresh: Ask the Hub again even if a recent answer is known.
        pickles: Take pickled weights where there are no others. They are not loaded.
        settings: Default: the user's.

    Returns:
        A verified package, where the folder holds a signed one, else a checkpoint of others.

    Raises:
        UsageError, NotFoundError, TransportError: It cannot be had.
        TrustError: Refused by policy; nothing is kept or remembered.
        PackageError: What was sent is not what the Hub or the manifest says; nothing is kept or remembered.
    """
    check_policy(policy)
    settings = settings or load_settings()
    reference = ref if isinstance(ref, HubReference) else HubReference.parse(ref)
    offline = offline or settings.offline or offline_by_environment()
    one = Wanted(reference, settings, policy, pickles, word_on(reference.principal, settings, offline=offline))
    if not refresh and (hit := _from_cache(one, offline)):
        return hit
    if offline:
        raise NotFoundError(
            f"{reference} was not fetched yet, and offline was asked for",
            where=str(cache_dir()),
            hint=f"load it once with network{' (HF_HUB_OFFLINE is set)' if offline_by_environment() else ''}",
        )
    with one.store.once(f"{reference.endpoint} {reference}"):
        # Another process may have fetched it while this one waited.
        if not refresh and (hit := _from_cache(one, offline)):
            return hit
        return _from_hub(one)


def _from_cache(one: Wanted, offline: bool) -> Fetched | Checkpoint | None:
    reference, seen = one.reference, recall(one.key)
    fresh = seen is not None and 0 <= time.time() - seen.asked < one.settings.resolution_max_age
    if reference.digest is None and not (seen is not None and (reference.commit or offline or fresh)):
        return None
    digest = reference.digest or (seen.digest if seen is not None else "")
    commit = reference.commit or (seen.commit if seen is not None and seen.digest == digest else "")
    fixed = reference.digest is not None or reference.commit is not None
    try:
        if (path := one.store.find(digest)) is not None:
            manifest = Manifest.from_bytes(one.store.open(digest).manifest_bytes, where=digest)
            check_place(one, manifest)
            fetched = accepted_package(one, path, manifest, "")
            take_over(fetched.verdict, one.settings)
            return fetched
        if one.kept.find(digest) is not None:
            return used_checkpoint(one, commit, digest, one.kept.files(digest), "")
    except TrustError:
        if offline or (fixed and one.kept.find(digest) is not None):
            raise
    except (PackageError, NotFoundError):
        if offline:
            raise
    return None  # damaged, or stored with other signatures, or something else by now: the Hub is asked


def _from_hub(one: Wanted) -> Fetched | Checkpoint:
    reference = one.reference
    hub = Hub.of(reference.endpoint, one.settings)
    commit = reference.commit or hub.commit(reference.repository, reference.revision)
    listing = hub.listing(reference.repository, reference.folder, commit)
    found = Found(hub, reference, commit, listing)
    return fetch_package(one, found) if MANIFEST in listing.files else fetch_checkpoint(one, found)
