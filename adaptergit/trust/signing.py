"""Making keys and signatures with OpenSSH itself, so that agents, passphrases and FIDO keys just work."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptergit.durable import disk_errors
from adaptergit.errors import NotFoundError, TrustError, UsageError
from adaptergit.reference import expand
from adaptergit.trust.keys import PublicKey, parse_public_key
from adaptergit.trust.sshsig import MANIFEST_NAMESPACE, parse_signature, verify_signature

_TIMEOUT = 300.0
"""Seconds; long, because a person may have to type a passphrase or touch a security key."""
_FAULTS = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)}
"""Of the disk, by what ``ssh-keygen`` says of them last."""


_REMEDIES = {
    "bad permissions": "nobody else may read a private key: chmod 600 {path}",
    "incorrect passphrase": "write its public half beside it: ssh-keygen -y -f {path} > {path}.pub",
    "Permission denied": "let yourself read it: chmod u+r {path}",
    "error in libcrypto": "this is no OpenSSH private key; adaptergit keygen makes one",
    "invalid format": "this is no OpenSSH private key; adaptergit keygen makes one",
}
"""By what ``ssh-keygen`` says of a private key file."""
_TO_SIGN = {
    **_REMEDIES,
    "incorrect passphrase": "the passphrase was not typed, or another: try again at a terminal, or ssh-add {path} once "
    '(eval "$(ssh-agent)" starts the agent)',
    "No private key found": "ssh-add the private key, or name its file instead of {path}.pub",
}
"""The same, when it signs."""


@dataclass(frozen=True)
class SigningKey:
    """A key ``ssh-keygen`` can sign with: a private key file, or a ``.pub`` file whose private half is in the agent."""

    path: Path
    """The file."""
    public: PublicKey
    """Its public half."""

    @classmethod
    def open(cls, path: Path) -> SigningKey:
        """Read the public half of a private key file, or a ``.pub`` file.

        Raises:
            NotFoundError: No such file.
            TrustError: Not a key of an accepted type.
        """
        path = expand(path)
        if path.is_dir():
            raise NotFoundError("this is a folder, not a key file", where=str(path), hint="name a file in it")
        public_path = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
        if not path.is_file():
            raise NotFoundError(
                "no such key file",
                where=str(path),
                hint=f"bring it back, or, if ssh-agent holds it: --key {public_path}"
                if public_path.is_file()
                else f"make one with: adaptergit keygen {path}, or name another",
            )
        text = public_path.read_text("utf-8", errors="replace") if public_path.is_file() else _public_half(path)
        try:
            return cls(path, parse_public_key(text))
        except TrustError as error:
            raise TrustError(error.what, where=str(public_path), hint=error.hint) from error


def unlocked(path: Path) -> PublicKey | None:
    """Return the public key that a private key file itself holds, or None if a passphrase guards it.

    Raises:
        TrustError: ``ssh-keygen`` cannot use the file, and why.
    """
    try:
        return parse_public_key(_public_half(path))
    except TrustError as error:
        if "incorrect passphrase" in error.what:
            return None
        raise


def openssh_version() -> tuple[int, int] | None:
    """Return the version of OpenSSH's client, or None where it cannot be told."""
    try:
        done = subprocess.run(
            ["ssh", "-V"], capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"OpenSSH\D*(\d+)\.(\d+)", done.stderr + done.stdout)
    return (int(match[1]), int(match[2])) if match else None


def generate_key(path: Path, *, comment: str = "", ask_passphrase: bool = False) -> SigningKey:
    """Make an ed25519 key pair at ``path`` and ``path.pub``.

    With ``ask_passphrase``, ``ssh-keygen`` itself asks at the terminal: a passphrase never is an argument, which other
    users could read.

    Raises:
        UsageError: A file is there already; keys are never overwritten.
        StorageError: The disk is full, or may not be written to; nothing is left there.
    """
    path = expand(path)
    if path.suffix == ".pub":
        raise UsageError("name the private key; the public one gets .pub added", where=str(path))
    if path.is_dir():
        raise UsageError("this is a folder", where=str(path), hint="name a file for the key: adaptergit keygen PATH")
    pair = (path, path.with_name(path.name + ".pub"))
    for existing in pair:
        if existing.exists():
            raise UsageError(
                "there is a file already; keys are never overwritten",
                where=str(existing),
                hint=f"sign with it (--key {existing}), or name a file for another: adaptergit keygen PATH",
            )
    passphrase = () if ask_passphrase else ("-N", "")
    argv = ["ssh-keygen", "-q", "-t", "ed25519", *passphrase, "-C", comment, "-f", str(path)]
    with disk_errors("the key", path, "free some space, or name another place: adaptergit keygen PATH"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _run(argv, f"cannot make a key at {path}", interactive=ask_passphrase)
        except BaseException as error:
            for half in pair:  # it would stand in the way of the next one
                half.unlink(missing_ok=True)
            if isinstance(error, TrustError) and (fault := _FAULTS.get(error.what.rpartition(": ")[2])):
                raise OSError(fault, os.strerror(fault)) from error
            raise
    return SigningKey.open(path)


def sign(message: bytes, key: SigningKey, *, namespace: str = MANIFEST_NAMESPACE) -> bytes:
    """Sign ``message`` and return the armored SSHSIG, verified before it is returned.

    Raises:
        TrustError: ``ssh-keygen`` could not sign: a wrong passphrase, no agent, no touch.
    """
    with tempfile.TemporaryDirectory(prefix="adaptergit-sign-") as folder:
        document = Path(folder) / "document"
        document.write_bytes(message)
        argv = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key.path), "-n", namespace, str(document)]
        if key.public.type.startswith("sk-") and sys.stderr is not None and sys.stderr.isatty():
            # Where ssh-keygen would say it: it asks for passphrases at the terminal, and is heard for its errors only.
            print(f"touch the security key {key.public.fingerprint}", file=sys.stderr)
        try:
            _run(argv, f"cannot sign with {key.path}", interactive=True)
        except TrustError as error:
            raise _hinted(error, _TO_SIGN, key.path) from error
        armored = (Path(folder) / "document.sig").read_bytes()
    signature = parse_signature(armored)
    verify_signature(signature, message, namespace)
    if signature.key != key.public:
        raise TrustError(f"ssh-keygen signed with {signature.key.fingerprint}, not with {key.public.fingerprint}")
    return armored


def _public_half(path: Path) -> str:
    try:
        return _run(["ssh-keygen", "-y", "-P", "", "-f", str(path)], f"cannot read the key {path}")
    except TrustError as error:
        raise _hinted(error, _REMEDIES, path) from error


def _hinted(error: TrustError, remedies: Mapping[str, str], path: Path) -> TrustError:
    hints = (hint for said, hint in remedies.items() if said in error.what)
    hint = error.hint or _of_file(path) or next(hints, "")
    what = error.what
    with contextlib.suppress(OSError):
        if path.suffix != ".pub" and _holds_no_key(path):  # ssh-keygen complains of its permissions first
            what = f"{path} holds no private key"
    # What is done is done to the private half, whichever was named.
    return TrustError(what, where=error.where, hint=hint.format(path=str(path).removesuffix(".pub")) or None)


def _holds_no_key(path: Path) -> bool:
    return b"PRIVATE KEY" not in path.read_bytes()[:100]


def _of_file(path: Path) -> str | None:
    """Tell what is wrong with a file itself, before what ``ssh-keygen`` says of it: that is often something else."""
    if path.suffix == ".pub":
        return None
    with contextlib.suppress(OSError):
        if _holds_no_key(path):
            return _REMEDIES["invalid format"]
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            return _REMEDIES["bad permissions"]
    return None


def _run(argv: list[str], what: str, *, interactive: bool = False) -> str:
    """Run ``ssh-keygen``; only when signing may it ask the person at the terminal."""
    environment = {**os.environ, "LC_ALL": "C"}
    if not interactive:
        environment["SSH_ASKPASS_REQUIRE"] = "never"
    try:
        done = subprocess.run(
            argv,
            env=environment,
            stdin=None if interactive else subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise TrustError("ssh-keygen is not installed", hint="install OpenSSH's client (openssh-client)") from error
    except subprocess.TimeoutExpired as error:
        raise TrustError(f"{what}: no answer in {_TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        message = (done.stderr or done.stdout).strip().splitlines()
        raise TrustError(f"{what}: {message[-1] if message else 'ssh-keygen failed'}")
    return done.stdout
