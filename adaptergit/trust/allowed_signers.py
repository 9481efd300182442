"""OpenSSH allowed-signers files: which keys may sign for which principal, for what, and when.

Format: ``ssh-keygen(1)``, ALLOWED SIGNERS. The principals are patterns over adaptergit principals such as
``github.com/acme/adapters``; the same lines work with ``ssh-keygen -Y verify``. Certificate authorities are refused.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from adaptergit.errors import TrustError, did_you_mean
from adaptergit.trust.keys import KEY_TYPES, PublicKey, parse_public_key


@dataclass(frozen=True)
class AllowedSigner:
    """One line: a key, the principals it may sign for, and its limits."""

    principals: tuple[str, ...]
    """Patterns with ``*`` and ``?``; ``!pattern`` excludes."""
    key: PublicKey
    """The public key."""
    namespaces: tuple[str, ...] = ()
    """Patterns; empty means any."""
    valid_after: datetime | None = None
    """It signs nothing before; None: no limit."""
    valid_before: datetime | None = None
    """It signs nothing from then on; None: no limit."""
    comment: str = ""
    """What stands behind the key."""
    source: str = ""
    """Where the line was found, for people: a file and line, a pin, an index."""
    vouched: bool = False
    """An index says so, not the person."""

    def names(self, principal: str) -> bool:
        """Tell whether the line is about ``principal``."""
        return matches(self.principals, principal)

    def refusal(self, namespace: str, when: datetime, first_seen: datetime | None = None) -> str | None:
        """Return why the key may not sign ``namespace`` at ``when``, or None if it may.

        What was first seen while the key was valid was signed while it was valid.
        """
        if self.namespaces and not matches(self.namespaces, namespace):
            return f"the key is allowed for {', '.join(self.namespaces)} only"
        if self.valid_after is not None and when < self.valid_after:
            return f"the key is valid only after {self.valid_after.isoformat()}"
        if self.valid_before is not None and min(when, first_seen or when) >= self.valid_before:
            return f"the key was valid only before {self.valid_before.isoformat()}"
        return None


def parse_allowed_signers(text: str, *, source: str) -> list[AllowedSigner]:
    """Parse a whole file. A line that cannot be understood is an error: silence would drop a restriction.

    Raises:
        TrustError: Naming file and line.
    """
    signers = []
    for number, raw in enumerate(text.split("\n"), 1):  # as OpenSSH: other alphabets' line ends are text
        line = raw.removesuffix("\r").strip(" \t")
        if not line or line.startswith("#"):
            continue
        where = f"{source}:{number}"
        try:
            if not line.isprintable() and not line.replace("\t", "").isprintable():
                raise TrustError("a control character or an odd space")
            signers.append(_parse_line(line, where))
        except TrustError as error:
            raise TrustError(error.what, where=where, hint=error.hint) from error
    return signers


def format_signer(signer: AllowedSigner) -> str:
    """Render one line without its newline; :func:`parse_allowed_signers` reads it back."""
    options = []
    if signer.namespaces:
        options.append(f'namespaces="{",".join(signer.namespaces)}"')
    for name, moment in (("valid-after", signer.valid_after), ("valid-before", signer.valid_before)):
        if moment is not None:
            options.append(f'{name}="{moment.astimezone(UTC).isoformat("-", "seconds").translate(_NO_MARKS)[:14]}Z"')
    parts = [",".join(signer.principals), ",".join(options), signer.key.line, signer.comment]
    return " ".join(part for part in parts if part)


_NO_MARKS = str.maketrans("", "", "-:")


def _parse_line(line: str, where: str) -> AllowedSigner:
    principals_text, rest = _principals(line)
    options: dict[str, str] = {}
    if rest and _BLANK.split(rest, maxsplit=1)[0] not in KEY_TYPES:
        options, rest = _options(rest)
    fields = _BLANK.split(rest, maxsplit=2)
    if not fields[0]:
        raise TrustError("no key on this line", hint="a line is: github.com/acme/adapters ssh-ed25519 AAAA…")
    key = parse_public_key(" ".join(fields[:2]))
    principals = tuple(principals_text.split(","))
    if not all(principals) or max(map(len, principals)) > _MAX_PATTERN:
        raise TrustError("an empty or overlong principal")
    return AllowedSigner(
        principals=principals,
        key=key,
        namespaces=tuple(options["namespaces"].split(",")) if "namespaces" in options else (),
        valid_after=_moment(options["valid-after"]) if "valid-after" in options else None,
        valid_before=_moment(options["valid-before"]) if "valid-before" in options else None,
        comment=fields[2] if len(fields) == 3 else "",
        source=where,
    )


def _principals(line: str) -> tuple[str, str]:
    if line.startswith('"'):
        text, quote, rest = line[1:].partition('"')
        if not quote:
            raise TrustError("the quote around the principals is not closed")
        return text, rest.strip(" \t")
    text, *rest_parts = _BLANK.split(line, maxsplit=1)
    return text, rest_parts[0] if rest_parts else ""


_MAX_PATTERN = 1023
"""Characters; OpenSSH refuses longer patterns."""
_BLANK = re.compile(r"[ \t]+")
_OPTIONS = ("namespaces", "valid-after", "valid-before")
_OPTION = re.compile(r'(?P<name>[a-z-]+)(?:="(?P<value>[^"]*)")?(?P<next>,|[ \t]+|$)', re.IGNORECASE)


def _options(text: str) -> tuple[dict[str, str], str]:
    options: dict[str, str] = {}
    for match in _scan(text):
        name, value = match["name"].lower(), match["value"]
        if name == "cert-authority":
            raise TrustError("certificate authorities are not supported", hint="list the signing keys themselves")
        if name not in _OPTIONS or not value:
            hint = did_you_mean(name, _OPTIONS) if name not in _OPTIONS else f'write {name}="…"'
            raise TrustError(
                f"unknown or empty option {match[0].strip()!r}", hint=hint or f"known: {', '.join(_OPTIONS)}"
            )
        if name in options:
            raise TrustError(f"the option {name} appears twice")
        options[name] = value
        if match["next"] != ",":
            return options, text[match.end() :].strip(" \t")
    raise TrustError("expected: principals [options] key-type base64-key", hint=f"key types: {', '.join(KEY_TYPES)}")


def _scan(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while (match := _OPTION.match(text, at)) is not None and match.end() > at:
        yield match
        at = match.end()


def _moment(text: str) -> datetime:
    """``YYYYMMDD[HHMM[SS]][Z]``; without Z in local time, as ssh-keygen reads it."""
    digits = text.removesuffix("Z")
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    try:
        if form is None or not digits.isascii() or not digits.isdigit():
            raise ValueError(text)
        moment = datetime.strptime(digits, form)
        if moment.year < 1970:  # as in OpenSSH, which counts from then
            raise ValueError(text)
        return moment.replace(tzinfo=UTC) if text.endswith("Z") else moment.astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise TrustError(f"{text!r} is not a time", hint="write YYYYMMDD[HHMM[SS]][Z]") from error


def matches(patterns: tuple[str, ...], text: str) -> bool:
    """OpenSSH pattern lists: any positive match, unless a negated pattern matches."""
    matched = False
    for pattern in patterns:
        negated, body = pattern.startswith("!"), pattern.removeprefix("!")
        # fnmatch, unlike a plain translation to ".*", never backtracks over several stars.
        if fnmatch.fnmatchcase(text, body.replace("[", "[[]")):
            if negated:
                return False
            matched = True
    return matched
