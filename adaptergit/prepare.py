"""Prepare: a clone gets what publishing needs. All of it, or nothing: whatever goes wrong is taken back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from adaptergit.durable import replace_file
from adaptergit.errors import NotFoundError, PackageError, TrustError, UsageError, quoted
from adaptergit.pins import known_revocations
from adaptergit.publish import default_key, push_source, signing_key
from adaptergit.reference import check_no_adapter, expand
from adaptergit.settings import config_dir, load_settings
from adaptergit.trust import MANIFEST_NAMESPACE, AllowedSigner, SignedRotation, SigningKey, format_signer, generate_key
from adaptergit.trust.rotation import MAX_ROTATIONS, Rotation

if TYPE_CHECKING:
    from adaptergit.git import Clone

ATTRIBUTES = ".gitattributes"
SIGNERS = ".adaptergit/allowed_signers"
README = "README.md"
REMOTE = "origin"
_LINE = "adapters/** -text -filter -diff -merge -export-subst -export-ignore"


@dataclass(frozen=True)
class Purpose:
    """What the README of a new repository says; what is empty is left out."""

    text: str = ""
    """What its adapters are for, in a sentence."""
    base_model: str = ""
    """Id of the model that most of them are for."""
    license: str = ""
    """SPDX expression."""

    def check(self) -> None:
        """Refuse what cards would refuse.

        Raises:
            UsageError: Naming it.
        """
        for name, value in (("purpose", self.text), ("base_model", self.base_model), ("license", self.license)):
            if not value.isprintable() or len(value) > 1000:
                raise UsageError(f"{name}: expected one line of text, of at most 1000 characters")
        try:
            canonicalize_license_expression(self.license or "Apache-2.0")
        except InvalidLicenseExpression as error:
            hint = "write for example Apache-2.0 or LicenseRef-My-Terms"
            raise UsageError(f"{self.license!r} is not an SPDX expression", hint=hint) from error


@dataclass(frozen=True)
class State:
    """What a clone has of what publishing needs."""

    root: Path
    remote: str | None
    """URL of ``origin``."""
    readme: bool
    announced: bool
    """The key that signs by default is announced."""


def initialise(
    clone: str | Path,
    key: str | Path | None = None,
    *,
    new_key: bool = False,
    remote_url: str | None = None,
    purpose: Purpose = Purpose(),
) -> list[Path]:
    """Prepare a clone for publishing: attributes that keep git from touching bytes, and the publisher's public key.

    Args:
        clone: Any folder inside the clone.
        key: As for :func:`adaptergit.publish`.
        new_key: Make a key: at ``key``, or where ``adaptergit keygen`` does.
        remote_url: Set as the remote ``origin``, where the clone has none.
        purpose: Written into ``README.md``, if it says something.

    Returns:
        The files written; the person reviews and commits those in the clone.

    Raises:
        UsageError: Not a clone, no key, or something else is in the way. Nothing was changed.
    """
    from adaptergit.git import Clone

    purpose.check()
    here = Clone.at(Path(clone))
    remote = state_of(here).remote
    if remote_url is not None and remote not in (None, remote_url):
        hint = f"git -C {quoted(here.root)} remote set-url {REMOTE} URL"
        raise UsageError(f"the clone has a remote already: {REMOTE} is {remote}", where=str(here.root), hint=hint)
    if remote_url is not None:
        check_remote(remote_url, here.root)
    _check_room(here.root)
    if purpose != Purpose() and (here.root / README).exists():
        raise UsageError("there is a README already", where=str(here.root / README), hint="write the purpose there")
    written: list[Path] = []
    with contextlib.ExitStack() as undo:  # what takes everything back, last first, unless it is emptied
        if new_key:
            signer = _made(expand(key) if key is not None else config_dir() / "signing_key", undo)
            written.append(signer.path)
        else:
            signer = signing_key(key)
            _check_not_replaced(here, signer)
        if remote_url is not None and remote is None:
            undo.callback(_forget_remote, here)
            here.add_remote(REMOTE, remote_url)
        line = format_signer(AllowedSigner(("*",), signer.public, (MANIFEST_NAMESPACE,)))
        files = {ATTRIBUTES: _with_line(here.root / ATTRIBUTES, _LINE), SIGNERS: _with_line(here.root / SIGNERS, line)}
        if purpose != Purpose():
            files[README] = _readme(here, remote_url or remote, purpose, signer).encode()
        for name, data in files.items():
            path = here.root / name
            if path.exists() and path.read_bytes() == data:
                continue
            undo.callback(_put_back, path, path.read_bytes() if path.exists() else None, path.parent.exists())
            replace_file(path, data)
            written.append(path)
        undo.pop_all()
    return written


def _check_not_replaced(clone: Clone, signer: SigningKey) -> None:
    """Refuse to announce a key that a rotation has replaced: nobody would accept it.

    Raises:
        UsageError: One has.
    """
    if signer.public.fingerprint in replaced_keys(clone):
        raise UsageError(
            f"{signer.public.fingerprint} was replaced by a rotation: nobody would accept it",
            hint="name the key that came after it with --key",
        )


def replaced_keys(clone: Clone) -> set[str]:
    """Return the keys that the rotations in a clone say were replaced."""
    from adaptergit.git import rotations_in

    found: set[str] = set()
    for files in rotations_in(clone, MAX_ROTATIONS):
        with contextlib.suppress(PackageError, TrustError):
            found |= set(Rotation.from_bytes(SignedRotation.of(files).data).remove)
    return found


def check_remote(url: str, root: Path) -> None:
    """Refuse what is no address of a repository to git.

    Raises:
        UsageError: Naming it.
    """
    from adaptergit.git import Remote

    example = "write https://github.com/acme/adapters.git or git@github.com:acme/adapters.git"
    if not url.strip():
        raise UsageError("an empty text is no address", hint=example)
    check_no_adapter(url)
    try:
        source = push_source(url, root)
    except UsageError as error:
        raise UsageError(error.what, hint=example) from error
    if source.kind == "hosted" and source.principal is not None:
        host, _, path = source.principal.partition("/")
        raise UsageError(f"{url!r} is no URL to git", hint=f"write {source.url} or git@{host}:{path}.git")
    Remote.of(source, allow_http=load_settings().allow_http)  # nobody else could fetch from there either
    if source.principal is None:
        place = root / (expand(url) if "://" not in url else url2pathname(urlsplit(source.url).path))
        if not place.is_dir():  # where git looks for it, from the clone
            hint = f"git init --bare {quoted(place)} makes one, or name another"
            raise UsageError("there is no such repository", where=str(place), hint=hint)


def state_of(clone: Clone) -> State:
    """Look at what a clone has."""
    try:
        remote: str | None = clone.remote_url(REMOTE)
    except UsageError:
        remote = None
    announced = False
    if (key := default_key()) is not None and (clone.root / SIGNERS).is_file():
        with contextlib.suppress(TrustError, NotFoundError):
            blob = SigningKey.open(key).public.line.split()[1]
            announced = blob in (clone.root / SIGNERS).read_text("utf-8", "replace")
    return State(clone.root, remote, (clone.root / README).exists(), announced)


def usable_keys(home: Path | None = None, principal: str | None = None) -> list[SigningKey]:
    """Return the keys there are to sign with: the one that signs by default, those beside the settings, and those in
    ``~/.ssh``, of which the public half is there; none that was revoked or replaced.

    Args:
        home: Default: the person's.
        principal: For which repository.
    """
    ours = default_key()
    public = [
        path for folder in (config_dir(), (home or Path.home()) / ".ssh") for path in sorted(folder.glob("*.pub"))
    ]
    gone = [one for one in known_revocations(load_settings()) if one.severity == "refuse"]
    found: list[SigningKey] = []
    for path in ([ours] if ours is not None else []) + public:
        private = path.with_suffix("") if path.suffix == ".pub" and path.with_suffix("").is_file() else path
        with contextlib.suppress(TrustError, NotFoundError, OSError):  # a certificate, or of a kind that is not used
            key = SigningKey.open(private)
            if not any(one.speaks_of(key.public.fingerprint, principal or "") for one in gone) and key not in found:
                found.append(key)
    return found


def _made(path: Path, undo: contextlib.ExitStack) -> SigningKey:
    public = path.with_name(f"{path.name}.pub")
    if not path.exists() and not public.exists():  # else making one refuses, and these stay
        for one in (path, public):
            undo.callback(one.unlink, missing_ok=True)
    return generate_key(path)


def _forget_remote(clone: Clone) -> None:
    if state_of(clone).remote is not None:
        clone.remove_remote(REMOTE)


def _put_back(path: Path, data: bytes | None, had_folder: bool) -> None:
    if data is not None:
        replace_file(path, data)
        return
    path.unlink(missing_ok=True)
    if not had_folder and path.parent.is_dir():
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _check_room(root: Path) -> None:
    for name in (ATTRIBUTES, SIGNERS):
        for path in (root / name, (root / name).parent):
            if path.is_symlink() or (path != root and path.exists() and path.is_dir() is (path == root / name)):
                raise UsageError("something else is in the way", where=str(path), hint="move it away")


def _with_line(path: Path, line: str) -> bytes:
    """Return a file's content with a line at its end, or as it is if it has that line."""
    existing = path.read_bytes() if path.exists() else b""
    if line.encode() in existing.splitlines():
        return existing
    separator = b"" if not existing or existing.endswith(b"\n") else b"\n"
    return existing + separator + line.encode() + b"\n"


def _readme(clone: Clone, url: str | None, purpose: Purpose, signer: SigningKey) -> str:
    source = push_source(url, clone.root) if url is not None else None
    principal = source.principal if source is not None and source.principal is not None else None
    name = principal.rpartition("/")[2] if principal is not None else clone.root.name
    facts = [
        f"Base model: `{purpose.base_model}`." if purpose.base_model else "",
        f"Licence: {purpose.license}, where an adapter's card says nothing else." if purpose.license else "",
    ]
    parts = [
        f"# {name}",
        purpose.text,
        " ".join(fact for fact in facts if fact),
        "Every folder below `adapters/` is an adapter, and every tag `adapters/NAME/VERSION` a signed release of one.",
        f'```python\nimport adaptergit\n\nmodel = adaptergit.load("{principal}@NAME")\n```' if principal else "",
        f"They are signed with the key `{signer.public.fingerprint}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
