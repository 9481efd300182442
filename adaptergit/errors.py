"""Every error adaptergit raises on purpose: what happened, where, and what to do next.

One hierarchy, one exit code per family. The command line prints these without a traceback and exits with
``exit_code``; library users catch :class:`AdaptergitError` or the family they can handle.

====  =========================  ==========================================================
code  class                      meaning
====  =========================  ==========================================================
1     :class:`AdaptergitError`   anything not listed below
2     :class:`UsageError`        a malformed reference, option, setting or config string
3     :class:`PackageError`      a card, manifest, package folder or checkpoint is not valid
4     :class:`TrustError`        the verification refused (signature, key, digest, policy), or a key is of no use
5     :class:`NotFoundError`     no such adapter, version, file or base model
6     :class:`TransportError`    git, the network or the disk failed; trying again may help
7     :class:`ModelError`        the adapter does not fit the model
8     :class:`DataError`         training or evaluation data cannot be used
9     :class:`ReleaseError`      publishing would break a rule of releases; nothing was changed
====  =========================  ==========================================================
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# Bounded, so that no text of somebody else's takes long.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}://)(?P<rest>(?:[^\s/@]{0,256}@)?[^\s'\"<>]*)")
_USER = re.compile(r"[\w.-]{1,64}:[^\s@/'\"<>]{1,256}@(?=[\w.-]{1,255}[:/])")
_QUERY = re.compile(r"(url: [^\s?]{0,2000}\?)\S+")


class AdaptergitWarning(UserWarning):
    """Something a person should know, although the operation went on.

    Cause: an unsigned package that you asked for, a field of somebody else's checkpoint that means nothing here, and
    the like.

    Remedy: read it; in a script, turn it into an error with ``warnings.simplefilter("error", AdaptergitWarning)``.
    """


class AdaptergitError(Exception):
    """Base of all errors raised on purpose.

    Cause: whatever has no class of its own below.

    Remedy: the hint under the message. ``adaptergit doctor`` looks at everything that is needed on this machine.

    Args:
        what: What happened, in one sentence.
        where: File, line and field, tensor name or URL.
        hint: What to do next.
    """

    exit_code = 1
    steps: tuple[str, ...] = ()
    """What was verified, and found right, before something was not."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = without_secrets(what)
        self.where = None if where is None else without_secrets(where)
        self.hint = None if hint is None else without_secrets(hint)
        super().__init__(self.what)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword-only parts across process boundaries (data loaders, executors)."""
        return (_rebuild, (type(self), self.what, self.where, self.hint))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  hint: {self.hint}" if self.hint else text


def printable(text: str) -> str:
    """Return somebody else's text as one line that cannot drive a terminal: what does not print becomes a blank.

    >>> printable("a\\x1b[2J\\nb")
    'a [2J b'
    """
    return "".join(char if char.isprintable() else " " for char in text)


def counted(number: int, noun: str) -> str:
    """Return how many there are, as people say it.

    >>> counted(1, "release"), counted(1200, "index")
    ('1 release', '1,200 indexes')
    """
    ending = "" if number == 1 else "es" if noun.endswith(("x", "s")) else "s"
    return f"{number:,} {noun}{ending}"


def quoted(text: object) -> str:
    """Return a text as one word of a command that people paste into a shell of this machine.

    >>> quoted("acme/adapters@ner<2")
    "'acme/adapters@ner<2'"
    """
    return f'"{text}"' if os.name == "nt" else "'" + str(text).replace("'", "'\\''") + "'"


def without_secrets(text: str) -> str:
    """Return a text without what addresses in it say before the host, or in a query: tokens and passwords.

    >>> without_secrets("cannot read https://me:token@host.example/a?key=b")
    'cannot read https://…@host.example/a?…'
    """
    return _QUERY.sub(r"\1…", _USER.sub("…@", _ADDRESS.sub(_masked, text)))


def _masked(address: re.Match[str]) -> str:
    scheme, rest = address["scheme"], address["rest"]
    before, mark, _ = rest.partition("?")
    host, slash, path = before.partition("/")
    if "@" in host:
        user, _, name = host.rpartition("@")
        kept = f"{user}@" if scheme == "ssh://" and ":" not in user else "…@"
        before = f"{kept}{name}{slash}{path}"
    elif ":" in host and "@" in path and not host.rpartition(":")[2].isdigit():  # a slash in a password
        before = f"…@{path.rpartition('@')[2]}"
    return f"{scheme}{before}{f'{mark}…' if mark else ''}"


def _rebuild(cls: type[AdaptergitError], what: str, where: str | None, hint: str | None) -> AdaptergitError:
    return cls(what, where=where, hint=hint)


class UsageError(AdaptergitError):
    """A reference, option, setting or config string is malformed.

    Cause: a typing error, two options that exclude each other, or a name that nothing here has.

    Remedy: the message quotes what was read and often what was meant; ``adaptergit COMMAND --help`` has an example of
    each.
    """

    exit_code = 2


class PackageError(AdaptergitError):
    """A card, a manifest, a package folder or a checkpoint is not what the format describes.

    Cause: a field that is missing or misspelt, a file that is not listed or was changed, a pickled checkpoint.

    Remedy: of your own package, mend the file and line that are named and try ``adaptergit card validate FOLDER``; of
    somebody else's, tell its publisher.
    """

    exit_code = 3


class TrustError(AdaptergitError):
    """Verification refused the package. Never caught inside adaptergit, never retried elsewhere.

    Cause: no signature, a key that does not count for the repository, a byte that is not what was signed, a revoked
    key or release.

    Remedy: ``adaptergit info REFERENCE`` shows who signed. If you know that key to be the publisher's, ``adaptergit
    trust add REPOSITORY KEY``; if bytes differ or a key changed without a rotation, ask the publisher and load
    nothing.
    """

    exit_code = 4
    unknown_key = False
    """Whether all is well but for a key: it does not count for the repository, where others do."""
    other_release = False
    """Whether what was found is another release than the one that was asked for."""
    revoked = False
    """Whether the release, or the keys that signed it, were revoked: it is as it was signed, wherever it is fetched."""
    ours = False
    """Whether a file of this machine cannot be understood, so that nothing at all can be judged."""


class NotFoundError(AdaptergitError):
    """The adapter, version, file or base model does not exist where it was looked for.

    Cause: a misspelt name, a version that was never published, an adapter that is not stored on a machine that is
    offline, or a base model that is neither on this machine nor in the settings.

    Remedy: the message names what there is; ``--refresh`` asks the repository for what is new, and ``[base_models]``
    in the settings says where base models lie.
    """

    exit_code = 5


class TransportError(AdaptergitError):
    """Git, the network or the disk failed before anything could be verified.

    Cause: no network, a server that is down, credentials that a server does not take, a limit of time or size.

    Remedy: try again, or another way: ``[mirrors]`` in the settings, a bundle, ``--offline`` for what is stored.
    ``adaptergit doctor`` says whether git and ssh work.
    """

    exit_code = 6


class StorageError(TransportError):
    """The disk of this machine is full or may not be written to: asking somebody else would not help.

    Cause: a full disk, or a store (``ADAPTERGIT_CACHE_DIR``) that belongs to another user.

    Remedy: ``adaptergit store prune`` makes room; ``ADAPTERGIT_CACHE_DIR`` puts the store elsewhere.
    """


class ModelError(AdaptergitError):
    """The adapter and the model do not fit; the model is as it was.

    Cause: another base model than the one it was trained on, a method that this architecture has no place for, a
    composition that has no meaning.

    Remedy: load the base model that the card names (``adaptergit summary REFERENCE``); ``adaptergit inspect MODEL``
    shows where adapters go.
    """

    exit_code = 7


class DataError(AdaptergitError):
    """Training or evaluation data cannot be used.

    Cause: a column that is not there, an empty file, a label that training did not know, rows of the wrong shape.

    Remedy: mend the row that is named, or say which columns are meant (``--text-column``, ``--label-column``,
    ``--column``).
    """

    exit_code = 8


class ReleaseError(AdaptergitError):
    """Publishing would break a rule of releases. The repository is as it was.

    Cause: a version that exists, a history that somebody else continued, or a key that is not the repository's.

    Remedy: raise the version, pull, or sign with the announced key; ``adaptergit publish --dry-run`` shows what would
    happen.
    """

    exit_code = 9


def installing(requirement: str) -> str:
    """Return the command that installs into the environment this runs in: that of a tool is one people never enter."""
    wanted, parts = quoted(requirement), Path(sys.prefix).parts
    if "pipx" in parts:
        return f"pipx runpip adaptergit install {wanted}"
    if "uv" in parts and "tools" in parts:
        return f"uv pip install --python {sys.executable} {wanted}"
    return f"{sys.executable} -m pip install {wanted}"


DAMAGED_WEIGHTS = "the file is damaged or cut off: get it once more from where it came"
"""Hint on a file of weights that cannot be parsed."""
OTHER_MODEL = "load the base model that it was trained in: adaptergit summary names it"
"""Hint on weights that have no place in a model."""


def did_you_mean(word: object, known: Iterable[str]) -> str | None:
    """Return a hint that names what a person may have meant, or None.

    >>> did_you_mean("publsh", ["publish", "predict"])
    "did you mean 'publish'?"
    """
    found = near(word, known)
    return f"did you mean {' or '.join(repr(name) for name in found)}?" if found else None


def no_file(path: Path) -> NotFoundError:
    """Return the error for a file that a person named and that is not there, with what is there in its place."""
    return NotFoundError("no such file", where=str(path), hint=what_is_there(path))


def what_is_there(path: Path) -> str:
    """Return a hint on a path that is not there: near names beside it, or what there is."""
    folder = path.parent
    try:
        names = sorted(one.name for one in folder.iterdir())[:1000]
    except OSError as error:
        state = "cannot be read" if isinstance(error, PermissionError) else "is not there"
        return printable(f"the folder {folder.absolute()} {state}")
    listed = f"{', '.join(names[:6])}{' …' if len(names) > 6 else ''}" if names else "nothing"
    return printable(did_you_mean(path.name, names) or f"{folder.absolute()} holds {listed}")


def near(word: object, known: Iterable[str]) -> list[str]:
    """Return what a person may have meant, the nearest first."""
    from difflib import get_close_matches

    by_folded = {name.casefold(): name for name in known}
    return [by_folded[name] for name in get_close_matches(str(word).casefold(), by_folded, n=3, cutoff=0.6)]
