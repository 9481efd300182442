"""``search`` and ``show``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adaptergit.cli.load import named
from adaptergit.cli.output import clean, json_option, print_json, quiet_transformers, waiting


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
    from adaptergit.search import meant
    from adaptergit.search import search as run

    with waiting("looking at the model", quiet=as_json or base_of is None):
        if base_of is not None and base_of.is_dir():  # what is no folder is said before PyTorch starts
            quiet_transformers()
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
        hint = meant(" ".join(text), index=index, task=task, base_model=base_model)
        filters: dict[str, Any] = {
            "task": task, "base_model": base_model, "method": method, "language": language, "license": license,
        }  # fmt: skip
        for name in (name for name, value in filters.items() if value and hint is None):
            others = {other: value for other, value in filters.items() if other != name}
            if run(" ".join(text), index=index, base_of=base_of, limit=1, **others):
                hint = f"without --{name.replace('_', '-')} {filters[name]} there is something"
        click.echo(f"nothing found{f': {clean(hint)}' if hint else ''}", err=True)


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
                "revoked": found.revoked,
                "warned": found.warned,
                "revoked_keys": found.revoked_keys,
            }
        )
        return
    one = found.chosen or found.releases[0]
    over = found.revoked_keys
    signers = ", ".join(f"{key} ({over[key]})" if key in over else key for key in found.signers)
    rows = [
        ("adapter", found.id),
        ("description", one.description.strip()),
        ("task", " / ".join(part for part in (one.task, one.dataset) if part)),
        ("languages", ", ".join(one.languages)),
        ("base model", one.base_model),
        ("method", f"{one.method}, {one.parameters:,} parameters" if one.parameters else one.method),
        ("head", one.head),
        ("training", one.training),
        ("evaluation", "; ".join(f"{m.name} {m.value:g} on {m.dataset}" for m in one.metrics)),
        ("limitations", one.limitations),
        ("licence", one.license),
        ("authors", ", ".join(one.authors)),
        ("built on", ", ".join(one.dependencies)),
        ("listed by", ", ".join(found.indexes)),
        ("signed by", "nobody: a legacy file, only its checksum is known" if one.legacy else signers),
        ("legacy file", one.legacy),
    ]
    for title, text in rows:
        if text:
            click.echo(f"{title:<12} {clean(text)}")
    for entry in found.releases:
        notes = [f"yanked: {entry.yanked}" if entry.yanked is not None else ""]
        notes += [told.get(entry.manifest_sha256, "") for told in (found.revoked, found.warned)]
        size = f"{entry.size:>12,} bytes" if entry.size else f"{'size unknown':>18}"
        said = "".join(f"   {clean(note)}" for note in notes if note)
        click.echo(f"  {entry.version:<12} {size}  {entry.published[:10]}{said}")
    if one.citation:
        click.echo("\n".join(["", *(clean(line) for line in one.citation.strip().splitlines())]))
    if found.chosen is None:
        click.secho("\nnone of its releases is to be used", fg="yellow")
    else:
        click.echo(f"\n{found.chosen.snippet}")
