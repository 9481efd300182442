"""``inspect``."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import click

from adaptergit.cli.output import json_option, print_json, quiet_transformers, waiting


@click.command()
@click.argument("model")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Show where adapters go in MODEL: a folder with a config.json, or a model id, which the settings may map to one.

    \b
    A self-attention · X cross-attention · F feed-forward · M mixture of experts · S another mixer
    ' a norm takes over the sum (post-norm)

    \b
    Example:
      adaptergit inspect bert-base-uncased
    """
    with waiting("watching one small forward of the model"):
        quiet_transformers()
        from adaptergit.splice.describe import inspect as run

        found = run(model)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['model']} ({found['model_type']}), {len(found['blocks'])} blocks, hidden size {found['hidden_size']}"
    )
    _tree(found["blocks"])
    _table(found)


def _tree(blocks: list[dict[str, Any]]) -> None:
    """Print the stacks, with runs of equal blocks on one line."""
    numbered = [(block["path"].rpartition(".")[0], block["pattern"], i, block) for i, block in enumerate(blocks)]
    for stack, inside in groupby(numbered, key=lambda entry: entry[0]):
        click.echo(f"└─ {stack}")
        for pattern, run in groupby(inside, key=lambda entry: entry[1]):
            numbers = [entry[2] for entry in run]
            span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} … {numbers[-1]}"
            click.echo(f"   └─ blocks {span}: {pattern}")


def _table(found: dict[str, Any]) -> None:
    """Print the places of the first block of every pattern."""
    shown: set[str] = set()
    rows = [("place", "branch comes from", "stream is read at", "post-norm")]
    for number, block in enumerate(found["blocks"]):
        stack = f"{block['path'].rpartition('.')[0]} {block['pattern']}"
        if stack in shown:
            continue
        shown.add(stack)
        for site in found["sites"]:
            if site["block"] == number:
                rows.append((site["key"], site["output"], site["residual"] or "–", site["norm"] or "–"))
        for projection in found["projections"]:
            if projection["key"].startswith(f"blocks.{number}."):
                rows.append((projection["key"], projection["path"], "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    click.echo()
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
