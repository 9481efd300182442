"""``search`` and ``index``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from adaptergit.cli.load import policy_option
from adaptergit.cli.output import clean, json_option, print_json, step, waiting


@click.command()
@click.argument("text", nargs=-1)
@click.option("--index", type=click.Path(path_type=Path), help="Index file; default: the settings'.")
@click.option("--task", help="Task type or id.")
@click.option("--base-model", help="Base model id, with or without organisation.")
@click.option("--method", help="Adapter method.")
@click.option("--language", help="BCP 47 tag.")
@click.option("--license", help="SPDX expression.")
@json_option
def search(
    text: tuple[str, ...],
    index: Path | None,
    task: str | None,
    base_model: str | None,
    method: str | None,
    language: str | None,
    license: str | None,
    as_json: bool,
) -> None:
    """Search an index file for adapters; nothing leaves this machine.

    \b
    Example:
      adaptergit search sentiment --index index.json --base-model MiniLM
    """
    from adaptergit.search import search as run

    found = run(
        " ".join(text), index=index, task=task, base_model=base_model, method=method, language=language, license=license
    )
    if as_json:
        print_json({"entries": [asdict(entry) for entry in found]})
        return
    for entry in found:
        click.echo(
            "\t".join(
                clean(part)
                for part in (f"{entry.id}=={entry.version}", entry.task, entry.base_model, entry.method, entry.license)
            )
        )
        click.echo(f"    {clean((entry.description.strip().splitlines() or [''])[0])}")
        if entry.url != f"https://{entry.id.rpartition('@')[0]}.git":
            click.echo(f"    {clean(entry.url)}@{clean(entry.id.rpartition('@')[2])}=={entry.version}")
    if not found:
        click.echo("nothing found", err=True)


@click.group()
def index() -> None:
    """Work with a local index file.

    \b
    Example:
      adaptergit index add index.json acme/adapters@sst2
    """


@index.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("references", nargs=-1, required=True)
@policy_option
@json_option
def add(file: Path, references: tuple[str, ...], policy: str | None, as_json: bool) -> None:
    """Fetch and verify releases, and list them in FILE.

    \b
    Example:
      adaptergit index add index.json acme/adapters@sst2 acme/adapters@ner==1.2.0
    """
    from adaptergit.search import add_to_index

    added = []
    for reference in references:
        with waiting(f"fetching {reference}", quiet=as_json):
            entry = add_to_index(file, reference, policy=policy)
        added.append(asdict(entry))
        if not as_json:
            step(f"listed {entry.id}=={entry.version}")
    if as_json:
        print_json({"file": file, "entries": added})
