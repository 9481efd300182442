"""Pack and sign: a folder with weights and a card becomes a signed package, wherever it is published then."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from adaptergit.errors import NotFoundError, PackageError, UsageError, counted
from adaptergit.package import (
    CARD,
    MANIFEST,
    SIGNATURE,
    WEIGHTS,
    Card,
    Manifest,
    check_files,
    pack,
    read_package,
)
from adaptergit.package.card import MAX_BYTES as MAX_CARD_BYTES
from adaptergit.package.card import UNSPECIFIED, is_language
from adaptergit.package.folder import MODEL_SIGNATURE, read_bounded
from adaptergit.package.local import no_card
from adaptergit.package.version import check_named_version
from adaptergit.package.weights import opened
from adaptergit.reference import check_adapter_name, expand
from adaptergit.trust import SigningKey, sign
from adaptergit.trust.oms import sign_bundle

Report = Callable[[str], None]


def card_to_publish(source: Path, name: str | None, version: str | None) -> Card:
    """Read the card of a folder, with another name or version where one is given.

    Raises:
        NotFoundError: No such folder, or no card in it.
        PackageError, UsageError: The card, the name or the version is not valid.
    """
    if not source.is_dir():
        what = "this is a file, and no folder" if source.is_file() else "no such folder"
        raise NotFoundError(what, where=str(source), hint="name the folder that 'adaptergit train' wrote")
    if not (source / CARD).is_file():
        raise no_card(source)
    card = Card.from_yaml(read_bounded(source / CARD, MAX_CARD_BYTES), where=str(source / CARD))
    changes: dict[str, str] = {}
    if name is not None and check_adapter_name(name) != card.name:
        changes["name"] = name
    if version is not None:
        if not isinstance(version, str):
            raise UsageError(f"a version is text, not {version!r}", hint='version="1.0.0"')
        check_named_version(version)
        if version != card.version:
            changes["version"] = version
    return card.updated(**changes) if changes else card


def check_weights(source: Path, card: Card, report: Report) -> None:
    """Open the weights as everybody who loads them will, count what the card counts, and report what was found.

    Raises:
        NotFoundError, PackageError: They are not there, or not what the card says.
    """
    if card.data["adapter"]["format"] == "adaptergit":
        _count(source, card)
    report(f"validated {source}: {card.name} {card.version}, {card.method} for {card.base_model.id}")
    for one in notes_on(source, card):
        report(f"note: {one}")


def notes_on(source: Path, card: Card) -> Iterator[str]:
    """Say what a valid card leaves people without, each with the command that changes it."""
    edit = f"adaptergit card edit {source}"
    if card.license == UNSPECIFIED:
        yield f"the card names no licence, so that nobody may use it: {edit} license=…"
    for tag in (tag for tag in card.data["task"].get("languages", ()) if not is_language(tag)):
        yield f"{tag!r} is no BCP 47 tag, and people search by those: {edit} task.languages=…"
    if "/" not in card.base_model.id:
        told = f"the card calls the base model {card.base_model.id!r}, and users will be asked for it"
        yield f"{told}: {edit} base_model.id=organisation/name"


def _count(source: Path, card: Card) -> None:
    path = source / WEIGHTS
    if not path.is_file():
        raise NotFoundError(
            f"there is no {WEIGHTS}", where=str(source), hint=f"name the folder that holds {CARD} and {WEIGHTS}"
        )
    with opened(path) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a mapping
    others = ("head.", "heads.", "embeddings.", "fusions.")
    counts = {key: math.prod(shape) for key, shape in shapes.items() if not key.startswith(others)}
    count = sum(counts.values())
    # VeRA keeps projections that it does not train.
    untrained = sum(number for key, number in counts.items() if "shared" in key.split("."))
    stated = card.data["adapter"].get("parameters", count)
    if stated not in (count, count - untrained):
        raise PackageError(
            f"adapter.parameters: the card says {stated}, the weights hold {count}",
            where=str(source / CARD),
            hint=f"adaptergit card edit {source} adapter.parameters={count}",
        )


def packed(
    source: Path,
    folder: Path,
    card: Card,
    *,
    repository: str,
    previous: str | None,
    address: str | None,
    report: Report,
    readme: bytes | None = None,
) -> Manifest:
    """Write the package of ``source`` into the empty folder ``folder``, unsigned, and check every byte of it.

    Args:
        report: Called with a line on what was packed.
        source, folder, card, repository, previous, address, readme: See :func:`~adaptergit.package.pack`.

    Raises:
        PackageError: The source holds what a package may not hold.
    """
    created = datetime.now(UTC)
    data = pack(
        source, folder, card, repository=repository, previous=previous, created=created, address=address, readme=readme
    )
    manifest = Manifest.from_bytes(data)
    check_files(read_package(folder), manifest)
    size = sum(file.size for file in manifest.files)
    report(f"packed {counted(len(manifest.files), 'file')}, {size:,} bytes")
    return manifest


def sign_package(
    folder: Path, card: Card, signers: Sequence[SigningKey], model_signing_key: str | Path | None, report: Report
) -> None:
    """Write the signatures of a packed folder: the publisher's, the co-signers', and for other tools a bundle.

    Raises:
        TrustError: Signing failed.
    """
    manifest = (folder / MANIFEST).read_bytes()
    for number, signer in enumerate(signers):
        mark = hashlib.sha256(signer.public.blob).hexdigest()[:8]
        (folder / (f"{MANIFEST}.{mark}.sig" if number else SIGNATURE)).write_bytes(sign(manifest, signer))
        report(f"{'co-' if number else ''}signed by {signer.public.fingerprint}")
    if model_signing_key is not None:
        (folder / MODEL_SIGNATURE).write_bytes(sign_bundle(folder, card.name, expand(model_signing_key)))
        report(f"signed {MODEL_SIGNATURE} for other tools")
