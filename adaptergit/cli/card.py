"""``card``: what people read before they use an adapter."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptergit.cli.groups import Group
from adaptergit.cli.output import clean, json_option, print_json, quiet_transformers, show_error, step, waiting
from adaptergit.errors import AdaptergitError, NotFoundError, PackageError, UsageError
from adaptergit.reference import expand

if TYPE_CHECKING:
    from adaptergit.package import Card

_EDITORS = {"VISUAL", "EDITOR"}
_path = click.argument("path", type=click.Path(path_type=Path))


@click.group(cls=Group)
def card() -> None:
    """Make, change, check and render the card of an adapter.

    \b
    Example:
      adaptergit card make ./peft-checkpoint --base bert-base-uncased license=Apache-2.0
      adaptergit card edit out/sst2 description="Sentiment of film reviews" authors=Ada authors=Grace
      adaptergit card render out/sst2
    """


@card.command("make")
@_path
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--base", help="Folder or id of the base model; default: the settings', or what the files name.")
@click.option("--name", help="Name of the adapter; default: its own, or the folder's.")
@json_option
def make(path: Path, fields: tuple[str, ...], base: str | None, name: str | None, as_json: bool) -> None:
    """Write the card of an AdapterHub or PEFT checkpoint into its folder PATH, so that it can be published as it is.

    Nothing else in the folder is changed: other libraries go on reading it.

    \b
    Example:
      adaptergit card make ./peft-checkpoint --base bert-base-uncased license=Apache-2.0 task.type=text-classification
    """
    from adaptergit.package.fields import nested, parse_fields

    about = nested(parse_fields(fields))
    if not expand(path).is_dir():
        raise NotFoundError(
            "no such folder", where=str(path), hint="name the folder of an AdapterHub or PEFT checkpoint"
        )
    with waiting("starting PyTorch and transformers", quiet=as_json):
        quiet_transformers()
        from adaptergit.convert import describe
    with waiting(f"reading {path}", quiet=as_json):
        made = describe(path, base=base, **{**({"name": name} if name else {}), **about})
    in_the_way = _in_the_way(path)
    if as_json:
        told = {"missing": _missing(made), "in_the_way": in_the_way}
        print_json({"path": path / "card.yaml", "card": made.data, **told})
        return
    click.echo(f"wrote {path / 'card.yaml'}")
    if missing := _missing(made):
        step(f"still to say: adaptergit card edit {path} {' '.join(f'{field}=…' for field in missing)}")
    if in_the_way:
        step(f"before it can be published: {in_the_way}")
    step(f"next: adaptergit publish {path} --version 1.0.0")


@card.command("edit")
@_path
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--unset", multiple=True, metavar="FIELD", help="Take a field out.")
@json_option
def edit(path: Path, fields: tuple[str, ...], unset: tuple[str, ...], as_json: bool) -> None:
    """Change fields of the card PATH, or of the one in the folder PATH; without any, open it in $EDITOR.

    Parts are named with dots (task.type=ner), lists by repeating (authors=Ada authors=Grace) or as JSON, items by their
    number (evaluation[0].value=0.91). Comments stay. What would not be valid is not written.

    \b
    Example:
      adaptergit card edit out/sst2 license=MIT task.languages=en task.languages=de
      adaptergit card edit out/sst2 --unset limitations
      adaptergit card edit out/sst2
    """
    from adaptergit.package import MANIFEST
    from adaptergit.package.editing import card_path, edit_card

    found = card_path(path)
    if not fields and not unset and not sys.stdin.isatty() and not _EDITORS & os.environ.keys():
        raise UsageError("there is no terminal for an editor", where=str(found), hint="name fields: FIELD=VALUE")
    before = found.read_bytes()
    changed = edit_card(found, fields, unset=unset) if fields or unset else _in_editor(found, before)
    if as_json:
        print_json({"path": found, "changed": found.read_bytes() != before, "card": changed.data})
        return
    if found.read_bytes() == before:
        click.echo("nothing changed")
        return
    click.echo(f"changed {found}")
    if (found.parent / MANIFEST).exists():
        step("the release it came from stays as it is: publish the folder as a new version")


def _mended_by(path: Path, what: str) -> str:
    """Say how what is wrong with a card is mended: what is missing can be written by ``card edit``, a line cannot."""
    edit = f"adaptergit card edit {path}"
    missing = [
        name if within == "card" else f"{within}.{name}"
        for within, name in re.findall(r"([\w.]+): '(\w+)' is a required property", what)
    ]
    if unknown := re.findall(r"([\w.]+): '[^'\n]+' was unexpected", what):
        wanted = " ".join([*(f"--unset {name}" for name in unknown), *(f"{name}=…" for name in missing)])
        return f"write the key as it is meant, or take it out: {edit} {wanted}"
    if "is not of type 'string'" in what:
        return 'a text that looks like something else is in quotes: "1.0"'
    field = missing[0] if missing else what.partition(": ")[0]
    if re.fullmatch(r"[a-z_.]+", field) and not field.startswith(("adapter", "head", "card")):
        return f"{edit} {field}=…"
    return "mend it in the file"


@card.command("validate")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def validate(paths: tuple[Path, ...], as_json: bool) -> None:
    """Check the cards PATHS, or those in the folders PATHS. Exit code 3 if one is not valid: file, line and field.

    Weights that lie beside a card are counted, and compared with what it says of them.

    \b
    Example:
      adaptergit card validate out/sst2
      adaptergit card validate adapters/*/card.yaml
    """
    from adaptergit.package import WEIGHTS
    from adaptergit.package.editing import card_path, read_card
    from adaptergit.packing import check_weights, notes_on

    failed: list[tuple[Path, AdaptergitError]] = []
    for path in paths:
        try:
            found, folder = read_card(path), card_path(path).parent
            if (folder / WEIGHTS).is_file():
                check_weights(folder, found, lambda _: None)
        except AdaptergitError as error:
            if isinstance(error, PackageError) and error.hint is None:
                error.hint = _mended_by(path, error.what)
            failed.append((path, error))
            if not as_json:
                show_error(error)
        else:
            if not as_json:
                click.echo(f"{path}: the card of {found.name} {found.version} is valid")
                for note in notes_on(path, found):
                    step(f"note: {note}")
    if as_json:
        wrong = {str(path): {"what": error.what, "where": error.where, "hint": error.hint} for path, error in failed}
        print_json({"cards": [{"path": path, "error": wrong.get(str(path))} for path in paths]})
    if failed:
        sys.exit(max(error.exit_code if len(paths) == 1 else PackageError.exit_code for _, error in failed))


@card.command("render")
@_path
@click.option("--address", default="org/repo", show_default=True, help="The repository, as people will load from it.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write; default: the terminal.")
@json_option
def render(path: Path, address: str, output: Path | None, as_json: bool) -> None:
    """Show the README that publishing makes of the card PATH, or of the one in the folder PATH.

    Publishing renders it anew, unless the folder holds a README of your own.

    \b
    Example:
      adaptergit card render out/sst2
      adaptergit card render out/sst2 --address acme/adapters --output /tmp/sst2.md
    """
    from adaptergit.package.editing import render_card

    text = render_card(path, address=address)
    if not list((path if path.is_dir() else path.parent).glob("manifest.json*.sig")):
        step("a preview: nothing is signed yet, and publishing puts the repository's address in")
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"path": output, "text": text})
    elif output is None:
        click.echo("\n".join(clean(line) for line in text.split("\n")), nl=False)
    else:
        click.echo(f"wrote {output}")


def _missing(made: Card) -> list[str]:
    """Name what a card that was made by itself cannot know."""
    from adaptergit.package.card import UNSPECIFIED

    data = made.data
    unsaid = {
        "license": data["license"] == UNSPECIFIED,
        "description": str(data["description"]).startswith("A ") and str(data["description"]).endswith(" adapter."),
        "task.type": data["task"]["type"] == "other",
    }
    return [field for field, so in unsaid.items() if so]


def _in_the_way(folder: Path) -> str | None:
    """Say what in a folder no package may hold: trainers leave much beside a checkpoint."""
    from adaptergit.package.folder import list_folder

    try:
        list_folder(folder)
    except PackageError as error:
        return str(error)
    return None


def _in_editor(path: Path, before: bytes) -> Card:
    """Let a person edit the text as often as it takes; it replaces the card only when it is valid."""
    from adaptergit.package.editing import write_card

    draft = Path(tempfile.mkdtemp(prefix="adaptergit-card-")) / path.name
    draft.write_bytes(before)
    while True:
        try:
            click.edit(filename=str(draft))
        except click.ClickException as error:
            hint = "export EDITOR=nano, or another editor that is installed; or name fields: FIELD=VALUE"
            if draft.read_bytes() != before:
                raise UsageError(error.message, where=str(path), hint=f"your text is kept: {draft}") from error
            draft.unlink()
            draft.parent.rmdir()
            raise UsageError(error.message, where=str(path), hint=hint) from error
        try:
            written = write_card(path, draft.read_bytes(), before=before)
        except PackageError as error:
            show_error(error)
            if sys.stdin.isatty() and click.confirm("edit again?", default=True, err=True):
                continue
            raise PackageError("the card is as it was", where=str(path), hint=f"your text is kept: {draft}") from error
        draft.unlink()
        draft.parent.rmdir()
        return written
