"""``index``, for the CI of one: review and settle pull requests, publish."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from adaptergit.cli.index_options import here_option, now_option, tell
from adaptergit.cli.output import clean, json_option, print_json, step, waiting
from adaptergit.errors import counted

_forge = click.option(
    "--forge", type=click.Choice(["github", "gitlab", "gitea"]), help="What the host runs; default: told by its name."
)


@click.command("review")
@click.argument("numbers", nargs=-1, type=click.IntRange(1))
@here_option
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
@here_option
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
    with waiting("commenting", quiet=as_json):
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


@click.command("publish")
@here_option
@click.option("--out", type=click.Path(path_type=Path), help="Where to build; default: dist/ in the index.")
@click.option("--key", type=click.Path(path_type=Path), help="The online key.")
@click.option("--key-env", help="Environment variable that holds the online key, as CI keeps secrets.")
@click.option("--remote", default="origin", show_default=True, help="Git remote to push to; empty: push nothing.")
@click.option("--branch", help="The index's own branch; default: the one that is checked out.")
@click.option("--dist-branch", default="dist", show_default=True, help="Branch that gets what was built; empty: none.")
@now_option
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
            report=lambda one: None if as_json else tell(one),
        )
    if as_json:
        added = sum(len(one.added) for one in done.crawled)
        counts = {"sources": done.built.sources, "releases": done.built.releases, "adapters": done.adapters}
        print_json({**counts, "added": added, "problems": done.problems, "pushed": done.pushed})
        return
    for where, why in done.problems.items():
        step(clean(f"left out: {where}: {why.partition(chr(10))[0]}"))
    click.echo(
        f"{counted(done.built.sources, 'source')}, {counted(done.built.releases, 'release')}, "
        f"{counted(done.adapters, 'adapter')} with pages"
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
