"""``index``: the indexes you search, and those you maintain."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from adaptergit.cli import index_change, index_ci, index_maintain
from adaptergit.cli.groups import Group
from adaptergit.cli.load import policy_option
from adaptergit.cli.output import clean, json_option, print_json, step, waiting
from adaptergit.errors import UsageError, counted


@click.group(cls=Group)
def index() -> None:
    """Add, update and maintain indexes.

    \b
    Using one:        add, ls, update, remove, explain
    Contributing:     submit
    Maintaining one:  init, review, settle, publish, check, crawl, build, site, sign, rotate, recover, revoke, yank,
                      import-adapterhub
    One file:         list

    \b
    Example:
      adaptergit index add https://index.example.org/ --root sha256:9f86…
      adaptergit search sentiment german
    """


# --- using ------------------------------------------------------------------------------------------------------------


@index.command("add")
@click.argument("url")
@click.option("--root", help="sha256:… of one of its roots, as its maintainers tell; needed.")
@click.option("--name", help="What to call it; default: what it calls itself.")
@click.option("--priority", default=100, show_default=True, help="Small ones are asked first.")
@click.option("--scope", multiple=True, help="Glob over repositories that it alone speaks for (private ones).")
@click.option("--lazy", is_flag=True, help="Fetch only what is asked for; nothing can be searched then.")
@json_option
def add(
    url: str, root: str | None, name: str | None, priority: int, scope: tuple[str, ...], lazy: bool, as_json: bool
) -> None:
    """Add the index at URL: a static host, a folder, or a git repository (….git).

    \b
    Example:
      adaptergit index add https://index.example.org/ --root sha256:9f86…
      adaptergit index add https://git.corp.example/ml/index.git --root sha256:… --scope "git.corp.example/*"
    """
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    if root is None:
        hint = "its maintainers tell it, in another place than the index: whoever can change that could change both"
        raise UsageError("--root sha256:… is missing: the digest by which the index is known", hint=hint)
    with waiting(f"fetching {url}", quiet=as_json):
        done = client(load_settings()).add(url, root, name=name, priority=priority, scope=scope, lazy=lazy)
    if as_json:
        print_json(done)
        return
    held = f"{counted(done.sources, 'source')}, {counted(done.adapters, 'adapter')}"
    click.echo(f"added {done.name}: {held}, {done.received:,} bytes")
    _refused(done.refused)


@index.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List the indexes you have added.

    \b
    Example:
      adaptergit index ls
    """
    from adaptergit.index.subscription import failed_update
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    indexes = client(load_settings())
    rows = [(one, indexes.state(one.name)) for one in indexes.subscriptions()]
    if as_json:
        found = [
            {
                "name": one.name,
                "url": one.url,
                "priority": one.priority,
                "scope": one.scope,
                "updated": state.updated,
                "expires": state.expires,
                "refused": state.refused,
                "failed": failed_update(one.name),
            }
            for one, state in rows
        ]
        print_json({"indexes": found})
        return
    for one, state in rows:
        scope = f"\tonly {', '.join(one.scope)}" if one.scope else ""
        late = state.expires < f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        until = f"EXPIRED {state.expires}" if late else f"good until {state.expires}"
        behind = f"\tnews of {counted(len(state.refused), 'source')} refused" if state.refused else ""
        failed = f"\tlast update failed {clean(why)}" if (why := failed_update(one.name)) else ""
        click.echo(f"{one.name}\t{one.url}\tupdated {state.updated or 'never'}\t{until}{scope}{behind}{failed}")
    if not rows:
        click.echo("none yet: adaptergit index add URL --root sha256:…", err=True)


@index.command("update")
@click.argument("names", nargs=-1)
@json_option
def update(names: tuple[str, ...], as_json: bool) -> None:
    """Fetch what is new in the indexes NAMES, or in all.

    One that cannot be believed or reached stays as it was; the others are updated all the same.

    \b
    Example:
      adaptergit index update
    """
    from adaptergit.errors import AdaptergitError
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    indexes, done, failed = client(load_settings()), [], []
    for name in names or [one.name for one in indexes.subscriptions()]:
        try:
            with waiting(f"updating {name}", quiet=as_json):
                one = indexes.update(name)
        except AdaptergitError as error:
            failed.append(error)
            if not as_json and len(failed) > 1:  # the first is said at the end
                click.echo(f"{name}: {error}", err=True)
            continue
        done.append(one)
        if not as_json:
            click.echo(f"{one.name}: {one.changed} of {counted(one.sources, 'source')} changed, {one.received:,} bytes")
            _refused(one.refused)
    if as_json and not failed:
        print_json({"updated": done})
    elif not done and not failed:
        click.echo("no index was added: adaptergit index add URL --root sha256:…", err=True)
    if failed:
        raise failed[0]


@index.command("remove")
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Forget an index and everything it said.

    \b
    Example:
      adaptergit index remove community
    """
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    client(load_settings()).remove(name)
    if as_json:
        print_json({"removed": name})
    else:
        click.echo(f"removed {name}")


@index.command("explain")
@click.argument("repository")
@json_option
def explain(repository: str, as_json: bool) -> None:
    """Say which indexes speak for REPOSITORY (host/org/repo), and what they say.

    \b
    Example:
      adaptergit index explain github.com/acme/adapters
    """
    from adaptergit.indexes import client
    from adaptergit.reference import Source
    from adaptergit.settings import load_settings

    settings = load_settings()
    principal = Source.named(repository, default_host=settings.default_host).principal or repository
    indexes = client(settings)
    asked, known = indexes.speaks_for(principal), {one.index: one for one in indexes.known(principal)}
    copies = indexes.copies(principal)
    if as_json:
        print_json(
            {
                "repository": principal,
                "asked": [one.name for one in asked],
                "known": {name: one.source.to_dict() for name, one in known.items()},
                "copies": copies,
            }
        )
        return
    for one in asked:
        found = known.get(one.name)
        if found is None:
            click.echo(f"{one.name}: does not list it")
            continue
        keys = ", ".join(key.public.fingerprint for key in found.source.keys)
        click.echo(f"{one.name}: {counted(len(found.lines), 'release')}, signed by {found.source.threshold} of {keys}")
        if found.source.tracks:
            click.echo(f"{one.name}: a copy of {clean(found.source.tracks)}; load {clean(found.source.tracks)}@…")
        for url in found.source.mirrors:
            click.echo(f"{one.name}: mirror {clean(url)}")
    for url in copies:
        click.echo(f"asked where it is gone: {clean(url)}, a copy")
    if not asked:
        click.echo("no index speaks for it", err=True)


def _refused(refused: tuple[str, ...]) -> None:
    for line in refused:
        click.secho("not taken: ", fg="yellow", nl=False, err=True)
        click.echo(clean(line), err=True)


# --- contributing -----------------------------------------------------------------------------------------------------


@index.command("submit")
@click.option("--to", "to", required=True, help="URL of the index's git repository.")
@click.option("--repo", "clone", type=click.Path(path_type=Path), default=Path(), help="Your clone; default: here.")
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Default: those that are announced."
)
@click.option(
    "--sign-with",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Key that signs a change of what is listed already; default: --key, else your signing key.",
)
@click.option(
    "--threshold", type=click.IntRange(1), help="How many different keys sign each release; default: as listed, else 1."
)
@click.option(
    "--mirror", "mirrors", multiple=True, help="Where else the releases are; may be repeated; default: as listed."
)
@click.option("--contact", help="Where the maintainers can write to; default: as listed, else git's user.email.")
@click.option("--tracks", help="The repository host/org/repo that yours is a copy of: asked where that one is gone.")
@click.option("--remote", default="origin", show_default=True, help="Git remote of your clone.")
@click.option("--repository", help="Public name host/org/repo, where the remote's URL does not tell it.")
@click.option("--url", help="What people fetch from, where it is not the remote's URL.")
@click.option("--fork", help="URL of your fork of the index, where you may not push to the index itself.")
@click.option(
    "--forge", type=click.Choice(["github", "gitlab", "gitea"]), help="What the host runs; default: told by its name."
)
@click.option("--dry-run", is_flag=True, help="Check, and push nothing.")
@json_option
def submit(
    to: str,
    clone: Path,
    keys: tuple[Path, ...],
    sign_with: tuple[Path, ...],
    threshold: int | None,
    mirrors: tuple[str, ...],
    contact: str | None,
    tracks: str | None,
    remote: str,
    repository: str | None,
    url: str | None,
    fork: str | None,
    forge: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Propose the repository of your clone to an index: once; after that, publishing is pushing.

    Writes the source file, checks it with the rules the index's CI uses, pushes a branch, and opens the pull request
    (with a token in ADAPTERGIT_FORGE_TOKEN, ~/.netrc or git's credential helper) or prints the page that does.
    A change of what is listed already (other keys, mirrors, threshold) is signed with keys that are enrolled.

    \b
    Example:
      adaptergit index submit --to https://github.com/community/index.git --dry-run
      adaptergit index submit --to https://github.com/community/index.git --sign-with ~/.ssh/adapters_2027
    """
    from adaptergit.submit import submit as run

    done = run(
        to,
        clone=clone,
        keys=keys,
        sign_with=sign_with,
        threshold=threshold,
        mirrors=mirrors or None,
        contact=contact,
        tracks=tracks,
        remote=remote,
        repository=repository,
        url=url,
        fork=fork,
        forge=forge,
        dry_run=dry_run,
        report=(lambda _: None) if as_json else step,
    )
    if as_json:
        print_json({"path": done.source.path, "branch": done.branch, "address": done.address, "opened": done.opened})
        return
    if dry_run:
        click.echo(done.source.to_yaml().decode(), nl=False)
        return
    click.echo(f"{'opened' if done.opened else 'open it here:'} {done.address}")


# --- one file ---------------------------------------------------------------------------------------------------------


@index.command("list")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.argument("references", nargs=-1)
@policy_option
@json_option
def list_(file: Path | None, references: tuple[str, ...], policy: str | None, as_json: bool) -> None:
    """Fetch and verify releases, and list them in one index FILE, for yourself or a small team.

    \b
    Example:
      adaptergit index list index.json acme/adapters@sst2 acme/adapters@ner==1.2.0
    """
    from adaptergit.search import add_to_index

    if file is None or not references:
        hint = "adaptergit index ls shows the indexes you have added"
        raise UsageError("name the index FILE, and the releases to list in it", hint=hint)
    added = []
    for reference in references:
        with waiting(f"fetching {reference}", quiet=as_json):
            entry = add_to_index(file, reference, policy=policy)
        added.append(entry.to_dict())
        if not as_json:
            step(f"listed {entry.id}=={entry.version}")
    if as_json:
        print_json({"file": file, "entries": added})


# --- maintaining ------------------------------------------------------------------------------------------------------

for _command in (
    index_maintain.init,
    index_maintain.check,
    index_ci.review,
    index_ci.settle,
    index_maintain.crawl,
    index_maintain.build,
    index_maintain.site,
    index_maintain.sign,
    index_ci.publish,
    index_change.rotate,
    index_change.recover,
    index_change.revoke,
    index_change.yank,
    index_maintain.import_adapterhub,
):
    index.add_command(_command)
