"""One release as an index lists it: a line of JSON that is written once and never changes, but for ``yanked``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from packaging.version import Version

from adaptergit.errors import PackageError
from adaptergit.package import Card, Manifest, canonical, schemas
from adaptergit.package.curve import series_of, thinned
from adaptergit.package.readme import lasted
from adaptergit.package.version import check_version, is_version

MAX_LINE_BYTES = 64 * 1024
# What people want to read of a card before they load it, in every shard: see docs/formats.md for what it costs.
MAX_HEAD, MAX_TRAINING, MAX_LIMITATIONS = 160, 240, 400
CURVE_POINTS = 16


@dataclass(frozen=True)
class Metric:
    """One number of the card's evaluation."""

    dataset: str
    name: str
    value: float


@dataclass(frozen=True)
class Entry:
    """One release."""

    id: str
    """``host/org/repo@adapter``."""
    url: str
    version: str
    manifest_sha256: str
    tree: str
    """Git tree oid that fetches exactly this release."""
    size: int
    """Bytes of all files."""
    method: str
    task: str
    base_model: str
    license: str
    description: str
    languages: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    dataset: str = ""
    signers: tuple[str, ...] = ()
    published: str = ""
    yanked: str | None = None
    """Reason, if the release was withdrawn."""
    fingerprint: str = ""
    """Of the base model."""
    metrics: tuple[Metric, ...] = ()
    previous: str | None = None
    """Digest of the manifest before this one."""
    first_seen: str = ""
    """When the index first saw it."""
    authors: tuple[str, ...] = ()
    citation: str = ""
    dependencies: tuple[str, ...] = ()
    """References of adapters it was trained on top of."""
    parameters: int = 0
    legacy: str = ""
    """Of an archive that is not signed: where its file is."""
    head: str = ""
    """Its prediction head and labels, in a few words, as the three below of the card."""
    training: str = ""
    """Data, hyper-parameters, hardware."""
    limitations: str = ""
    curve: str = ""
    """Training loss: ``step:loss`` with spaces between, a few points only."""

    @property
    def principal(self) -> str:
        """``host/org/repo``."""
        return self.id.rpartition("@")[0]

    @property
    def address(self) -> str:
        """What it is loaded by: its id, or its URL where https and the usual port do not lead there."""
        return self.id if self.url == f"https://{self.principal}.git" else f"{self.url}@{self.name}"

    @property
    def name(self) -> str:
        """Of the adapter."""
        return self.id.rpartition("@")[2]

    @property
    def pinned(self) -> str:
        """The reference of exactly this release."""
        return f"{self.address}=={self.version}#sha256:{self.manifest_sha256}"

    @property
    def snippet(self) -> str:
        """Two lines of Python that load it."""
        call = f'"{self.pinned}", policy="digest"' if self.legacy else f'"{self.address}"'
        return f"import adaptergit\nmodel = adaptergit.load({call})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; what is empty is left out."""
        # By hand: asdict() copies deeply, which is most of the time a large index takes.
        plain = {key: value for key, value in vars(self).items() if value or key in _REQUIRED}
        for key in _LISTS & plain.keys():
            plain[key] = [vars(item) if isinstance(item, Metric) else item for item in plain[key]]
        return plain

    def to_line(self) -> bytes:
        """Serialise to one line, always to the same bytes."""
        return _ENCODER.encode(self.to_dict()).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes, *, where: str) -> Entry:
        """Read a line quickly: kinds of values are checked, their grammar where something is done with them.

        Raises:
            PackageError: Not an entry.
        """
        try:
            raw = json.loads(line.decode())  # strictly: json would take half of a character
            canonical.refuse_half_characters(line, raw, where)
            return cls.from_dict(raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise PackageError(f"not an entry: {str(error)[:120]}", where=where) from error

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Entry:
        """Build an entry of plain data.

        Raises:
            ValueError, TypeError, KeyError: It is none.
        """
        values: dict[str, Any] = {}
        for key, value in raw.items():
            kind = _KINDS[key]
            if kind is tuple:
                if key == "metrics":
                    value = tuple(Metric(str(m["dataset"]), str(m["name"]), float(m["value"])) for m in value)
                elif type(value) is not list or not {str}.issuperset(map(type, value)):
                    raise TypeError(f"{key} is no list of texts")
                else:
                    value = tuple(value)
            elif type(value) is not kind and not (value is None and key in ("yanked", "previous")):
                raise TypeError(f"{key} is no {kind.__name__}")
            values[key] = value
        entry = cls(**values)
        oid, digest = _OID.fullmatch(entry.tree), _DIGEST.fullmatch(entry.manifest_sha256)
        if not is_version(entry.version) or "@" not in entry.id or not 0 <= entry.size < 2**53 or not oid or not digest:
            raise ValueError(f"{entry.id!r} {entry.version!r} is no release")
        return entry


_version = lru_cache(4096)(Version)
_OID, _DIGEST = re.compile(r"([0-9a-f]{40}([0-9a-f]{24})?)?"), re.compile(r"[0-9a-f]{64}")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_REQUIRED = {f.name for f in fields(Entry)[:11]}
_LISTS = {f.name for f in fields(Entry) if "tuple" in str(f.type)}
_KINDS: dict[str, type] = {
    f.name: int if f.name in ("size", "parameters") else tuple if "tuple" in str(f.type) else str for f in fields(Entry)
}


def entry_of(
    manifest: Manifest,
    card: Card,
    *,
    digest: str,
    url: str,
    tree: str,
    signers: Iterable[str],
    first_seen: str = "",
    yanked: str | None = None,
) -> Entry:
    """Describe a verified release."""
    task, data = card.data["task"], card.data
    return Entry(
        id=f"{manifest.repository}@{manifest.name}",
        url=url,
        version=manifest.version,
        manifest_sha256=digest,
        tree=tree,
        size=sum(f.size for f in manifest.files),
        method=manifest.method,
        task="/".join(part for part in (task["type"], task.get("id"), task.get("subtask")) if part),
        base_model=manifest.base_model.id,
        license=manifest.license,
        description=data["description"],
        languages=tuple(task.get("languages", ())),
        keywords=tuple(data.get("keywords", ())),
        dataset=task.get("dataset", ""),
        signers=tuple(signers),
        published=manifest.created,
        yanked=yanked,
        fingerprint=manifest.base_model.fingerprint,
        metrics=tuple(
            Metric(one["dataset"], one["metric"], float(one["value"]))
            for one in data.get("evaluation", ())
            if isinstance(one.get("value"), int | float)
        ),
        previous=manifest.previous,
        first_seen=first_seen,
        authors=tuple(
            str(one.get("name", "")) if isinstance(one, Mapping) else str(one) for one in data.get("authors", ())
        ),
        citation=str(data.get("citation", "")),
        dependencies=tuple(str(one["reference"]) for one in data.get("dependencies", ())),
        parameters=int(data["adapter"].get("parameters", 0)),
        head=_head(data.get("head")),
        training=_training(data.get("training")),
        limitations=excerpt(str(data.get("limitations", "")), MAX_LIMITATIONS),
        curve=_curve(data),
    )


def excerpt(text: str, most: int) -> str:
    """Return the beginning of a text, cut between words."""
    text = text.strip()
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    return (cut.rsplit(None, 1)[0] if " " in cut[-80:] else cut[:-1]) + " …"


def _head(head: Mapping[str, Any] | None) -> str:
    if not head:
        return ""
    labels = ", ".join(" ".join(str(label).split()) for label in head.get("labels", ())[:50])
    return excerpt(f"{head['type']}: {labels}" if labels else str(head["type"]), MAX_HEAD)


def _training(training: Mapping[str, Any] | None) -> str:
    if not training:
        return ""
    values = training.get("hyperparameters", {})
    plain = [f"{key}={value}" for key, value in values.items() if isinstance(value, int | float | str)]
    seconds = training.get("duration_seconds")
    parts = (
        str(training.get("data", ""))[:120],
        f"{training['samples']:,} samples" if training.get("samples") else "",
        ", ".join(plain[:12]),
        f"seed {training['seed']}" if "seed" in training else "",
        str(training.get("hardware", ""))[:80],
        lasted(seconds) if seconds else "",
        ", ".join(f"{name} {version}" for name, version in training.get("frameworks", {}).items()),
    )
    return excerpt("; ".join(" ".join(part.split()) for part in parts if part), MAX_TRAINING)


def _curve(card: Mapping[str, Any]) -> str:
    """Return some points of the training loss."""
    loss = next((one.points for one in series_of(card) if one.unit == "step"), ())
    return " ".join(f"{step:.6g}:{value:.3g}" for step, value in thinned(loss, CURVE_POINTS))


def read_lines(data: bytes, where: str) -> list[Entry]:
    """Read the entries of a file of lines.

    Raises:
        PackageError: With the line that is none, or says a release again.
    """
    found: dict[tuple[str, str], Entry] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            entry = Entry.from_line(line, where=f"{where}:{number}")
            if (entry.id, entry.version) in found:
                raise PackageError(f"{entry.name} {entry.version} is listed twice", where=f"{where}:{number}")
            found[entry.id, entry.version] = entry
    return list(found.values())


def sort_key(entry: Entry) -> tuple[str, Version]:
    """In the order of names and versions."""
    return entry.id, _version(entry.version)


def newest(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return the release of every adapter that somebody who names no version is given, by id."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.yanked is None and not _version(entry.version).is_prerelease:
            known = found.get(entry.id)
            if known is None or _version(entry.version) > _version(known.version):
                found[entry.id] = entry
    return found


def check_document(data: bytes, where: str, limit: int) -> list[Entry]:
    """Read an aggregated index, ``{"schema": "adaptergit.index/1", "entries": […]}``, strictly.

    Raises:
        PackageError: Not a valid index; names the entry and the field.
    """
    try:
        canonical.refuse_surrogates(data, where)
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=canonical.unique) if len(data) <= limit else None
    except UnicodeDecodeError as error:
        raise PackageError(f"not UTF-8 at byte {error.start}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=where) from error
    if raw is None:
        raise PackageError(f"more than {limit} bytes", where=where)
    for field, message in schemas.problems("index", raw):
        raise PackageError(f"{schemas.dotted(field) or 'document'}: {message}", where=where)
    found = []
    for number, item in enumerate(raw["entries"]):
        check_version(item["version"], where=f"{where}: entries[{number}]")
        try:
            found.append(Entry.from_dict(item))
        except (ValueError, TypeError, KeyError) as error:
            raise PackageError(f"entries[{number}]: {error}", where=where) from error
    named = [(entry.id, entry.version) for entry in found]
    if len(set(named)) != len(named):
        twice = next(one for one in named if named.count(one) > 1)
        raise PackageError(f"{twice[0]}=={twice[1]} is listed twice", where=where)
    return found
