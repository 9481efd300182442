"""Every error adaptergit raises on purpose: what happened, where, and what to do next.

One hierarchy, one exit code per family. The command line prints these without a traceback and exits with
``exit_code``; library users catch :class:`AdaptergitError` or the family they can handle.

====  =========================  ==========================================================
code  class                      meaning
====  =========================  ==========================================================
1     :class:`AdaptergitError`   anything not listed below
2     :class:`UsageError`        a malformed reference, option, setting or config string
3     :class:`PackageError`      a card, manifest, package folder or checkpoint is not valid
4     :class:`TrustError`        the verification refused: signature, key, digest or policy
5     :class:`NotFoundError`     no such adapter, version, file or base model
6     :class:`TransportError`    git, the network or the disk failed; trying again may help
7     :class:`ModelError`        the adapter does not fit the model
8     :class:`DataError`         training or evaluation data cannot be used
9     :class:`ReleaseError`      publishing would break a rule of releases; nothing was changed
====  =========================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterable


class AdaptergitWarning(UserWarning):
    """Something a person should know, although the operation went on."""


class AdaptergitError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: What happened, in one sentence.
        where: File, line and field, tensor name or URL.
        hint: What to do next.
    """

    exit_code = 1
    steps: tuple[str, ...] = ()
    """What was verified, and found right, before something was not."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword-only parts across process boundaries (data loaders, executors)."""
        return (_rebuild, (type(self), self.what, self.where, self.hint))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  hint: {self.hint}" if self.hint else text


def _rebuild(cls: type[AdaptergitError], what: str, where: str | None, hint: str | None) -> AdaptergitError:
    return cls(what, where=where, hint=hint)


class UsageError(AdaptergitError):
    """A reference, option, setting or config string is malformed."""

    exit_code = 2


class PackageError(AdaptergitError):
    """A card, a manifest, a package folder or a checkpoint is not what the format describes."""

    exit_code = 3


class TrustError(AdaptergitError):
    """Verification refused the package. Never caught inside adaptergit, never retried elsewhere."""

    exit_code = 4
    unknown_key = False
    """Whether all is well but for the key: it does not count for the repository, where others do."""


class NotFoundError(AdaptergitError):
    """The adapter, version, file or base model does not exist where it was looked for."""

    exit_code = 5


class TransportError(AdaptergitError):
    """Git, the network or the disk failed before anything could be verified."""

    exit_code = 6


class StorageError(TransportError):
    """The disk of this machine is full or may not be written to: asking somebody else would not help."""


class ModelError(AdaptergitError):
    """The adapter and the model do not fit; the model is as it was."""

    exit_code = 7


class DataError(AdaptergitError):
    """Training or evaluation data cannot be used."""

    exit_code = 8


class ReleaseError(AdaptergitError):
    """Publishing would break a rule of releases. The repository is as it was."""

    exit_code = 9


def did_you_mean(word: object, known: Iterable[str]) -> str | None:
    """Return a hint that names what a person may have meant, or None.

    >>> did_you_mean("publsh", ["publish", "predict"])
    "did you mean 'publish'?"
    """
    from difflib import get_close_matches

    by_folded = {name.casefold(): name for name in known}
    near = [by_folded[name] for name in get_close_matches(str(word).casefold(), by_folded, n=3, cutoff=0.6)]
    if not near:
        return None
    return f"did you mean {' or '.join(repr(name) for name in near)}?"
