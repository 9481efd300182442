"""``store``: what was fetched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptergit.cli.groups import Group
from adaptergit.cli.output import json_option, print_json, step, waiting
from adaptergit.errors import counted

if TYPE_CHECKING:
    from adaptergit.store import Stored


@click.group(cls=Group)
def store() -> None:
    """See and tidy what was fetched.

    \b
    Example:
      adaptergit store ls
      adaptergit store prune --keep adaptergit.lock
    """


@store.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List what is stored: release, bytes, digest.

    \b
    Example:
      adaptergit store ls --json
    """
    from adaptergit.housekeeping import stored

    found = stored()
    if as_json:
        print_json({"packages": [_record(one) for one in found]})
        return
    for one in found:
        click.echo(f"{_name(one)}\t{one.size:,}\tsha256:{one.digest}")
    if not found:
        click.echo("nothing yet: adaptergit load REFERENCE", err=True)


@store.command("du")
@json_option
def du(as_json: bool) -> None:
    """Say how much space the store takes, by repository.

    \b
    Example:
      adaptergit store du
    """
    from adaptergit.housekeeping import stored

    sizes: dict[str, int] = {}
    for one in stored():
        who = one.manifest.repository if one.manifest else "(damaged)"
        sizes[who] = sizes.get(who, 0) + one.size
    if as_json:
        print_json({"bytes": sum(sizes.values()), "repositories": sizes})
        return
    for who, size in sorted(sizes.items(), key=lambda item: -item[1]):
        click.echo(f"{size:>14,}\t{who}")
    click.echo(f"{sum(sizes.values()):>14,}\ttotal")


@store.command("verify")
@click.option("--remove", is_flag=True, help="Remove what is damaged; it is fetched again when it is needed.")
@json_option
def verify(remove: bool, as_json: bool) -> None:
    """Read every byte of the store and compare it with the manifests. Exit code 3 if something is damaged.

    \b
    Example:
      adaptergit store verify --remove
    """
    from adaptergit.housekeeping import verify_store

    with waiting("reading", quiet=as_json):
        found = verify_store(remove=remove)
    if as_json:
        print_json({"damaged": found})
    else:
        for digest, why in found.items():
            click.echo(f"sha256:{digest}\t{why}")
        done = "removed; what is needed is fetched again" if remove else "to be taken away with --remove"
        step(f"{counted(len(found), 'damaged package')} {done}" if found else "nothing is damaged")
    if found:
        sys.exit(3)


@store.command("prune")
@click.option("--keep", multiple=True, type=click.Path(path_type=Path), help="A lock file; what it names stays.")
@click.option(
    "--older-than", type=click.FloatRange(0), default=0.0, metavar="DAYS", help="Only what was stored before that."
)
@click.option("--all", "everything", is_flag=True, help="Also the newest versions.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def prune(keep: tuple[Path, ...], older_than: float, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove packages of which a newer version is stored, and damaged ones.

    Of each adapter the newest version stays, and the newest that is neither a pre-release nor yanked.

    \b
    Example:
      adaptergit store prune --keep adaptergit.lock --older-than 30
    """
    from adaptergit.housekeeping import prune as run

    gone = run(keep=keep, older_than=older_than * 86400, everything=everything, dry_run=dry_run)
    if as_json:
        print_json({"removed": [_record(one) for one in gone], "bytes": sum(one.size for one in gone)})
        return
    for one in gone:
        click.echo(f"{_name(one)}\t{one.size:,}")
    step(f"{'would free' if dry_run else 'freed'} {sum(one.size for one in gone):,} bytes")


def _name(one: Stored) -> str:
    manifest = one.manifest
    return f"{manifest.repository}@{manifest.name}=={manifest.version}" if manifest else "(damaged)"


def _record(one: Stored) -> dict[str, object]:
    return {"release": _name(one), "digest": one.digest, "path": one.path, "bytes": one.size}
