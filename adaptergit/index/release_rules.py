"""The rules of releases: what the crawl found, fetched and verified, and lists if it keeps them."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from adaptergit.errors import AdaptergitError, TrustError
from adaptergit.index.entry import Entry
from adaptergit.index.repository import IndexPolicy
from adaptergit.index.rule import Rule
from adaptergit.package.foreign import MAX_HEADER_BYTES
from adaptergit.package.names import is_reserved
from adaptergit.reference import check_adapter_name


@dataclass(frozen=True)
class Release:
    """A release that the crawl found."""

    entry: Entry | None
    """None if it was refused before it could be described."""
    folder: Path
    version: str
    """Of its tag."""
    past: tuple[Entry, ...]
    """What the index lists of the adapter."""
    policy: IndexPolicy
    refused: AdaptergitError | None = None
    """Why its signature or its bytes do not count."""


def _enrolled(one: Release) -> str | None:
    return one.refused.what if isinstance(one.refused, TrustError) else None


def _verified(one: Release) -> str | None:
    return str(one.refused) if one.refused is not None and not isinstance(one.refused, TrustError) else None


def _name(one: Release) -> str | None:
    if one.entry is None:
        return None
    try:
        check_adapter_name(one.entry.name)
    except AdaptergitError as error:
        return error.what
    return f"{one.entry.name!r} is no file name on Windows" if is_reserved(one.entry.name) else None


def _version(one: Release) -> str | None:
    if one.entry is None:
        return None
    if one.entry.version != one.version:
        return f"the tag says {one.version}, the manifest {one.entry.version}"
    newest = max((Version(entry.version) for entry in one.past), default=None)
    if newest is not None and Version(one.version) <= newest:
        return f"{one.version} is not newer than {newest}, which is listed"
    return None


def _chain(one: Release) -> str | None:
    if one.entry is None:
        return None
    if not one.past:
        return None
    digests = {entry.manifest_sha256 for entry in one.past}
    if one.entry.previous not in digests:
        return "its manifest does not name one that is listed as the release before it"
    return None


def _size(one: Release) -> str | None:
    if one.entry is None:
        return None
    if one.entry.size > one.policy.max_release_bytes:
        return f"{one.entry.size} bytes, this index takes {one.policy.max_release_bytes}"
    return None


def _license(one: Release) -> str | None:
    if one.entry is None:
        return None
    parts = re.split(r"\s+(?:AND|OR|WITH)\s+|[()]", one.entry.license)
    named = [part.strip() for part in parts if part.strip()]
    allowed = {license.casefold() for license in one.policy.licenses}
    foreign = [part for part in named if allowed and part.casefold() not in allowed]
    if foreign:
        return f"{', '.join(foreign)} is none of the licences this index takes: {', '.join(one.policy.licenses)}"
    return None


def _weights(one: Release) -> str | None:
    """The header, read as plain JSON: nothing of the weights themselves is looked at."""
    for path in sorted(one.folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            head = stream.read(8)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            total = path.stat().st_size
            if not 2 <= size <= min(MAX_HEADER_BYTES, total - 8):
                return f"{path.name}: the header is not one of a safetensors file"
            try:
                header = json.loads(stream.read(size))
                ends = sorted(tuple(v["data_offsets"]) for key, v in header.items() if key != "__metadata__")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return f"{path.name}: the header is not one of a safetensors file"
        at = 0
        for start, end in ends:
            if start != at or end < start:
                return f"{path.name}: tensors overlap, or there is a hole between them"
            at = end
        if at != total - 8 - size:
            return f"{path.name}: {total - 8 - size - at} bytes belong to no tensor"
    return None


RELEASE_RULES: tuple[Rule[Release], ...] = (
    Rule(
        "enrolled",
        "As many enrolled keys as the source asks for signed it, and it contradicts nothing that they signed before.",
        _enrolled,
    ),
    Rule("verified", "It is fetched as a user would fetch it, and every byte is what its manifest says.", _verified),
    Rule("name", "The adapter's name is 1 to 64 of `a-z 0-9 . _ -` and can be a file name everywhere.", _name),
    Rule("version", "The version is that of the tag, and newer than every one that is listed.", _version),
    Rule("chain", "`previous` names a release that is listed: the history has no gap and no fork.", _chain),
    Rule("size", "All files together are no larger than `max_release_bytes`.", _size),
    Rule("license", "The licence is an SPDX expression of licences that the index takes (`licenses`).", _license),
    Rule(
        "weights",
        "Every safetensors file has a well-formed header: tensors one after the other, nothing between or after.",
        _weights,
    ),
)
