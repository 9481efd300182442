"""``index``: the indexes you search, and those you maintain."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from adaptergit.cli.groups import Group
from adaptergit.cli.load import policy_option
from adaptergit.cli.output import clean, json_option, print_json, step, waiting

_here = click.option(
    "--repo", "folder", type=click.Path(path_type=Path), default=Path(), help="Folder of the index; default: here."
)
_keys = click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), required=True, help="Key to sign with."
)
_now = click.option("--now", type=click.DateTime(), hidden=True, help="Instead of the clock (UTC).")


@click.group(cls=Group)
def index() -> None:
    """Add, update and maintain indexes.

    \b
    Using one:        add, ls, update, remove, explain
    Contributing:     submit
    Maintaining one:  init, check, crawl, build, site, sign, rotate, recover, revoke, yank
    One file:         list

    \b
    Example:
      adaptergit index add https://index.example.org/ --root sha256:9f86…
      adaptergit search sentiment german
    """


# --- using ------------------------------------------------------------------------------------------------------------


@index.command("add")
@click.argument("url")
@click.option("--root", required=True, help="sha256:… of one of its roots, as its maintainers tell.")
@click.option("--name", help="What to call it; default: what it calls itself.")
@click.option("--priority", default=100, show_default=True, help="Small ones are asked first.")
@click.option("--scope", multiple=True, help="Glob over repositories that it alone speaks for (private ones).")
@click.option("--lazy", is_flag=True, help="Fetch only what is asked for; nothing can be searched then.")
@json_option
def add(
    url: str, root: str, name: str | None, priority: int, scope: tuple[str, ...], lazy: bool, as_json: bool
) -> None:
    """Add the index at URL: a static host, a folder, or a git repository (….git).

    \b
    Example:
      adaptergit index add https://index.example.org/ --root sha256:9f86…
      adaptergit index add https://git.corp.example/ml/index.git --root sha256:… --scope "git.corp.example/*"
    """
    from adaptergit.indexes import client
    from adaptergit.settings import load_settings

    with waiting(f"fetching {url}", quiet=as_json):
        done = client(load_settings()).add(url, root, name=name, priority=priority, scope=scope, lazy=lazy)
    if as_json:
        print_json(done)
        return
    click.echo(f"added {done.name}: {done.sources} sources, {done.adapters} adapters, {done.received:,} bytes")
    _refused(done.refused)


@index.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List the indexes you have added.

    \b
    Example:
      adaptergit index ls
    """
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
            }
            for one, state in rows
        ]
        print_json({"indexes": found})
        return
    for one, state in rows:
        scope = f"\tonly {', '.join(one.scope)}" if one.scope else ""
        late = state.expires < f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        until = f"EXPIRED {state.expires}" if late else f"good until {state.expires}"
        click.echo(f"{one.name}\t{one.url}\tupdated {state.updated or 'never'}\t{until}{scope}")
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
            if not as_json:
                click.echo(f"{name}: {error}", err=True)
            continue
        done.append(one)
        if not as_json:
            click.echo(f"{one.name}: {one.changed} of {one.sources} sources changed, {one.received:,} bytes")
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
    principal = Source.parse(repository, default_host=settings.default_host).principal or repository
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
        click.echo(f"{one.name}: {len(found.lines)} releases, signed by {found.source.threshold} of {keys}")
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
@click.option("--threshold", type=int, help="How many different keys sign each release; default: as listed, else 1.")
@click.option("--mirror", "mirrors", multiple=True, help="Where else the releases are; default: as listed.")
@click.option("--contact", help="Default: as listed, else git's user.email.")
@click.option("--tracks", help="The repository host/org/repo that yours is a copy of: asked where that one is gone.")
@click.option("--remote", default="origin", show_default=True, help="Git remote of your clone.")
@click.option("--repository", help="Public name host/org/repo, where the remote's URL does not tell it.")
@click.option("--url", help="What people fetch from, where it is not the remote's URL.")
@click.option("--fork", help="URL of your fork of the index, where you may not push to the index itself.")
@click.option("--forge", type=click.Choice(["github", "gitlab", "gitea"]), help="Default: from the host's name.")
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
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("references", nargs=-1, required=True)
@policy_option
@json_option
def list_(file: Path, references: tuple[str, ...], policy: str | None, as_json: bool) -> None:
    """Fetch and verify releases, and list them in one index FILE, for yourself or a small team.

    \b
    Example:
      adaptergit index list index.json acme/adapters@sst2 acme/adapters@ner==1.2.0
    """
    from adaptergit.search import add_to_index

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


@index.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the index calls itself.")
@click.option("--maintainer", "maintainers", multiple=True, required=True, help="Public key line, or .pub file.")
@click.option("--online", "online", multiple=True, required=True, help="Public key that signs snapshots, often in CI.")
@click.option("--threshold", default=1, show_default=True, help="How many maintainers must sign.")
@_keys
@json_option
def init(
    folder: Path,
    name: str,
    maintainers: tuple[str, ...],
    online: tuple[str, ...],
    threshold: int,
    keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Begin an index in FOLDER: the template, with a root signed by the maintainers whose keys are here.

    \b
    Example:
      adaptergit index init community --name community --maintainer alice.pub --maintainer bob.pub --threshold 2 \\
          --online ci.pub --key ~/.ssh/alice
    """
    from adaptergit.index.maintain import init_index
    from adaptergit.pins import public_key
    from adaptergit.trust import SigningKey

    root = init_index(
        folder,
        name,
        maintainers=[public_key(one) for one in maintainers],
        online=[public_key(one) for one in online],
        threshold=threshold,
        keys=[SigningKey.open(path) for path in keys],
    )
    if as_json:
        print_json({"folder": folder, "root": f"sha256:{root.digest}"})
        return
    click.echo(f"root         sha256:{root.digest}")
    if len(keys) < threshold:
        click.echo(f"{threshold - len(keys)} more must sign: adaptergit index sign --root 1 --key …")
    click.echo(f"next: read {folder}/README.md, git init, commit, push")


@index.command("check")
@_here
@click.option("--base", help="Commit of the index's own branch; default: check the whole index, without network.")
@click.option("--head", help="Commit to be merged; default: the files as they lie here.")
@click.option("--proposed", type=click.DateTime(), help="When the pull request was opened (UTC).")
@click.option("--comment", type=click.Path(path_type=Path), help="Write the report for the pull request to this file.")
@click.option("--rules", is_flag=True, help="Print the rules and do nothing else.")
@_now
@json_option
def check(
    folder: Path,
    base: str | None,
    head: str | None,
    proposed: datetime | None,
    comment: Path | None,
    rules: bool,
    now: datetime | None,
    as_json: bool,
) -> None:
    """Check what a pull request changes, with the rules CI uses; without --base, check that the index is sound.

    \b
    Example:
      adaptergit index check --base origin/main
      git fetch origin pull/7/head && adaptergit index check --base main --head FETCH_HEAD
    """
    from adaptergit.errors import ReleaseError
    from adaptergit.index.maintain import check_index
    from adaptergit.index.propose import check_change
    from adaptergit.index.repository import IndexRepository
    from adaptergit.index.rules import documentation
    from adaptergit.settings import load_settings

    if rules:
        click.echo(documentation().rstrip())
        return
    repository = IndexRepository(folder.resolve())
    if base is None:
        sources, releases = check_index(repository)
        if as_json:
            print_json({"sources": sources, "releases": releases})
        else:
            click.echo(f"{sources} sources, {releases} releases: sound")
        return
    found = check_change(
        repository,
        load_settings(),
        base=base,
        head=head,
        proposed=proposed.replace(tzinfo=UTC) if proposed else None,
        now=now.replace(tzinfo=UTC) if now else None,
    )
    if comment is not None:
        comment.write_text(found.report, "utf-8")
    if as_json:
        print_json({"passed": found.passed, "problems": found.problems})
    else:
        for path, broken in found.problems.items():
            click.echo(f"{clean(path)}: {'fine' if not broken else ''}")
            for rule, why in broken:
                click.echo(f"  {rule}: {clean(why)}")
    if not found.passed:
        raise ReleaseError("the change breaks rules of the index", hint="each line says what to mend")


@index.command("crawl")
@_here
@click.option("--shard", default="0/1", show_default=True, help="i/n: every n-th source, beginning with i.")
@click.option("--jobs", default=8, show_default=True, help="Sources at a time.")
@click.argument("principals", nargs=-1)
@_now
@json_option
def crawl(
    folder: Path, shard: str, jobs: int, principals: tuple[str, ...], now: datetime | None, as_json: bool
) -> None:
    """Find, fetch, verify and list what the sources have released.

    What cannot be reached or is refused is reported and stops nothing. Only what is new is fetched.

    \b
    Example:
      adaptergit index crawl
      adaptergit index crawl --shard 3/16
    """
    from adaptergit.errors import UsageError
    from adaptergit.index.crawl import crawl as run
    from adaptergit.index.repository import IndexRepository
    from adaptergit.settings import load_settings

    part, _, parts = shard.partition("/")
    if not part.isdigit() or not parts.isdigit() or not int(part) < int(parts):
        raise UsageError(f"--shard {shard!r}: write i/n, with i from 0 to n-1")

    def tell(one: object) -> None:
        if not as_json and (one.added or one.yanked or one.missing or one.refused or one.error):  # type: ignore[attr-defined]
            _tell(one)

    found = run(
        IndexRepository(folder.resolve()),
        load_settings(),
        only=principals or None,
        shard=(int(part), int(parts)),
        jobs=jobs,
        now=now.replace(tzinfo=UTC) if now else None,
        report=tell,
    )
    if as_json:
        print_json({"sources": found})
        return
    added, broken = sum(len(one.added) for one in found), sum(bool(one.error or one.refused) for one in found)
    click.echo(f"{len(found)} sources: {added} new releases, {broken} sources with problems")


def _tell(one: object) -> None:
    from adaptergit.index.crawl import Crawled

    if not isinstance(one, Crawled):
        return
    for release in one.added:
        step(f"{one.principal}@{release}")
    for release in one.yanked:
        step(f"{one.principal}@{release} yanked or no longer yanked")
    for release in one.missing:
        step(clean(f"{one.principal} does not have {release} of the repository that it copies"))
    for release, why in one.refused.items():
        step(clean(f"{one.principal}@{release} refused: {why}"))
    if one.error:
        step(clean(f"{one.principal}: {one.error.partition(chr(10))[0]}"))


@index.command("build")
@_here
@click.option("--out", type=click.Path(path_type=Path), help="Default: dist/ in the index.")
@_now
@json_option
def build(folder: Path, out: Path | None, now: datetime | None, as_json: bool) -> None:
    """Build what users fetch into dist/: the same bytes for the same commit, whoever builds it.

    \b
    Example:
      adaptergit index build && adaptergit index sign --key ci_key
    """
    from adaptergit.git import commit_time
    from adaptergit.index.build import build as run
    from adaptergit.index.repository import IndexRepository

    repository = IndexRepository(folder.resolve())
    moment = now.replace(tzinfo=UTC) if now else commit_time(repository.root)
    built = run(repository, out or repository.root / "dist", root=repository.current_root(), now=moment)
    if as_json:
        print_json({"sources": built.sources, "releases": built.releases, "changed": built.changed})
    else:
        click.echo(f"{built.sources} sources, {built.releases} releases, {built.changed} shards changed")


@index.command("sign")
@_here
@click.option("--out", type=click.Path(path_type=Path), help="What was built; default: dist/ in the index.")
@click.option("--root", "version", type=int, help="Sign this root instead of the snapshot.")
@click.option("--again", is_flag=True, help="Give the snapshot a new time: nothing changed, but it would expire.")
@_keys
@_now
@json_option
def sign(
    folder: Path,
    out: Path | None,
    version: int | None,
    again: bool,
    keys: tuple[Path, ...],
    now: datetime | None,
    as_json: bool,
) -> None:
    """Sign the snapshot that was built (with an online key), or a root (with a maintainer's).

    \b
    Example:
      adaptergit index sign --key ci_key
      adaptergit index sign --root 2 --key ~/.ssh/bob
    """
    from adaptergit.index.maintain import sign_root, sign_snapshot
    from adaptergit.index.repository import IndexRepository
    from adaptergit.trust import SigningKey

    repository, opened = IndexRepository(folder.resolve()), [SigningKey.open(path) for path in keys]
    if version is not None:
        counts = sign_root(repository, version, opened)
        message = f"root {version} is signed" + (": it counts" if counts else "; more must sign")
    else:
        counts = True
        moment = (now.replace(tzinfo=UTC) if now else datetime.now(UTC)) if again else None
        sign_snapshot(repository, out or repository.root / "dist", opened[0], now=moment)
        message = "the snapshot is signed"
    if as_json:
        print_json({"root": version, "counts": counts})
    else:
        click.echo(message)


@index.command("rotate")
@_here
@click.option("--maintainer", "maintainers", multiple=True, help="All maintainers from now on; default: as before.")
@click.option("--online", multiple=True, help="All online keys from now on; default: as before.")
@click.option("--threshold", type=int, help="How many maintainers must sign; default: as before.")
@_keys
@json_option
def rotate(
    folder: Path,
    maintainers: tuple[str, ...],
    online: tuple[str, ...],
    threshold: int | None,
    keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write the next root: other maintainers, other online keys, or only a later expiry.

    It counts when enough of the old maintainers and enough of the new ones have signed it (index sign --root N).

    \b
    Example:
      adaptergit index rotate --online new_ci.pub --key ~/.ssh/alice
    """
    from adaptergit.index.maintain import rotate_root
    from adaptergit.index.repository import IndexRepository
    from adaptergit.pins import public_key
    from adaptergit.trust import SigningKey

    root = rotate_root(
        IndexRepository(folder.resolve()),
        [SigningKey.open(path) for path in keys],
        maintainers=[public_key(one) for one in maintainers] or None,
        online=[public_key(one) for one in online] or None,
        threshold=threshold,
    )
    if as_json:
        print_json({"root": root.version, "sha256": root.digest})
    else:
        click.echo(
            f"wrote roots/{root.version}.json; the others sign: adaptergit index sign --root {root.version} --key …"
        )


@index.command("recover")
@click.argument("repository")
@click.option("--new-key", "new", multiple=True, required=True, help="Public key line, or .pub file.")
@click.option("--reason", required=True, help="Why, for everybody.")
@_here
@_keys
@json_option
def recover(
    repository: str, new: tuple[str, ...], reason: str, folder: Path, keys: tuple[Path, ...], as_json: bool
) -> None:
    """Give the publisher of REPOSITORY, who lost their key, a new one.

    Sign with as many maintainers' keys as the root asks for.

    \b
    Example:
      adaptergit index recover github.com/acme/adapters --new-key new.pub --reason "laptop lost" --key alice --key bob
    """
    from adaptergit.index.maintain import recover as run
    from adaptergit.index.repository import IndexRepository
    from adaptergit.pins import public_key
    from adaptergit.trust import SigningKey

    done = run(
        IndexRepository(folder.resolve()),
        repository,
        [public_key(one) for one in new],
        [SigningKey.open(path) for path in keys],
        reason=reason,
    )
    if as_json:
        print_json({"repository": done.repository, "keys": [key.fingerprint for key in done.keys]})
    else:
        click.echo(f"{done.repository} is signed by {', '.join(key.fingerprint for key in done.keys)} from now on")


@index.command("revoke")
@click.argument("what")
@click.option("--since", type=click.DateTime(), help="For a key: what was seen before then still counts (UTC).")
@click.option("--warn", is_flag=True, help="Do not refuse; say so at every load.")
@click.option("--reason", required=True, help="Why, for everybody.")
@_here
@json_option
def revoke(what: str, since: datetime | None, warn: bool, reason: str, folder: Path, as_json: bool) -> None:
    """Tell everybody that WHAT, a key (SHA256:…) or a release (sha256: and its digest), no longer counts.

    \b
    Example:
      adaptergit index revoke SHA256:qzN… --since 2026-11-01 --reason "stolen laptop"
    """
    from adaptergit.index.repository import IndexRepository
    from adaptergit.trust import Revocation, parse_revocations

    digest = what.removeprefix("sha256:") if what.startswith("sha256:") else None
    if not what.startswith(("sha256:", "SHA256:")):
        raise click.UsageError(
            "write a key's fingerprint (SHA256:…) or sha256: and a release's digest (adaptergit info)"
        )
    if digest and since:
        raise click.UsageError("--since is for keys: a release is revoked or not")
    moment = None if since is None else since.replace(tzinfo=UTC)
    one = Revocation(None if digest else what, digest, moment, "warn" if warn else "refuse", reason, "revoked.jsonl")
    (parsed,) = parse_revocations(one.line().encode(), source="revoked.jsonl")
    IndexRepository(folder.resolve()).revoke(parsed)
    if as_json:
        print_json({"revoked": what, "severity": one.severity})
    else:
        click.echo(f"{what} is {one}; build and sign the index to tell everybody")


@index.command("yank")
@click.argument("reference")
@click.option("--reason", default="", help="Why, for everybody; needed unless --undo.")
@click.option("--undo", is_flag=True, help="Take it back.")
@_here
@json_option
def yank(reference: str, reason: str, undo: bool, folder: Path, as_json: bool) -> None:
    """Withdraw the release REFERENCE (host/org/repo@adapter==version) from the index.

    \b
    Example:
      adaptergit index yank acme/adapters@sst2==1.0.0 --reason "trained on the test set"
    """
    from adaptergit.errors import UsageError
    from adaptergit.index.maintain import yank_entry
    from adaptergit.index.repository import IndexRepository
    from adaptergit.reference import Reference
    from adaptergit.settings import load_settings

    parsed = Reference.parse(reference, default_host=load_settings().default_host)
    version = str(parsed.specifier).removeprefix("==")
    if parsed.source.principal is None or not str(parsed.specifier).startswith("=="):
        raise UsageError(f"{reference!r} names no single release", hint="write org/repo@adapter==1.0.0")
    if not reason and not undo:
        raise UsageError("say why with --reason")
    yank_entry(
        IndexRepository(folder.resolve()), parsed.source.principal, parsed.adapter, version, None if undo else reason
    )
    if as_json:
        print_json({"reference": reference, "yanked": not undo})
    else:
        click.echo(f"{reference} is {'no longer ' if undo else ''}yanked; build and sign the index to tell everybody")


@index.command("site")
@_here
@click.option("--out", type=click.Path(path_type=Path), help="Default: dist/ in the index.")
@json_option
def site(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write the index's web pages into dist/: static, for any web server, readable without JavaScript.

    \b
    Example:
      adaptergit index build && adaptergit index site && python -m http.server -d dist
    """
    from adaptergit.index.repository import IndexRepository
    from adaptergit.index.site import build_site

    repository = IndexRepository(folder.resolve())
    count = build_site(repository, out or repository.root / "dist", root=repository.current_root())
    if as_json:
        print_json({"adapters": count})
    else:
        click.echo(f"{count} adapters have pages")


@index.command("import-adapterhub")
@click.argument("clone", type=click.Path(path_type=Path))
@_here
@json_option
def import_adapterhub(clone: Path, folder: Path, as_json: bool) -> None:
    """Take over the cards of a CLONE of the AdapterHub archive (github.com/adapter-hub/Hub), as legacy entries.

    Says which fields of the cards have no place in an index, and which cards could not be taken over.

    \b
    Example:
      git clone https://github.com/adapter-hub/Hub && adaptergit index import-adapterhub Hub
    """
    from adaptergit.index.adapterhub import import_adapterhub as run
    from adaptergit.index.repository import IndexRepository

    done = run(IndexRepository(folder.resolve()), clone)
    if as_json:
        print_json(done)
        return
    click.echo(f"{done.cards} cards, {done.entries} entries")
    for name, count in done.without_place.items():
        click.echo(f"  no place for {clean(name)} ({count} cards)")
    for card, new in done.renamed.items():
        click.echo(f"  {clean(card)} is {new}")
    for card, why in done.refused.items():
        click.echo(f"  not taken over: {clean(card)}: {clean(why)}")
