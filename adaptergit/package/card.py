"""The card: what a person and a search index need to know about an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from adaptergit.errors import PackageError, UsageError, near
from adaptergit.package import schemas, yamlfile
from adaptergit.package.manifest import BaseModel
from adaptergit.package.version import check_version
from adaptergit.reference import check_adapter_name

MAX_BYTES = 64 * 1024
_LICENSES = (
    "Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "ISC", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0", "GPL-3.0-only", "GPL-3.0-or-later", "GPL-2.0-only", "GPL-2.0-or-later", "LGPL-3.0-only",
    "LGPL-2.1-only", "AGPL-3.0-only", "AGPL-3.0-or-later", "MPL-2.0", "EUPL-1.2", "ODbL-1.0", "Unlicense",
)  # fmt: skip
"""Those that are common, for messages."""


class Card:
    """A card that validates against ``schema/card.schema.json``.

    ``data`` is the whole card as plain data; the properties name what code needs most.

    Raises:
        PackageError: From every constructor, naming file, line and field.
    """

    def __init__(self, data: Mapping[str, Any], *, where: str = "card.yaml", source: bytes | None = None) -> None:
        _validate(yamlfile.Document(data, {}), where)
        self.data = data
        self._source = source

    @classmethod
    def from_yaml(cls, source: bytes, *, where: str = "card.yaml") -> Card:
        """Parse and validate; comments and layout are kept for :meth:`to_yaml`."""
        document = yamlfile.loads(source, where=where, limit=MAX_BYTES)
        _validate(document, where)
        card = cls.__new__(cls)
        card.data, card._source = document.data, source
        return card

    def to_yaml(self) -> bytes:
        """Return the text it was read from, or a deterministic rendering of its data."""
        return self._source if self._source is not None else yamlfile.dumps(self.data)

    def updated(self, **changes: Any) -> Card:
        """Return a card with other top-level fields; comments of the text it was read from are kept."""
        if self._source is None:
            return Card({**self.data, **changes})
        return Card.from_yaml(yamlfile.update(self._source, {(key,): value for key, value in changes.items()}))

    @property
    def name(self) -> str:
        """The adapter's name."""
        return str(self.data["name"])

    @property
    def version(self) -> str:
        """PEP 440 version in normal form."""
        return str(self.data["version"])

    @property
    def license(self) -> str:
        """SPDX expression."""
        return str(self.data["license"])

    @property
    def method(self) -> str:
        """The adapter method, for example ``seq_bn``."""
        return str(self.data["adapter"]["method"])

    @property
    def base_model(self) -> BaseModel:
        """The base model as the manifest repeats it."""
        base = self.data["base_model"]
        return BaseModel(base["id"], base.get("revision"), base["fingerprint"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Card) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.to_yaml())


def _validate(document: yamlfile.Document, where: str) -> None:
    if not isinstance(document.data, Mapping):  # of which nothing is printed: it may be a key
        at = f"{where}:1" if document.lines else where
        hint = "a card is lines of FIELD: VALUE; train, save and convert write one"
        raise PackageError("card: it has no fields, so that it is none", where=at, hint=hint)
    found = [
        (path, wrong_name(document.data["name"]) or text if path == ("name",) else text)
        for path, text in schemas.problems("card", document.data)
    ]
    if not found:
        found = list(_semantic_problems(document.data))
    if not found:
        return
    lines = [(document.line(path), schemas.dotted(path) or "card", message) for path, message in found]
    rest = "".join(f"\n{where}:{line}: {field}: {message}" for line, field, message in lines[1:6])
    line, field, message = lines[0]
    raise PackageError(f"{field}: {message}{rest}", where=f"{where}:{line}" if document.lines else where)


def wrong_name(name: object) -> str | None:
    """Say why a text is no name of an adapter, or None."""
    try:
        check_adapter_name(str(name))
    except UsageError as error:
        return f"{error.what}; {error.hint}"
    return None


def wrong_license(text: str) -> str | None:
    """Say why a licence is no SPDX expression, or None."""
    try:
        canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return f"{text!r} is not an SPDX expression; write for example {' or '.join(_meant(text)[:2])}"
    return None


def _meant(text: str) -> Sequence[str]:
    """Return identifiers of licences that a person may have meant."""
    said = text.casefold()
    alike = [name for name in _LICENSES if said.startswith(name.casefold().partition("-")[0])]
    longer = [name for name in alike if name.casefold().startswith(said)]
    return longer or near(text, alike) or alike or ("Apache-2.0", "LicenseRef-My-Terms")


UNSPECIFIED = "LicenseRef-Unspecified"
"""What a card says whose author named no licence."""


def is_language(text: str) -> bool:
    """Tell whether a text has the form of a BCP 47 tag that may be in use.

    RFC 5646 leaves room for languages of up to eight letters, which the schema allows for, and has none: "english" is
    no tag.
    """
    return re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*", text) is not None


def _semantic_problems(data: Mapping[str, Any]) -> list[tuple[schemas.Path, str]]:
    found: list[tuple[schemas.Path, str]] = []
    try:
        check_version(data["version"])
    except PackageError as error:
        found.append((("version",), f"{error.what.removeprefix('version: ')}; {error.hint}"))
    if (wrong := wrong_name(data["name"])) is not None:
        found.append((("name",), wrong))
    if (wrong := wrong_license(data["license"])) is not None:
        found.append((("license",), wrong))
    if len(data.get("head", {}).get("labels", ())) != len(set(data.get("head", {}).get("labels", ()))):
        found.append((("head", "labels"), "two labels are equal"))
    labels, answers = data.get("head", {}).get("labels"), data.get("head", {}).get("config", {}).get("num_labels")
    if labels and type(answers) is int and len(labels) != answers:
        found.append(
            (("head", "labels"), f"there are {len(labels)}, and the head has {answers} logits: one label for each")
        )
    return found
