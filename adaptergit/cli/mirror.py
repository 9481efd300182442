"""``mirror`` and ``bundle``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptergit.cli.groups import Group
from adaptergit.cli.load import named, policy_option
from adaptergit.cli.output import json_option, print_json, waiting

if TYPE_CHECKING:
    from adaptergit.mirror import Copied

_lock = click.option("--lock", type=click.Path(path_type=Path), help="Also everything in this lock file.")


@click.command()
@click.argument("references", nargs=-1)
@click.option("--to", required=True, help="URL of a git repository, or a folder for any web server.")
@_lock
@policy_option
@json_option
def mirror(references: tuple[str, ...], to: str, lock: Path | None, policy: str | None, as_json: bool) -> None:
    """Copy the releases REFERENCES mean, verified, to another git repository or to a folder.

    Tell clients of it under [mirrors] in their settings. What they get from it is verified like anything else. What is
    damaged in a folder is mended; what was interrupted is gone on with by the same command.

    \b
    Example:
      adaptergit mirror acme/adapters@sst2 --to https://codeberg.org/acme/adapters.git
      adaptergit mirror --lock adaptergit.lock --to /srv/www/adapters
    """
    from adaptergit.mirror import mirror as run

    with waiting("copying", quiet=as_json):
        copied = run([named(one) for one in references], to=to, lock=lock, policy=policy)
    _show(copied, as_json)


@click.group(cls=Group)
def bundle() -> None:
    """Carry releases, with their publishers' keys and what indexes say, to a machine without network.

    \b
    Example:
      adaptergit bundle export adapters.tar acme/adapters@sst2
      adaptergit bundle import adapters.tar
    """


@bundle.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("references", nargs=-1)
@_lock
@policy_option
@json_option
def export(file: Path, references: tuple[str, ...], lock: Path | None, policy: str | None, as_json: bool) -> None:
    """Write the releases REFERENCES mean to one tar FILE.

    \b
    Example:
      adaptergit bundle export adapters.tar --lock adaptergit.lock
    """
    from adaptergit.bundle import export_bundle

    with waiting("packing", quiet=as_json):
        copied = export_bundle(file, [named(one) for one in references], lock=lock, policy=policy)
    _show(copied, as_json)


@bundle.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust-keys", is_flag=True, help="Also pin the publishers' keys that are in it.")
@click.option("--index-root", help="Also add the index in it that has this root, sha256:… as its maintainers say.")
@policy_option
@json_option
def take_in(file: Path, trust_keys: bool, index_root: str | None, policy: str | None, as_json: bool) -> None:
    """Verify the releases in FILE and put them into the store, all of them or none.

    Their signers must be known to you, or to an index you have added, whose news come with the bundle; or
    --trust-keys takes the bundle's word for who they are.

    \b
    Example:
      adaptergit bundle import adapters.tar --trust-keys
    """
    from adaptergit.bundle import import_bundle

    with waiting("unpacking", quiet=as_json):
        copied = import_bundle(file, trust_keys=trust_keys, index_root=index_root, policy=policy)
    _show(copied, as_json)


def _show(copied: Sequence[Copied], as_json: bool) -> None:
    if as_json:
        print_json({"releases": copied})
        return
    for one in copied:
        became = "new" if one.new else "mended" if one.mended else "was there"
        click.echo(f"{one.repository}@{one.name}=={one.version}\t{became}")
