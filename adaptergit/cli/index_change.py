"""``index``, for those who maintain one: change who and what counts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from adaptergit.cli.index_options import here_option, keys_option
from adaptergit.cli.output import json_option, print_json
from adaptergit.errors import TrustError, UsageError


@click.command("rotate")
@here_option
@click.option("--maintainer", "maintainers", multiple=True, help="All maintainers from now on; default: as before.")
@click.option("--online", multiple=True, help="All online keys from now on; default: as before.")
@click.option("--threshold", type=click.IntRange(1), help="How many maintainers must sign; default: as before.")
@keys_option
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
    from adaptergit.index.maintain import counts, rotate_root
    from adaptergit.index.repository import IndexRepository
    from adaptergit.pins import public_key
    from adaptergit.trust import SigningKey

    index = IndexRepository(folder.resolve())
    root = rotate_root(
        index,
        [SigningKey.open(path) for path in keys],
        maintainers=[public_key(one) for one in maintainers] or None,
        online=[public_key(one) for one in online] or None,
        threshold=threshold,
    )
    if as_json:
        print_json({"root": root.version, "sha256": root.digest})
    else:
        signing = f"others sign, and it counts: adaptergit index sign --root {root.version} --key …"
        click.echo(f"wrote roots/{root.version}.json; {'it counts' if counts(index, root) else signing}")


@click.command("recover")
@click.argument("repository")
@click.option("--new-key", "new", multiple=True, required=True, help="Public key line, or .pub file.")
@click.option("--reason", required=True, help="Why, for everybody.")
@here_option
@keys_option
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
@here_option
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
    try:
        (parsed,) = parse_revocations(one.line().encode(), source="revoked.jsonl")
    except TrustError as error:
        raise UsageError(error.what, where=what, hint=error.hint) from error
    IndexRepository(folder.resolve()).revoke(parsed)
    if as_json:
        print_json({"revoked": what, "severity": one.severity})
    else:
        click.echo(f"{what} is {one}; build and sign the index to tell everybody")


@click.command("yank")
@click.argument("reference")
@click.option("--reason", default="", help="Why, for everybody; needed unless --undo.")
@click.option("--undo", is_flag=True, help="Take it back.")
@here_option
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
