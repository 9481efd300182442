"""Changing a card on disk: its comments stay, and what would not be valid is not written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adaptergit.durable import replace_file
from adaptergit.errors import NotFoundError, PackageError, TransportError, UsageError
from adaptergit.package import yamlfile
from adaptergit.package.card import MAX_BYTES, Card
from adaptergit.package.fields import parse_field, parse_fields
from adaptergit.package.folder import CARD, read_bounded
from adaptergit.package.local import no_card
from adaptergit.package.readme import render_readme
from adaptergit.package.schemas import dotted
from adaptergit.reference import expand
from adaptergit.settings import cache_dir

_MADE = (*(("adapter", name) for name in ("format", "method", "config", "sites")), ("head", "type"), ("head", "config"))


def card_path(path: str | Path) -> Path:
    """Return the card that is meant: the file, or the one in a folder.

    Raises:
        NotFoundError: There is none.
    """
    found = expand(path)
    if not found.exists():
        hint = "name a card.yaml, or the folder it lies in"
        if "@" in str(path):
            hint = "adaptergit info shows the card of a release"
        raise NotFoundError("no card: no such file or folder", where=str(found), hint=hint)
    found = found / CARD if found.is_dir() else found
    if found.is_dir():
        raise NotFoundError("this is a folder, and no card", where=str(found), hint="move it elsewhere")
    if not found.is_file():
        raise no_card(found.parent)
    return found


def read_card(path: str | Path) -> Card:
    """Read a card from its file, or from the folder it lies in.

    Raises:
        NotFoundError: There is none.
        PackageError: It is not valid: file, line and field.
    """
    found = card_path(path)
    return Card.from_yaml(read_bounded(found, MAX_BYTES), where=str(found))


def edit_card(path: str | Path, assignments: Iterable[str] = (), *, unset: Iterable[str] = ()) -> Card:
    """Change fields of a card, and keep its comments and layout.

    Args:
        path: Of the card, or of its folder.
        assignments: ``field=value``, as in ``task.type=ner``; a list by naming its field more than once, or as JSON.
        unset: Fields to take out.

    Raises:
        UsageError: No such field, or the card is in the store.
        NotFoundError: There is no card.
        PackageError: It would not be valid; it is as it was.
        TransportError: It cannot be written.
    """
    found = card_path(path)
    before = read_bounded(found, MAX_BYTES)
    try:
        held = yamlfile.loads(before, where=str(found), limit=MAX_BYTES).data
        if not isinstance(held, Mapping):
            Card.from_yaml(before, where=str(found))
    except PackageError as error:
        error.hint = error.hint or "mend it in the file, then edit"
        raise
    changes = parse_fields(assignments)
    removed = [_path_in(held, name) or parse_field(name) for name in unset]  # also what no card should have
    try:
        after = yamlfile.update(before, changes, removed)
    except KeyError as error:
        raise UsageError(
            f"{dotted(error.args[0])} is not there", where=str(found), hint=f"the card has {', '.join(held)}"
        ) from error
    try:
        return write_card(found, after, before=before)
    except PackageError as error:
        if error.hint is None:
            if _is_wrong(before):
                mend = (
                    ", and this was wrong before: name that field too, with --unset where a card has none of that "
                    "name; or mend it in the file"
                )
            elif changes:
                mend = f": write another value for {', '.join(dotted(path) for path in changes)}"
            else:
                mend = ": a card needs what was to be taken out"
            error.hint = f"nothing was changed{mend}"
        raise


def _path_in(data: Mapping[str, Any], name: str) -> tuple[str | int, ...] | None:
    """Return the way to a field that is there, whether or not a card should have it."""
    steps, at = tuple(name.split(".")), data
    for step in steps:
        if not isinstance(at, Mapping) or step not in at:
            return None
        at = at[step]
    return steps


def _is_wrong(text: bytes) -> bool:
    try:
        Card.from_yaml(text)
    except PackageError:
        return True
    return False


def write_card(path: Path, text: bytes, *, before: bytes) -> Card:
    """Replace a card by another text, in one step.

    Raises:
        PackageError: The text is no card; the old one stays.
        UsageError: Somebody else changed it meanwhile, it is in the store, or it says something else of the weights.
        TransportError: It cannot be written.
    """
    path = path.resolve()
    if path.is_relative_to(cache_dir().resolve()):
        raise UsageError("what is in the store never changes", where=str(path), hint="copy the folder, and edit there")
    card = Card.from_yaml(text, where=str(path))
    _check_made(before, card, path)
    if read_bounded(path, MAX_BYTES) != before:
        raise UsageError("the card was changed meanwhile", where=str(path), hint="look at it, and edit it again")
    if text != before:
        try:
            replace_file(path, text)
        except OSError as error:
            hint = "look at who may write there (ls -ld), or edit a copy"
            raise TransportError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
    return card


def render_card(path: str | Path, *, address: str = "org/repo") -> str:
    """Render the README that publishing writes for a card.

    Args:
        path: Of the card, or of its folder.
        address: The repository, as people will load from it.

    Raises:
        NotFoundError, PackageError: There is no valid card.
    """
    card, folder = read_card(path), card_path(path).parent
    weights = [file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file()]
    return render_readme(card, address, size=sum(weights) if weights else None)


def _check_made(before: bytes, after: Card, path: Path) -> None:
    """Refuse to change what describes the weights: whoever loads them would be told something else."""
    try:
        old = Card.from_yaml(before, where=str(path)).data
    except PackageError:
        return  # it is being mended
    for part, name in _MADE:
        if part in old and part in after.data and old[part].get(name) != after.data[part].get(name):
            raise UsageError(
                f"{part}.{name} says what the weights are, and was written with them",
                where=str(path),
                hint="train, convert or save the adapter once more",
            )
