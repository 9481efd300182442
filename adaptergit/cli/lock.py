"""``lock`` and ``sync``."""

from __future__ import annotations

from pathlib import Path

import click

from adaptergit.cli.load import named, offline_option, policy_option
from adaptergit.cli.output import json_option, print_json, step, waiting
from adaptergit.errors import counted

_file = click.option(
    "--file",
    "--lock",
    "path",
    type=click.Path(path_type=Path),
    default="adaptergit.lock",
    show_default=True,
    help="The lock file.",
)


@click.command()
@click.argument("references", nargs=-1)
@_file
@click.option("--upgrade", is_flag=True, help="Take the newest releases that fit.")
@click.option(
    "--check",
    is_flag=True,
    help="Change nothing, touch no network; fail if the file does not fit, or a stored release is not as it says.",
)
@policy_option
@json_option
def lock(
    references: tuple[str, ...], path: Path, upgrade: bool, check: bool, policy: str | None, as_json: bool
) -> None:
    """Write down exactly which releases REFERENCES mean, or, without any, those in the file already.

    Load what is locked with adaptergit.load(REFERENCE, lock="adaptergit.lock"); with offline=True as well, no network
    is touched and no process started.

    \b
    Example:
      adaptergit lock "acme/adapters@ner>=1.2,<2" acme/adapters@sst2
      adaptergit lock --upgrade
      adaptergit lock --check
    """
    from adaptergit.lock import check_lock, not_compared
    from adaptergit.lock import lock as run

    wanted = [named(reference) for reference in references]
    if check:
        with waiting("comparing", quiet=as_json):
            entries = check_lock(wanted, path=path)
        absent = not_compared(entries)
        if as_json:
            print_json({"locked": [{"id": e.id, "version": e.version, "compared": e not in absent} for e in entries]})
            return
        are = "is locked as it is" if len(entries) == 1 else "are locked as they are"
        click.echo(f"{counted(len(entries), 'adapter')} {are} asked for")
        if absent:
            step(f"{len(absent)} of them not compared with their releases, which are not stored: adaptergit sync")
        return
    with waiting("locking", quiet=as_json):
        changes = run(wanted, path=path, upgrade=upgrade, policy=policy)
    if as_json:
        print_json({"file": path, "changes": changes})
        return
    for change in changes:
        before = f"{change.before} -> " if change.before not in (None, change.after) else ""
        click.echo(f"{change.id}\t{before}{change.after}")
    step(f"wrote {path}")


@click.command()
@_file
@policy_option
@offline_option
@json_option
def sync(path: Path, policy: str | None, offline: bool, as_json: bool) -> None:
    """Bring every locked release into the store, verified, and ask which of them were withdrawn.

    \b
    Example:
      adaptergit sync --file ci/adaptergit.lock
    """
    from adaptergit.lock import sync as run

    with waiting("fetching", quiet=as_json):
        found = run(path=path, policy=policy, offline=offline)
    if as_json:
        print_json(
            {"adapters": [{"reference": str(f.reference), "path": f.path, "from_store": f.from_store} for f in found]}
        )
        return
    for one in found:
        click.echo(f"{one.reference.adapter} {one.version}\t{'in the store' if one.from_store else 'fetched'}")
