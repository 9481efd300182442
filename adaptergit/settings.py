"""Settings: one TOML file, a few environment variables, and the folders of the platform.

``config.toml`` in :func:`config_dir` (``~/.config/adaptergit`` on Linux)::

    default_host = "github.com"            # for references without a host
    allowed_signers = "allowed_signers"    # OpenSSH allowed-signers file, relative to this folder
    signing_key = "signing_key"            # private key to publish with, or its .pub file; relative to this folder
    index = "index.json"                   # local index file for 'adaptergit search'
    allow_http = ["mirror.lan"]            # hosts other than loopback that may be fetched from over plain http
    resolution_max_age = 86400             # seconds an unpinned "newest version" answer is reused without asking again

    [base_models]                          # where base models live on this machine
    "sentence-transformers/all-MiniLM-L6-v2" = "/models/minilm"

    [mirrors]                              # for when the repository cannot be reached; "/" at the end: a folder
    "github.com/acme/*" = ["https://codeberg.org/acme/adapters.git", "https://mirror.lan/{repository}/"]

    [[policy]]                             # first match wins; without a match: enforce
    match = "git.corp.example/*"
    level = "tofu"                         # or, in one line above the tables: policy = "tofu"
    threshold = 2                          # different keys that must have signed; default: 1

Environment: ``ADAPTERGIT_CONFIG_DIR`` and ``ADAPTERGIT_CACHE_DIR`` move the two folders, ``ADAPTERGIT_OFFLINE=1``
forbids every socket (``true``, ``yes`` and ``on`` do too). No environment variable weakens a trust policy.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from adaptergit.errors import UsageError, did_you_mean
from adaptergit.reference import DEFAULT_HOST, HOST, Source, expand

POLICY_LEVELS = ("enforce", "tofu", "digest", "unsigned")


@dataclass(frozen=True)
class Limits:
    """Bounds on everything that comes from somebody else."""

    file_bytes: int = 100 * 2**20
    """One file of a package; forges refuse larger blobs."""
    package_bytes: int = 200 * 2**20
    """All files of a package."""
    files: int = 64
    """Entries of a package folder."""
    checkpoint_bytes: int = 2 * 2**30
    """All files of an unsigned checkpoint; it is kept by no forge, and adapters of large models are larger."""
    fetch_seconds: float = 600.0
    """From the first question to the last byte, whoever is asked."""
    deadline: float | None = None
    """When they end, as ``time.monotonic`` tells it; None: they have not begun."""

    def started(self) -> Limits:
        """Return the same bounds with the clock running."""
        if self.deadline is not None:
            return self
        return replace(self, deadline=time.monotonic() + self.fetch_seconds)

    @property
    def seconds_left(self) -> float:
        """How long there is to go on."""
        return self.fetch_seconds if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True)
class Settings:
    """Everything a person can configure. Functions below the command line take values from it, never itself."""

    default_host: str = DEFAULT_HOST
    allowed_signers: str = "allowed_signers"
    signing_key: str | None = None
    index: str | None = None
    allow_http: tuple[str, ...] = ()
    resolution_max_age: int = 86400
    base_models: Mapping[str, str] = field(default_factory=dict)
    mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Pairs of glob over principals and addresses."""
    policy: tuple[tuple[str, str, int], ...] = ()
    """Glob over principals, policy level, threshold."""
    offline: bool = False
    limits: Limits = Limits()

    def policy_for(self, principal: str | None) -> str:
        """Return the level of the first matching glob, or ``enforce``."""
        return self._rule(principal)[0]

    def threshold_for(self, principal: str | None) -> int:
        """Return how many keys the first matching glob asks for, or 1."""
        return self._rule(principal)[1]

    def _rule(self, principal: str | None) -> tuple[str, int]:
        found = ((level, threshold) for glob, level, threshold in self.policy if fnmatchcase(principal or "", glob))
        return next(found, ("enforce", 1))

    def mirrors_for(self, principal: str | None) -> list[str]:
        """Return the addresses of all globs that match, in order."""
        return [url for glob, urls in self.mirrors if fnmatchcase(principal or "", glob) for url in urls]

    def base_model_path(self, model_id: str) -> str:
        """Return where a base model is loaded from: the mapped folder, or the id itself."""
        return self.base_models.get(model_id, model_id)

    @property
    def allowed_signers_path(self) -> Path:
        """The user's own allowed-signers file; may not exist."""
        return config_dir() / expand(self.allowed_signers)

    @property
    def signing_key_path(self) -> Path:
        """The key to publish with: the named one, or the one that ``adaptergit keygen`` makes; may not exist."""
        return config_dir() / expand(self.signing_key or "signing_key")

    @property
    def pins_path(self) -> Path:
        """Keys pinned on first use, as OpenSSH allowed-signers lines; may not exist."""
        return config_dir() / "known_publishers"

    @property
    def checkpoints_path(self) -> Path:
        """Unsigned checkpoints pinned on first use, one per line; may not exist."""
        return config_dir() / "known_checkpoints"

    @property
    def revocations_path(self) -> Path:
        """Keys and releases that no longer count; may not exist."""
        return config_dir() / "revoked.jsonl"

    @property
    def rotations_path(self) -> Path:
        """Which rotation of a repository was followed last, one per line; may not exist."""
        return config_dir() / "known_rotations"

    @property
    def index_path(self) -> Path | None:
        """The local index file to search, if one is configured."""
        return None if self.index is None else config_dir() / expand(self.index)


def config_dir() -> Path:
    """Folder of ``config.toml``, allowed signers, pins and keys."""
    chosen = os.environ.get("ADAPTERGIT_CONFIG_DIR")
    return expand(chosen).absolute() if chosen else Path(platformdirs.user_config_dir("adaptergit"))


def cache_dir() -> Path:
    """Folder of the store."""
    chosen = os.environ.get("ADAPTERGIT_CACHE_DIR")
    return expand(chosen).absolute() if chosen else Path(platformdirs.user_cache_dir("adaptergit"))


def load_settings(path: Path | None = None) -> Settings:
    """Read ``config.toml`` and the environment.

    Raises:
        UsageError: The file is not TOML, or a key or a value is not known.
    """
    path = path or config_dir() / "config.toml"
    offline = offline_by_environment()
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Settings(offline=offline)
    except OSError as error:
        raise UsageError(f"cannot read the settings: {error.strerror}", where=str(path), hint=_READABLE) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"line {line} is not UTF-8", where=str(path), hint="save the file as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"not valid TOML: {error}",
            where=str(path),
            hint=_mended(str(error)),
        ) from error
    return Settings(**_checked(raw, path), offline=offline)


def offline_by_environment() -> bool:
    """Tell whether ``ADAPTERGIT_OFFLINE`` forbids every socket.

    Raises:
        UsageError: It says neither yes nor no: whoever set it meant something.
    """
    stated = os.environ.get("ADAPTERGIT_OFFLINE", "")
    if stated.lower() in ("1", "true", "yes", "on"):
        return True
    if stated.lower() in ("", "0", "false", "no", "off"):
        return False
    raise UsageError(f"ADAPTERGIT_OFFLINE is {stated!r}", hint="1 forbids the network, 0 allows it")


def check_online(where: str) -> None:
    """Refuse to ask a server where ``ADAPTERGIT_OFFLINE`` forbids it.

    Raises:
        UsageError: It does, or says neither yes nor no.
    """
    if offline_by_environment():
        raise UsageError("this needs the network, and ADAPTERGIT_OFFLINE forbids it", where=where, hint="unset it")


def _mended(said: str) -> str:
    """Return what is done about what the parser of TOML said."""
    if "Unescaped" in said or "hex" in said:
        return "write a path with \\ in single quotes"
    return "write each setting once" if "overwrite" in said or "twice" in said else _QUOTES


_QUOTES = 'texts are in a pair of quotes, and so is a name with / or * in it: "acme/model" = "/folder"'
_READABLE = "make it a file that you may read, or move it away: without one, the defaults count"
_KINDS: dict[str, tuple[type, str]] = {
    "default_host": (str, 'default_host = "github.com"'),
    "allowed_signers": (str, 'allowed_signers = "allowed_signers"'),
    "signing_key": (str, 'signing_key = "signing_key"'),
    "index": (str, 'index = "index.json"'),
    "allow_http": (list, 'allow_http = ["mirror.lan"]'),
    "resolution_max_age": (int, "resolution_max_age = 86400"),
    "base_models": (dict, '[base_models] on a line of its own, and below it "organisation/model" = "/folder"'),
    "mirrors": (dict, '[mirrors] on a line of its own, and below it "github.com/acme/*" = ["https://mirror.lan/"]'),
    "policy": (list, 'policy = "enforce", or below a line [[policy]]: match = "github.com/acme/*" and level = "tofu"'),
}
"""Of each setting: what TOML reads it as, and how it is written."""


def _checked(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {f.name for f in fields(Settings)} & _KINDS.keys()
    if raw.get("policy") in POLICY_LEVELS:  # one level for everything
        raw = {**raw, "policy": [{"match": "*", "level": raw["policy"]}]}
    for key, value in raw.items():
        if key not in known:
            hint = did_you_mean(key, known) or f"known: {', '.join(sorted(known))}"
            raise UsageError(f"unknown setting {key!r}", where=str(path), hint=hint)
        kind, example = _KINDS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{key} cannot be {_said(value)}", where=str(path), hint=f"write {example}")
    if (host := raw.get("default_host")) is not None and not HOST.fullmatch(host):
        hint = f"write {_KINDS['default_host'][1]}"
        raise UsageError(f"default_host {host!r} is not a host name", where=str(path), hint=hint)
    if raw.get("resolution_max_age", 0) < 0:
        raise UsageError(
            "resolution_max_age is a number of seconds, from 0 on", where=str(path), hint="0 asks each time"
        )
    checked = dict(raw)
    if "allow_http" in raw:
        checked["allow_http"] = tuple(str(host) for host in raw["allow_http"])
    for model_id, target in raw.get("base_models", {}).items():
        if not isinstance(target, str):
            raise UsageError(
                f"base_models.{model_id} must be a path", where=str(path), hint=f'write "{model_id}" = "/folder"'
            )
    for glob, urls in raw.get("mirrors", {}).items():
        if not isinstance(urls, list) or not all(isinstance(url, str) and url for url in urls):
            raise UsageError(
                f"mirrors.{glob} must be a list of addresses",
                where=str(path),
                hint=f'write "{glob}" = ["https://mirror.lan/"]',
            )
        for url in urls:
            try:
                _check_mirror(url.replace("{repository}", "host/org/repo"))
            except UsageError as error:
                hint = "a repository's URL, or a static mirror's address with a '/' at its end"
                raise UsageError(f"mirrors.{glob}: {error.what}", where=str(path), hint=hint) from error
    checked["mirrors"] = tuple((glob, tuple(urls)) for glob, urls in raw.get("mirrors", {}).items())
    rules = []
    for number, rule in enumerate(raw.get("policy", []), 1):
        match, level = (rule.get("match"), rule.get("level")) if isinstance(rule, dict) else (None, None)
        threshold = rule.get("threshold", 1) if isinstance(rule, dict) else None
        complete = isinstance(rule, dict) and {"match", "level"} <= set(rule) <= {"match", "level", "threshold"}
        levels = f"levels: {', '.join(POLICY_LEVELS)}"
        if not complete or not isinstance(match, str):
            raise UsageError(
                f"policy rule {number} needs 'match' (a glob) and 'level', and may have 'threshold'",
                where=str(path),
                hint=levels,
            )
        if level not in POLICY_LEVELS:
            raise UsageError(f"policy rule {number}: there is no level {level!r}", where=str(path), hint=levels)
        if type(threshold) is not int or not 1 <= threshold <= 16:
            raise UsageError(
                f"policy rule {number}: threshold is a number from 1 to 16",
                where=str(path),
                hint="write threshold = 1, or leave it out",
            )
        rules.append((match, level, threshold))
    checked["policy"] = tuple(rules)
    return checked


def _said(value: object) -> str:
    """Name what TOML read."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else repr(value)


def _check_mirror(url: str) -> None:
    """Refuse what is neither a folder of this machine, nor one of a web server, nor a repository."""
    if url.startswith(("/", "~")) and url.isprintable():
        return
    if not url.endswith("/"):
        Source.parse(url)
        return
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a valid URL: {error}") from error
    if "@" in parts.netloc:
        raise UsageError(f"{parts.scheme}://…@{host}{parts.path}: an address never holds credentials")
    local = parts.scheme == "file" and parts.netloc in ("", "localhost")
    if not local and (parts.scheme not in ("https", "http") or not host or port == 0):
        raise UsageError(f"{url!r}: a folder of a web server is written https://host/ or https://host/folder/")
    if parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise UsageError(f"{url!r}: the address of a folder has no '?', no '#' and no blanks (write %20)")
