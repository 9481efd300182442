"""What the commands that maintain an index have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptergit.cli.output import clean, step

if TYPE_CHECKING:
    from adaptergit.index.crawl import Crawled

here_option = click.option(
    "--repo", "folder", type=click.Path(path_type=Path), default=Path(), help="Folder of the index; default: here."
)
keys_option = click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), required=True, help="Key to sign with."
)
now_option = click.option("--now", type=click.DateTime(), hidden=True, help="Instead of the clock (UTC).")


def tell(one: Crawled) -> None:
    """Print what a crawl found at one source, if there is anything to say."""
    for release in one.added:
        step(f"{one.principal}@{release}")
    for release in one.yanked:
        step(f"{one.principal}@{release} yanked")
    for release in one.restored:
        step(f"{one.principal}@{release} no longer yanked")
    for release in one.missing:
        step(clean(f"{one.principal} does not have {release} of the repository that it copies"))
    for release, why in one.refused.items():
        step(clean(f"{one.principal}@{release} refused: {why}"))
    if one.error:
        step(clean(f"{one.principal}: {one.error.partition(chr(10))[0]}"))
