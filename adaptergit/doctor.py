"""Doctor: is everything here that adaptergit needs, and what mends it if not. Nothing is changed or fetched."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packaging.requirements import Requirement

from adaptergit._version import __version__
from adaptergit.errors import AdaptergitError, counted, did_you_mean, installing
from adaptergit.housekeeping import prune
from adaptergit.index import read_index
from adaptergit.indexes import client, revoked
from adaptergit.pins import known_revocations, known_signers
from adaptergit.publish import default_key
from adaptergit.reference import expand
from adaptergit.settings import Settings, cache_dir, config_dir, load_settings
from adaptergit.store import Store, Stored

OK, NOTE, PROBLEM = "ok", "note", "problem"
_OLDEST_SSH = (8, 1)
"""The first whose ``ssh-keygen`` signs files."""
_READ_AT_MOST = 2 << 30
"""Bytes of the store that are compared; of a larger one only the manifests are read."""
_STALE = timedelta(days=14)
_VARIABLES = ("ADAPTERGIT_CONFIG_DIR", "ADAPTERGIT_CACHE_DIR", "ADAPTERGIT_OFFLINE")
_RC_FILES = {"bash": ".bashrc", "zsh": ".zshrc", "fish": ".config/fish/completions/adaptergit.fish"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    level: str
    """``ok``, ``note`` (works, but a person may want to know) or ``problem``."""
    text: str
    hint: str | None = None
    """What mends it."""


Check = Callable[[Settings, datetime], Iterator[Finding]]


def doctor(*, now: datetime | None = None) -> list[Finding]:
    """Look at everything adaptergit needs on this machine, in the order in which one thing needs another.

    Args:
        now: Aware time at which indexes must still hold; default: the clock's.
    """
    found = [Finding("adaptergit", OK, f"{__version__} on Python {sys.version.split()[0]}")]
    settings = Settings()
    try:
        settings = load_settings()
    except AdaptergitError as error:
        found.append(_problem("settings", error))
    else:
        found += _settings(settings)
    for topic, check in _CHECKS.items():
        try:
            found += check(settings, now or datetime.now(UTC))
        except AdaptergitError as error:
            found.append(_problem(topic, error))
        except OSError as error:
            found.append(Finding(topic, PROBLEM, f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")))
    return found


def _problem(topic: str, error: AdaptergitError) -> Finding:
    return Finding(topic, PROBLEM, f"{error.where}: {error.what}" if error.where else error.what, error.hint)


def _settings(settings: Settings) -> Iterator[Finding]:
    path = config_dir() / "config.toml"
    yield Finding("settings", OK, str(path) if path.is_file() else f"the defaults; {path} is not there")
    for url in (url for _, urls in settings.mirrors for url in urls if url.startswith(("/", "~", "file:///"))):
        folder = expand(url.removeprefix("file://").partition("{")[0])
        if not folder.is_dir():
            said = f"there is no folder {folder}, which is a mirror"
            yield Finding("settings", NOTE, said, f"mend [mirrors] in {path}")
    if settings.index_path is not None:
        try:
            read_index(settings.index_path)
        except AdaptergitError as error:
            yield replace(_problem("settings", error), hint=f'mend index = "…" in {path}, or the file')
    for glob, level, _ in settings.policy:
        if level == "unsigned":
            yield Finding("settings", NOTE, f"what {glob} publishes is loaded unsigned", f"a stricter policy in {path}")


def _git(_: Settings, __: datetime) -> Iterator[Finding]:
    from adaptergit.git.runner import MINIMUM, Git

    git, oldest = Git(Path(), trusted=True), ".".join(map(str, MINIMUM))
    version = git.text("version").removeprefix("git version ").split()[0]
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM:
        yield Finding("git", PROBLEM, f"{version} is too old", f"install git {oldest} or newer")
    else:
        yield Finding("git", OK, version)
    try:
        git.text("config", "--get", "user.name")
        git.text("config", "--get", "user.email")
    except AdaptergitError:
        hint = 'git config --global user.name "Your Name" && git config --global user.email you@example.org'
        yield Finding("git", NOTE, "it does not know your name, which publishing writes into commits", hint)


def _ssh(_: Settings, __: datetime) -> Iterator[Finding]:
    from adaptergit.trust.signing import openssh_version

    version = openssh_version()
    shown = "a version that it does not tell" if version is None else "OpenSSH {}.{}".format(*version)
    if shutil.which("ssh-keygen") is None:
        hint = "install OpenSSH's client (openssh-client)"
        yield Finding("ssh-keygen", PROBLEM, "it is not installed, and it is what signs", hint)
    elif version is not None and version < _OLDEST_SSH:
        yield Finding("ssh-keygen", PROBLEM, f"{shown} cannot sign files", "install OpenSSH 8.1 or newer")
    else:
        yield Finding("ssh-keygen", OK, shown)
    if shutil.which("ssh") is None:
        hint = "install OpenSSH's client (openssh-client), or use https addresses"
        yield Finding("ssh", NOTE, "it is not installed: repositories cannot be reached by ssh", hint)


def _keys(settings: Settings, _: datetime) -> Iterator[Finding]:
    from adaptergit.trust import SigningKey
    from adaptergit.trust.signing import unlocked

    path = default_key(settings)
    if path is None:
        yield Finding("key", NOTE, "none yet; it is needed to publish", "adaptergit keygen, or --key with any SSH key")
        return
    private = path.suffix != ".pub"
    if private and os.name == "posix" and path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        text = f"{path} can be read by others, so that ssh-keygen refuses it"
        yield Finding("key", PROBLEM, text, f"chmod 600 {path}")
        return
    key = SigningKey.open(path)
    held = unlocked(path) if private else key.public
    said = [*known_revocations(settings), *revoked(settings)]
    gone = next((one for one in said if one.key == key.public.fingerprint), None)
    after = _successor(settings, gone.repository) if gone is not None and gone.repository is not None else None
    if held is not None and held != key.public:
        hint = f"ssh-keygen -y -f {path} > {path}.pub"
        yield Finding("key", PROBLEM, f"{path}.pub is not the public half of {path}", hint)
    elif after is not None:
        hint = f'sign with {after}: signing_key = "{Path(after).as_posix()}" in {config_dir() / "config.toml"}'
        yield Finding("key", NOTE, f"{key.public.fingerprint} is {gone}", hint)
    elif gone is not None:
        yield Finding("key", PROBLEM, f"{key.public.fingerprint} is {gone}", "make another: adaptergit keygen PATH")
    else:
        where = path if private else f"the ssh agent, named by {path} (is it loaded? ssh-add -l)"
        yield Finding("key", OK, f"{key.public.fingerprint} in {where}")
    if held is None:
        yield Finding("key", NOTE, "a passphrase guards it; ssh-keygen asks for it each time", f"ssh-add {path}")


def _successor(settings: Settings, repository: str) -> Path | None:
    """Return a key of this machine that signs for a repository whose owner replaced another."""
    from adaptergit.prepare import usable_keys

    counting = {one.key for one in known_signers(settings) if one.names(repository)}
    return next((key.path for key in usable_keys(principal=repository) if key.public in counting), None)


def _clone(_: Settings, __: datetime) -> Iterator[Finding]:
    """Look at the clone that this runs in, if adapters are published from it."""
    from adaptergit.git import Clone
    from adaptergit.prepare import SIGNERS, state_of

    try:
        here = state_of(Clone.at(Path()))
    except AdaptergitError:
        return
    if not (here.root / SIGNERS).is_file():
        return
    if here.remote is None:
        yield Finding("clone", NOTE, f"{here.root} has no remote to push to", "git remote add origin URL")
    if here.announced:
        yield Finding("clone", OK, f"{here.root} announces your key")
    else:
        hint = "sign with one of those (--key), or let one of them add yours: adaptergit rotate --keep YOUR-KEY"
        yield Finding("clone", NOTE, f"{here.root} announces other keys than the one you sign with by default", hint)


def _signers(settings: Settings, _: datetime) -> Iterator[Finding]:
    count, gone = len(known_signers(settings)), len(known_revocations(settings))
    said = f"{counted(count, 'key')} allowed or pinned, {counted(gone, 'revocation')}"
    yield Finding("trust", OK, f"{said}; adaptergit trust ls")


def _indexes(settings: Settings, now: datetime) -> Iterator[Finding]:
    indexes = client(settings)
    added = indexes.subscriptions()
    if not added:
        yield Finding(
            "indexes", NOTE, "none was added: there is nothing to search", "adaptergit index add URL --root …"
        )
    for one in added:
        hint = f"adaptergit index update {one.name}"
        try:
            state = indexes.state(one.name)
            indexes.root(one.name)
        except AdaptergitError as error:
            yield _problem("indexes", error)
            continue
        updated = datetime.fromisoformat(state.updated) if state.updated else None
        if not state.updated or updated is None:
            yield Finding("indexes", NOTE, f"{one.name} was never fetched", hint)
        elif state.expires and datetime.fromisoformat(state.expires) < now:
            yield Finding("indexes", PROBLEM, f"{one.name} expired at {state.expires}: what it says is too old", hint)
        elif now - updated > _STALE:
            yield Finding("indexes", NOTE, f"{one.name} was last updated {(now - updated).days} days ago", hint)
        else:
            yield Finding("indexes", OK, f"{one.name}, updated {state.updated}, good until {state.expires}")


def _store(settings: Settings, _: datetime) -> Iterator[Finding]:
    root = cache_dir()
    here = next(path for path in (root, *root.parents) if path.exists())
    hint = "mend its permissions, or choose another folder with ADAPTERGIT_CACHE_DIR"
    try:
        if not here.is_dir():
            raise NotADirectoryError(None, "not a folder", str(here))
        with tempfile.TemporaryFile(dir=here):
            free = shutil.disk_usage(here).free
    except OSError as error:
        yield Finding("store", PROBLEM, f"{here} cannot be written: {error.strerror or error}", hint)
        return
    contents = list(Store(root).contents())
    size = sum(one.size for one in contents)
    damaged = [one for one in contents if _is_damaged(one, Store(root), settings, size)]
    yield Finding("store", OK, f"{counted(len(contents), 'package')}, {size:,} bytes in {root}")
    if damaged:
        text = f"{counted(len(damaged), 'package')} damaged: {', '.join(one.digest[:16] for one in damaged[:5])}"
        yield Finding("store", PROBLEM, text, "adaptergit store verify --remove; they are fetched again when needed")
    elif size > _READ_AT_MOST:
        yield Finding("store", NOTE, "its bytes were not all read", "adaptergit store verify reads them")
    if free < 1 << 30:
        freed = sum(one.size for one in prune(dry_run=True))
        hint = "free some space, or move the store with ADAPTERGIT_CACHE_DIR"
        hint = f"adaptergit store prune frees {freed:,}" if freed else hint
        yield Finding("store", NOTE, f"only {free:,} bytes are free there", hint)


def _is_damaged(one: Stored, store: Store, settings: Settings, size: int) -> bool:
    if one.manifest is None or size > _READ_AT_MOST:
        return one.manifest is None
    return store.damage(one.digest, settings.limits) is not None


def _libraries(_: Settings, __: datetime) -> Iterator[Finding]:
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("adaptergit") or ()]
    except importlib.metadata.PackageNotFoundError:
        needed = [Requirement("torch"), Requirement("transformers")]
    wrong = 0
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not one.specifier.contains(version, prereleases=True):
            wrong += 1
            what = "is not installed" if version is None else f"{version} does not fit {one.specifier}"
            yield Finding("libraries", PROBLEM, f"{one.name} {what}", installing(f"{one.name}{one.specifier}"))
    if not wrong:
        shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
        yield Finding("libraries", OK, shown)
    if importlib.util.find_spec("accelerate") is None:
        yield Finding("libraries", NOTE, "training needs accelerate", installing("adaptergit[train]"))


def _devices(_: Settings, __: datetime) -> Iterator[Finding]:
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [torch.cuda.get_device_name(number) for number in range(count)]
        if not names and torch.backends.mps.is_available():
            names = ["Apple GPU"]
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield Finding("devices", PROBLEM, f"PyTorch does not start: {reason}", "install it anew: https://pytorch.org")
        return
    yield Finding(
        "devices", OK, ", ".join(names) or f"no GPU; {counted(torch.get_num_threads(), 'thread')} of the processor"
    )


def _base_models(settings: Settings, _: datetime) -> Iterator[Finding]:
    hint = f"correct it under [base_models] in {config_dir() / 'config.toml'}"
    for model_id, target in settings.base_models.items():
        folder = expand(target)
        if not (folder / "config.json").is_file():
            what = "has no config.json" if folder.is_dir() else "is not there"
            yield Finding("base models", PROBLEM, f"{model_id}: {folder} {what}", hint)
        else:
            yield Finding("base models", OK, f"{model_id} in {folder}")


def _environment(settings: Settings, _: datetime) -> Iterator[Finding]:
    if settings.offline:
        yield Finding("environment", NOTE, "ADAPTERGIT_OFFLINE: only what is stored can be loaded", "unset it")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            yield Finding("environment", NOTE, f"{name}: nothing is fetched from the Hub", "unset it")
    for name in sorted(os.environ):
        if name.startswith("ADAPTERGIT_") and name not in _VARIABLES and (near := did_you_mean(name, _VARIABLES)):
            yield Finding("environment", NOTE, f"{name} means nothing to adaptergit", near)


def _completion(_: Settings, __: datetime) -> Iterator[Finding]:
    shell = Path(os.environ.get("SHELL", "")).name
    if shell in _RC_FILES:
        path = Path.home() / _RC_FILES[shell]
        text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        if "adaptergit" not in text.casefold():
            yield Finding("completion", NOTE, f"{shell} does not complete adaptergit's commands", COMPLETION[shell])
        else:
            yield Finding("completion", OK, str(path))


COMPLETION: Mapping[str, str] = {
    "bash": """echo 'eval "$(adaptergit completion bash)"' >> ~/.bashrc""",
    "zsh": """echo 'eval "$(adaptergit completion zsh)"' >> ~/.zshrc""",
    "fish": "adaptergit completion fish > ~/.config/fish/completions/adaptergit.fish",
}
"""What makes a shell complete adaptergit's commands."""

_CHECKS: Mapping[str, Check] = {
    "git": _git,
    "ssh-keygen": _ssh,
    "key": _keys,
    "clone": _clone,
    "trust": _signers,
    "indexes": _indexes,
    "store": _store,
    "libraries": _libraries,
    "devices": _devices,
    "base models": _base_models,
    "environment": _environment,
    "completion": _completion,
}
