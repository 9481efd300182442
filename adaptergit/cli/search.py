"""``search`` and ``show``."""

from __future__ import annotations

from pathlib import Path

import click

from adaptergit.cli.load import named
from adaptergit.cli.output import clean, json_option, print_json, waiting


@click.command()
@click.argument("text", nargs=-1)
@click.option("--index", help="Name of an index, or an index file; default: all that were added.")
@click.option("--task", help="Task type, id or data set.")
@click.option("--base-model", "--base", help="Base model id, with or without organisation.")
@click.option("--method", help="Adapter method.")
@click.option("--language", help="BCP 47 tag.")
@click.option("--license", help="SPDX identifier.")
@click.option(
    "--base-of", type=click.Path(path_type=Path), help="Folder of a model you have: only what was trained in it."
)
@click.option(
    "--sort",
    type=click.Choice(["best", "newest", "smallest", "name"]),
    default="best",
    show_default=True,
    help="Order.",
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")
@json_option
def search(
    text: tuple[str, ...],
    index: str | None,
    task: str | None,
    base_model: str | None,
    method: str | None,
    language: str | None,
    license: str | None,
    base_of: Path | None,
    sort: str,
    limit: int,
    as_json: bool,
) -> None:
    """Search the indexes you have added, or an index file; nothing leaves this machine.

    Every word must occur; where that finds nothing, the last one may be the beginning of a word. Filters compare whole
    words, without case.

    \b
    Example:
      adaptergit search sentiment german --base MiniLM
      adaptergit search --task ner --language sw --sort smallest
      adaptergit search --base-of ./my-model
    """
    from adaptergit.search import search as run

    with waiting("looking at the model", quiet=as_json or base_of is None):
        found = run(
            " ".join(text),
            index=index,
            task=task,
            base_model=base_model,
            method=method,
            language=language,
            license=license,
            base_of=base_of,
            sort=sort,
            limit=limit,
        )
    if as_json:
        print_json({"entries": [entry.to_dict() for entry in found]})
        return
    for entry in found:
        click.echo(
            "\t".join(
                clean(part)
                for part in (f"{entry.id}=={entry.version}", entry.task, entry.base_model, entry.method, entry.license)
            )
        )
        click.echo(f"    {clean((entry.description.strip().splitlines() or [''])[0])}")
        if entry.address != entry.id and not entry.legacy:
            click.echo(f"    {clean(entry.address)}=={entry.version}")
    if not found:
        click.echo("nothing found", err=True)


@click.command()
@click.argument("reference")
@json_option
def show(reference: str, as_json: bool) -> None:
    """Show what your indexes know of the adapter REFERENCE: versions, signers, who vouches, scores. Fetches nothing.

    \b
    Example:
      adaptergit show acme/adapters@sst2
    """
    from adaptergit.search import show as run

    found = run(named(reference))
    if as_json:
        print_json(
            {
                "id": found.id,
                "indexes": found.indexes,
                "signers": found.signers,
                "releases": [entry.to_dict() for entry in found.releases],
            }
        )
        return
    newest = found.releases[0]
    rows = [
        ("adapter", found.id),
        ("description", newest.description.strip()),
        ("task", " / ".join(part for part in (newest.task, newest.dataset) if part)),
        ("languages", ", ".join(newest.languages)),
        ("base model", newest.base_model),
        ("method", f"{newest.method}, {newest.parameters:,} parameters" if newest.parameters else newest.method),
        ("evaluation", "; ".join(f"{m.name} {m.value:g} on {m.dataset}" for m in newest.metrics)),
        ("licence", newest.license),
        ("authors", ", ".join(newest.authors)),
        ("built on", ", ".join(newest.dependencies)),
        ("listed by", ", ".join(found.indexes)),
        ("signed by", ", ".join(found.signers) or "nobody: a legacy file, only its checksum is known"),
    ]
    for title, text in rows:
        if text:
            click.echo(f"{title:<12} {clean(text)}")
    for entry in found.releases:
        gone = found.revoked.get(entry.manifest_sha256)
        note = f"   yanked: {clean(entry.yanked)}" if entry.yanked else ""
        note += f"   {clean(gone)}" if gone else ""
        click.echo(f"  {entry.version:<12} {entry.size:>12,} bytes  {entry.published[:10]}{note}")
    if any(entry.yanked is None for entry in found.releases) and not newest.legacy:
        click.echo(f'load it: adaptergit.load("{newest.address}")')
