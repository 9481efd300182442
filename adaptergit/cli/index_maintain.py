"""``index``, for those who maintain one: begin, check, review, crawl, build, sign, publish, and change who counts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from adaptergit.cli.output import clean, json_option, print_json, step, waiting

_here = click.option(
    "--repo", "folder", type=click.Path(path_type=Path), default=Path(), help="Folder of the index; default: here."
)
_keys = click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), required=True, help="Key to sign with."
)
_now = click.option("--now", type=click.DateTime(), hidden=True, help="Instead of the clock (UTC).")
_forge = click.option(
    "--forge", type=click.Choice(["github", "gitlab", "gitea"]), help="Default: from the host's name."
)


@click.command("init")
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


@click.command("check")
@_here
@click.option("--base", help="Commit of the index's own branch; default: check the whole index, without network.")
@click.option("--since", help="Of the whole index: commit from which on nothing that was listed may have changed.")
@click.option("--head", help="Commit to be merged; default: the files as they lie here.")
@click.option("--proposed", type=click.DateTime(), help="When the pull request was opened (UTC).")
@click.option("--comment", type=click.Path(path_type=Path), help="Write the report for the pull request to this file.")
@click.option("--rules", is_flag=True, help="Print the rules and do nothing else.")
@_now
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
    from adaptergit.index.rules import documentation
    from adaptergit.settings import load_settings

    if rules:
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
            click.echo(f"{sound.sources} sources, {sound.releases} releases{': sound' if good else ''}")
        if sound.changed:
            raise ReleaseError("what was listed was changed", hint="put it back: users refuse the source otherwise")
        if sound.problems:
            raise PackageError(f"{len(sound.problems)} files are not sound", where=str(repository.root))
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


@click.command("review")
@click.argument("numbers", nargs=-1, type=click.IntRange(1))
@_here
@click.option("--of", help="URL of the index, to be cloned for this; default: the clone that is here.")
@click.option("--remote", default="origin", show_default=True, help="Git remote with the pull requests.")
@click.option("--out", type=click.Path(path_type=Path), help="Write what was found, for 'index settle'.")
@click.option("--comment", type=click.Path(path_type=Path), help="Append the reports to this file, as Markdown.")
@_forge
@json_option
def review(
    numbers: tuple[int, ...],
    folder: Path,
    of: str | None,
    remote: str,
    out: Path | None,
    comment: Path | None,
    forge: str | None,
    as_json: bool,
) -> None:
    """Judge the pull requests NUMBERS, or all that are open.

    Needs no secret; nothing of a proposal is checked out or run. With numbers, the exit code is 9 if one of them breaks
    a rule.

    \b
    Example:
      adaptergit index review 7 --of https://github.com/community/index.git
      adaptergit index review --out reviews.json
    """
    from adaptergit.errors import ReleaseError
    from adaptergit.review import review as run
    from adaptergit.review import write_reviews
    from adaptergit.submit import TOKEN

    token = os.environ.get(TOKEN)
    with waiting("looking at pull requests", quiet=as_json):
        found = run(numbers, clone=folder, of=of, remote=remote, forge=forge, token=token)
    if out is not None:
        write_reviews(out, found)
    if comment is not None:
        with comment.open("a", encoding="utf-8") as file:
            file.writelines(f"{one.report}\n" for one in found)
    if as_json:
        print_json({"reviews": found})
    for one in found if not as_json else ():
        click.echo(f"#{one.number} at {one.head[:12]}: {'keeps the rules' if one.passed else 'breaks rules'}")
        if not one.passed:
            click.echo(clean_lines(one.report))
    if numbers and not all(one.passed for one in found):
        raise ReleaseError("a pull request breaks rules of the index", hint="each ❌ says what to mend")


@click.command("settle")
@click.argument("reviews", type=click.Path(path_type=Path))
@_here
@click.option("--remote", default="origin", show_default=True, help="Git remote with the pull requests.")
@click.option("--merge", is_flag=True, help="Merge what keeps the rules and has waited; default: only comment.")
@_forge
@json_option
def settle(reviews: Path, folder: Path, remote: str, merge: bool, forge: str | None, as_json: bool) -> None:
    """Comment on the pull requests that 'index review' judged, and merge those that have waited.

    Needs a token in ADAPTERGIT_FORGE_TOKEN. The waiting period counts from the first comment on a commit, and is the
    index's own (waiting_hours in policy.yaml); a push begins it anew.

    \b
    Example:
      adaptergit index review --out reviews.json && adaptergit index settle reviews.json --merge
    """
    from adaptergit.errors import UsageError
    from adaptergit.review import read_reviews
    from adaptergit.review import settle as run
    from adaptergit.submit import TOKEN

    token = os.environ.get(TOKEN)
    if not token:
        raise UsageError("there is no token to comment with", hint=f"set {TOKEN}")
    done = run(read_reviews(reviews), clone=folder, remote=remote, forge=forge, token=token, merge=merge)
    if as_json:
        print_json({"settled": done})
        return
    for one in done:
        until = f" until {one.until}" if one.until else ""
        click.echo(f"#{one.number} {one.outcome}{until}{': ' + clean(one.error) if one.error else ''}")


def clean_lines(text: str) -> str:
    """Return a report without control characters, line by line."""
    return "\n".join(clean(line) for line in text.splitlines())


@click.command("crawl")
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

    found = run(
        IndexRepository(folder.resolve()),
        load_settings(),
        only=principals or None,
        shard=(int(part), int(parts)),
        jobs=jobs,
        now=now.replace(tzinfo=UTC) if now else None,
        report=lambda one: None if as_json else _tell(one),
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


@click.command("build")
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
    for principal, why in built.skipped.items():
        step(clean(f"left out: {principal}: {why.partition(chr(10))[0]}"))
    if as_json:
        counts = {"sources": built.sources, "releases": built.releases, "changed": built.changed}
        print_json({**counts, "skipped": built.skipped})
    else:
        click.echo(f"{built.sources} sources, {built.releases} releases, {built.changed} shards changed")


@click.command("sign")
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


@click.command("publish")
@_here
@click.option("--out", type=click.Path(path_type=Path), help="Where to build; default: dist/ in the index.")
@click.option("--key", type=click.Path(path_type=Path), help="The online key.")
@click.option("--key-env", help="Environment variable that holds the online key, as CI keeps secrets.")
@click.option("--remote", default="origin", show_default=True, help="Git remote to push to; empty: push nothing.")
@click.option("--branch", help="The index's own branch; default: the one that is checked out.")
@click.option("--dist-branch", default="dist", show_default=True, help="Branch that gets what was built; empty: none.")
@_now
@json_option
def publish(
    folder: Path,
    out: Path | None,
    key: Path | None,
    key_env: str | None,
    remote: str,
    branch: str | None,
    dist_branch: str,
    now: datetime | None,
    as_json: bool,
) -> None:
    """Crawl, commit what is new, build, sign, and push both the index and what is served: what CI does every few hours.

    Pushes with git's own credentials, or with a token in ADAPTERGIT_FORGE_TOKEN.

    \b
    Example:
      adaptergit index publish --key ~/keys/online
      adaptergit index publish --key-env INDEX_KEY --out public --dist-branch ""
    """
    from adaptergit.index.publishing import publish_index
    from adaptergit.index.repository import IndexRepository
    from adaptergit.settings import load_settings
    from adaptergit.submit import TOKEN
    from adaptergit.trust import SigningKey

    with _online_key(key, key_env) as path:
        done = publish_index(
            IndexRepository(folder.resolve()),
            load_settings(),
            SigningKey.open(path),
            out=out,
            remote=remote or None,
            branch=branch,
            dist_branch=dist_branch or None,
            token=os.environ.get(TOKEN),
            now=now.replace(tzinfo=UTC) if now else None,
            report=lambda one: None if as_json else _tell(one),
        )
    if as_json:
        added = sum(len(one.added) for one in done.crawled)
        counts = {"sources": done.built.sources, "releases": done.built.releases, "adapters": done.adapters}
        print_json({**counts, "added": added, "problems": done.problems, "pushed": done.pushed})
        return
    for where, why in done.problems.items():
        step(clean(f"left out: {where}: {why.partition(chr(10))[0]}"))
    click.echo(
        f"{done.built.sources} sources, {done.built.releases} releases, {done.adapters} adapters with pages"
        f"{': pushed' if done.pushed else ''}"
    )


@contextmanager
def _online_key(path: Path | None, variable: str | None) -> Iterator[Path]:
    """Give the key's file; of a key in the environment, one that nobody else can read and that is gone afterwards."""
    if (path is None) == (variable is None):
        raise click.UsageError("name the online key: --key FILE, or --key-env VARIABLE")
    if path is not None:
        yield path
        return
    text = os.environ.get(variable or "")
    if not text:
        raise click.UsageError(f"the environment has no {variable}")
    with tempfile.TemporaryDirectory(prefix="adaptergit-key-") as folder:  # only its owner may look into it
        file = Path(folder) / "key"
        file.touch(mode=0o600)
        file.write_text(text.strip() + "\n", "utf-8")
        yield file


@click.command("rotate")
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


@click.command("recover")
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


@click.command("revoke")
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


@click.command("yank")
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


@click.command("site")
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


@click.command("import-adapterhub")
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
    for card, fields in done.cut.items():
        click.echo(f"  too long, only the beginning is kept: {clean(', '.join(fields))} of {clean(card)}")
    for card, keys in done.unknown.items():
        click.echo(f"  {clean(card)} is built on {clean(', '.join(keys))}, which is not in the archive")
    for card, why in done.refused.items():
        click.echo(f"  not taken over: {clean(card)}: {clean(why)}")
