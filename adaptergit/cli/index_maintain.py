"""``index``, for those who maintain one: begin, check, crawl, build, site, sign, import."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from adaptergit.cli.index_options import here_option, keys_option, now_option, tell
from adaptergit.cli.output import clean, json_option, print_json, step, waiting
from adaptergit.errors import counted


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the index calls itself.")
@click.option(
    "--maintainer",
    "maintainers",
    multiple=True,
    required=True,
    help="Key of one: a public key line, or a .pub file; may be repeated.",
)
@click.option(
    "--online",
    "online",
    multiple=True,
    required=True,
    help="Public key that signs snapshots, often in CI; may be repeated.",
)
@click.option("--threshold", default=1, show_default=True, help="How many maintainers must sign.")
@keys_option
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

    people, machines = [public_key(one) for one in maintainers], [public_key(one) for one in online]
    root = init_index(
        folder,
        name,
        maintainers=people,
        online=machines,
        threshold=threshold,
        keys=[SigningKey.open(path) for path in keys],
    )
    if as_json:
        print_json({"folder": folder, "root": f"sha256:{root.digest}"})
        return
    click.echo(f"root         sha256:{root.digest}")
    if any(one in people for one in machines):
        step("note: a maintainer's key is the online one too: whoever gets at that machine can change the index's keys")
    if len(keys) < threshold:
        click.echo(f"{threshold - len(keys)} more must sign: adaptergit index sign --root 1 --key …")
    click.echo(f"next: read {folder}/README.md, git init, commit, push")


@click.command("check")
@here_option
@click.option("--base", help="Commit of the index's own branch; default: check the whole index, without network.")
@click.option("--since", help="Of the whole index: commit from which on nothing that was listed may have changed.")
@click.option("--head", help="Commit to be merged; default: the files as they lie here.")
@click.option("--proposed", type=click.DateTime(), help="When the pull request was opened (UTC).")
@click.option("--comment", type=click.Path(path_type=Path), help="Write the report for the pull request to this file.")
@click.option("--rules", is_flag=True, help="Print the rules and do nothing else.")
@now_option
@json_option
def check(
    folder: Path,
    base: str | None,
    since: str | None,
    head: str | None,
    proposed: datetime | None,
    comment: Path | None,
    rules: bool,
    now: datetime | None,
    as_json: bool,
) -> None:
    """Check what a pull request changes, with the rules CI uses; without --base, check that the index is sound:
    every file, and that nothing that was listed in an earlier commit was changed or taken away.

    \b
    Example:
      adaptergit index check --base origin/main
      git fetch origin pull/7/head && adaptergit index check --base main --head FETCH_HEAD
    """
    from adaptergit.errors import PackageError, ReleaseError
    from adaptergit.index.maintain import check_index
    from adaptergit.index.propose import check_change
    from adaptergit.index.repository import IndexRepository
    from adaptergit.index.rules import TABLES, documentation
    from adaptergit.index.source_rules import SCOPE
    from adaptergit.settings import load_settings

    if rules:
        if as_json:
            tables = [{"about": title, "rules": {one.id: one.docs for one in some}} for title, some in TABLES]
            print_json({"scope": SCOPE, "tables": tables})
        else:
            click.echo(documentation().rstrip())
        return
    repository = IndexRepository(folder.resolve())
    if base is None:
        sound = check_index(repository, since=since)
        if as_json:
            print_json(sound)
        else:
            for path, why in (*sound.problems.items(), *sound.changed.items()):
                click.echo(f"{clean(path)}: {clean(why)}")
            good = not (sound.problems or sound.changed)
            held = f"{counted(sound.sources, 'source')}, {counted(sound.releases, 'release')}"
            click.echo(f"{held}{': sound' if good else ''}")
        if sound.changed:
            raise ReleaseError("what was listed was changed", hint="put it back: users refuse the source otherwise")
        if sound.problems:
            raise PackageError(f"not sound: {counted(len(sound.problems), 'file')}", where=str(repository.root))
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


@click.command("crawl")
@here_option
@click.option("--shard", default="0/1", show_default=True, help="i/n: every n-th source, beginning with i.")
@click.option("--jobs", default=8, show_default=True, help="Sources at a time.")
@click.argument("principals", nargs=-1)
@now_option
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

    with waiting("looking at sources", quiet=as_json):
        found = run(
            IndexRepository(folder.resolve()),
            load_settings(),
            only=principals or None,
            shard=(int(part), int(parts)),
            jobs=jobs,
            now=now.replace(tzinfo=UTC) if now else None,
            report=lambda one: None if as_json else tell(one),
        )
    if as_json:
        print_json({"sources": found})
        return
    added, broken = sum(len(one.added) for one in found), sum(bool(one.error or one.refused) for one in found)
    new, wrong = counted(added, "new release"), counted(broken, "source")
    click.echo(f"{counted(len(found), 'source')}: {new}, {wrong} with problems")


@click.command("build")
@here_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; default: dist/ in the index.")
@now_option
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
    with waiting("building", quiet=as_json):
        built = run(repository, out or repository.root / "dist", root=repository.current_root(), now=moment)
    for principal, why in built.skipped.items():
        step(clean(f"left out: {principal}: {why.partition(chr(10))[0]}"))
    if as_json:
        counts = {"sources": built.sources, "releases": built.releases, "changed": built.changed}
        print_json({**counts, "skipped": built.skipped})
    else:
        held = f"{counted(built.sources, 'source')}, {counted(built.releases, 'release')}"
        click.echo(f"{held}, {counted(built.changed, 'shard')} changed")


@click.command("sign")
@here_option
@click.option("--out", type=click.Path(path_type=Path), help="What was built; default: dist/ in the index.")
@click.option("--root", "version", type=int, help="Sign this root instead of the snapshot.")
@click.option("--again", is_flag=True, help="Give the snapshot a new time: nothing changed, but it would expire.")
@keys_option
@now_option
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


@click.command("site")
@here_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; default: dist/ in the index.")
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
    with waiting("writing pages", quiet=as_json):
        count = build_site(repository, out or repository.root / "dist", root=repository.current_root())
    if as_json:
        print_json({"adapters": count})
    else:
        click.echo(f"{counted(count, 'adapter')} {'has a page' if count == 1 else 'have pages'}")


@click.command("import-adapterhub")
@click.argument("clone", type=click.Path(path_type=Path))
@here_option
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

    with waiting("reading cards", quiet=as_json):
        done = run(IndexRepository(folder.resolve()), clone)
    if as_json:
        print_json(done)
        return
    click.echo(f"{done.cards} cards, {done.entries} entries")
    for name, count in done.without_place.items():
        click.echo(f"  no place for {clean(name)} ({count} cards)")
    for card, new in done.renamed.items():
        click.echo(f"  {clean(card)} is {new}")
    for card, fields in done.cut.items():
        click.echo(f"  too long, only the beginning is kept: {clean(', '.join(fields))} of {clean(card)}")
    for card, keys in done.unknown.items():
        click.echo(f"  {clean(card)} is built on {clean(', '.join(keys))}, which is not in the archive")
    for card, why in done.refused.items():
        click.echo(f"  not taken over: {clean(card)}: {clean(why)}")
