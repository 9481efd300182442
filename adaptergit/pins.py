"""The user's pins: ``known_publishers``, a file of OpenSSH allowed-signers lines that this library appends to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from adaptergit.errors import NotFoundError, UsageError
from adaptergit.settings import Settings, load_settings
from adaptergit.trust import MANIFEST_NAMESPACE, AllowedSigner, format_signer, parse_allowed_signers, parse_public_key


def known_signers(settings: Settings) -> list[AllowedSigner]:
    """Read the user's allowed-signers file and pins.

    Raises:
        TrustError: A line cannot be understood.
    """
    signers = []
    for path in (settings.allowed_signers_path, settings.pins_path):
        if path.is_file():
            signers += parse_allowed_signers(path.read_text("utf-8"), source=str(path))
    return signers


def pin_key(repository: str, key: str) -> AllowedSigner:
    """Let a key sign for a repository, or for every repository that a glob matches.

    Args:
        repository: A principal such as ``github.com/acme/adapters``, or a glob.
        key: A public key line, or the path of a ``.pub`` file.

    Raises:
        UsageError: Not the name of a repository.
        TrustError: Not a public key.
    """
    if (
        not repository
        or any(c in ' ,"!\t\n' for c in repository)
        or "/" not in repository.replace("*", "/")
        or "://" in repository
    ):
        raise UsageError(
            f"{repository!r} is not the name of a repository",
            hint="write github.com/acme/adapters or github.com/acme/*",
        )
    path = Path(key).expanduser()
    is_line = len(key.split()) > 1
    if not is_line and not path.is_file():
        raise NotFoundError("no such key file", where=key, hint="give a public key line in quotes, or a .pub file")
    public = parse_public_key(key if is_line else path.read_text("utf-8", errors="replace"))
    signer = AllowedSigner((repository,), public, (MANIFEST_NAMESPACE,))
    add_pin(load_settings(), signer)
    return signer


def unpin_key(fingerprint: str) -> int:
    """Remove every pin of a key; return how many there were.

    Raises:
        NotFoundError: There was none.
    """
    path = load_settings().pins_path
    signers = parse_allowed_signers(path.read_text("utf-8"), source=str(path)) if path.is_file() else []
    kept = [s for s in signers if s.key.fingerprint != fingerprint]
    if len(kept) == len(signers):
        raise NotFoundError(f"no pin of {fingerprint}", where=str(path), hint="see: adaptergit trust ls")
    _write(path, "".join(f"{format_signer(s)}\n" for s in kept))
    return len(signers) - len(kept)


def add_pin(settings: Settings, signer: AllowedSigner) -> None:
    """Add one line to the user's pins, unless an equal one is there; the file is replaced in one step."""
    path = settings.pins_path
    line = format_signer(signer)
    existing = path.read_text("utf-8") if path.is_file() else ""
    if line in existing.splitlines():
        return
    separator = "" if not existing or existing.endswith("\n") else "\n"
    _write(path, f"{existing}{separator}{line}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(path)
