"""Taking over the cards of the AdapterHub archive (github.com/adapter-hub/Hub): what there was stays findable.

Nobody signed those files. An entry made of a card is *legacy*: it names the file and its sha256, and is never fetched
as if it were a release. What a card says and an entry has no place for is counted in the report, by field.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptergit.errors import NotFoundError, PackageError
from adaptergit.index.entry import Entry, Metric, sort_key
from adaptergit.index.repository import IndexRepository
from adaptergit.index.repository import replace as write
from adaptergit.index.sources import SourceFile
from adaptergit.package import yamlfile
from adaptergit.package.card import is_language
from adaptergit.package.version import is_version
from adaptergit.progress import each

PRINCIPAL = "github.com/adapter-hub/Hub"
_URL = "https://github.com/adapter-hub/Hub.git"
_METHODS = {
    "pfeiffer": "seq_bn",
    "houlsby": "double_seq_bn",
    "pfeiffer+inv": "seq_bn_inv",
    "houlsby+inv": "double_seq_bn_inv",
}
# The archive's subtasks name languages in words.
_LANGUAGES = {"arabic": "ar", "chinese": "zh", "english": "en", "hinglish": "hi-Latn", "japanese": "ja"}
_MAX_CARD_BYTES = 256 * 1024
_CARD_FIELDS = {
    "author", "citation", "config", "dependencies", "description", "files", "model_name", "subtask", "task", "type",
    "default_version", "prediction_head",
}  # fmt: skip
_DEPENDENCY_FIELDS = {"key", "description"}
_MOST = {"description": 4000, "method": 64, "citation": 10_000, "task": 200, "dataset": 300}
"""Characters that an entry has room for."""
_FILE_FIELDS = {"url", "sha256", "version", "score", "description"}


@dataclass(frozen=True)
class Imported:
    """What became of an archive."""

    cards: int
    entries: int
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Adapters by the card they had, where the name had to change."""
    without_place: Mapping[str, int] = field(default_factory=dict)
    """Fields of cards that entries do not have, and how many cards had them."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Cards that could not be taken over, and why."""
    cut: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields of which only the beginning has a place, by card."""
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Adapters that a card builds on and that are not in the archive, by card."""


def import_adapterhub(index: IndexRepository, clone: Path) -> Imported:
    """Write an entry for every file of every card of a clone of the archive.

    Args:
        index: Where to.
        clone: Folder with ``adapters/<org>/<card>.yaml``.

    Raises:
        NotFoundError: There are no cards.
    """
    paths = sorted((clone / "adapters").glob("*/*.yaml"))
    if not paths:
        raise NotFoundError("there are no cards", where=str(clone / "adapters"), hint="a clone of adapter-hub/Hub")
    found: dict[tuple[str, str], Entry] = {}
    keys: dict[str, list[tuple[Entry, str, bool]]] = defaultdict(list)
    origin: dict[tuple[str, str], tuple[str, str]] = {}
    renamed: dict[str, str] = {}
    cut: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    left: Counter[str] = Counter()
    for path in each(paths, "cards", "cards"):
        card = path.relative_to(clone).as_posix()
        try:
            raw = yamlfile.loads(path.read_bytes(), where=card, limit=_MAX_CARD_BYTES).data
            entries = list(_entries(raw, path, clone))
        except (PackageError, KeyError, TypeError, ValueError, AttributeError) as error:
            refused[card] = f"{type(error).__name__}: {error}" if not isinstance(error, PackageError) else str(error)
            continue
        left.update(set(raw) - _CARD_FIELDS)
        left.update({f"files.{name}" for file in raw["files"] for name in set(file) - _FILE_FIELDS})
        left.update(
            {f"dependencies.{name}" for one in raw.get("dependencies") or () for name in set(one) - _DEPENDENCY_FIELDS}
        )
        using, default = str(raw["config"]["using"]), str(raw.get("default_version", ""))
        for label, entry in entries:
            while (entry.name, entry.version) in found:
                entry = replace(entry, id=f"{PRINCIPAL}@{_name(f'{entry.name}-2')}")
            if label:
                renamed[f"{card} ({label})"] = entry.name
            if too_long := tuple(name for name, most in _MOST.items() if len(getattr(entry, name)) > most):
                cut[card] = too_long
            found[entry.name, entry.version] = entry
            origin[entry.name, entry.version] = card, using
            chosen = len(entries) == 1 or default in (label, entry.version)
            for key in (f"{raw['task']}/{raw['subtask']}@{path.parent.name}", f"{path.parent.name}/{path.stem}"):
                keys[key].append((entry, using, chosen))
    unknown: dict[str, tuple[str, ...]] = {}
    for place, entry in found.items():
        card, using = origin[place]
        built_on = {key: _meant(keys.get(key, ()), entry, using) for key in entry.dependencies}
        if missing := tuple(key for key, meant in built_on.items() if meant is None):
            unknown[card] = missing
        whole = replace(entry, dependencies=tuple(meant or key for key, meant in built_on.items()))
        found[place] = replace(whole, **{name: getattr(whole, name)[:most] for name, most in _MOST.items()})
    source = SourceFile(PRINCIPAL, _URL, (), "adapterhub.ml", legacy=True, homepage="https://adapterhub.ml")
    write(index.root / source.path, source.to_yaml())
    index.write_entries(PRINCIPAL, sorted(found.values(), key=sort_key))
    return Imported(len(paths), len(found), renamed, dict(sorted(left.items())), refused, cut, unknown)


def _meant(candidates: Iterable[tuple[Entry, str, bool]], by: Entry, using: str) -> str | None:
    """Return the adapter that a card builds on: one for the same model, made the same way, and its usual version."""
    fitting = [item for item in candidates if item[0].base_model == by.base_model]
    best = max(fitting, key=lambda item: (item[1] == using, item[2]), default=None)
    return None if best is None else f"{best[0].id}=={best[0].version}"


def _entries(raw: Mapping[str, Any], path: Path, clone: Path) -> Iterator[tuple[str, Entry]]:
    """Yield an entry for every file of a card, with its label where that is no version."""
    kind, task, subtask = str(raw["type"]), str(raw["task"]), str(raw["subtask"])
    about = _subtask(clone, kind, task, subtask)
    base = _name(f"{path.parent.name}-{path.stem}")
    files = raw["files"]
    for file in files:
        label = str(file["version"])
        numbered = is_version(label)
        default = str(raw.get("default_version", "")) == label
        name = base if numbered or (default and len(files) == 1) else _name(f"{base}-{label}")
        metrics: tuple[Metric, ...] = ()
        if isinstance(file.get("score"), int | float):
            stated = about.get("metric")
            metric = str((stated.get("name") if isinstance(stated, Mapping) else stated) or "score")
            metrics = (Metric(f"{task}/{subtask}", metric, float(file["score"])),)
        description = str(raw.get("description") or about.get("description") or f"{task}, {subtask}").strip()
        if file.get("description"):
            description += f"\n\n{label}: {str(file['description']).strip()}"
        for one in raw.get("dependencies") or ():
            if one.get("description"):
                description += f"\n\nBuilt on {one['key']}: {str(one['description']).strip()}"
        yield (
            "" if numbered else label,
            Entry(
                id=f"{PRINCIPAL}@{name}",
                url=_URL,
                version=label if numbered else "1",
                manifest_sha256=_digest(file["sha256"]),
                tree="",
                size=0,
                method=_method(raw["config"]),
                task=f"language-modeling/{subtask}" if kind == "text_lang" else f"{task}/{subtask}",
                base_model=str(raw["model_name"]),
                license="LicenseRef-unknown",
                description=description,
                languages=_languages(kind, task, about),
                keywords=("adapterhub", *(("default",) if default and len(files) > 1 else ())),
                dataset=subtask,
                metrics=metrics,
                authors=tuple(part.strip() for part in str(raw.get("author") or "").split(",") if part.strip()),
                citation=str(raw.get("citation") or "").strip(),
                dependencies=tuple(str(one["key"]) for one in raw.get("dependencies") or ()),
                legacy=str(file["url"]),
                head="with a prediction head" if raw.get("prediction_head") is True else "",
            ),
        )


def _subtask(clone: Path, kind: str, task: str, subtask: str) -> Mapping[str, Any]:
    path = clone / "subtasks" / kind / task / f"{subtask}.yaml"
    if not path.is_file():
        path = clone / "subtasks" / kind / f"{task}_{subtask}.yaml"
    if not path.is_file():
        return {}
    data = yamlfile.loads(path.read_bytes(), where=str(path), limit=_MAX_CARD_BYTES).data
    return data if isinstance(data, Mapping) else {}


def _method(config: Mapping[str, Any]) -> str:
    using = str(config["using"])
    options = [f"{key}={config[key]}" for key in ("non_linearity", "reduction_factor") if config.get(key) is not None]
    name = _METHODS.get(using, using)
    return f"{name}[{', '.join(options)}]" if options else name


def _languages(kind: str, task: str, about: Mapping[str, Any]) -> tuple[str, ...]:
    stated = task if kind == "text_lang" else str(about.get("language") or "")
    tags = [_LANGUAGES.get(part.strip().lower(), part.strip()) for part in stated.split(",")]
    return tuple(dict.fromkeys(tag for tag in tags if is_language(tag)))


def _digest(value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{text!r} is no sha256")
    return text


def _name(text: str) -> str:
    """Return a name an adapter may have; a long one keeps its beginning and gets a mark of all of it."""
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9._-]+", "-", text.lower())).strip("-._")
    if len(plain) <= 64:
        return plain
    return f"{plain[:55].rstrip('-._')}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
