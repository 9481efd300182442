"""``trust``: the user's pins, which are OpenSSH allowed-signers lines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from adaptergit.cli.groups import Group
from adaptergit.cli.output import json_option, print_json
from adaptergit.errors import UsageError, counted

if TYPE_CHECKING:
    from adaptergit.trust import AllowedSigner


@click.group(cls=Group)
def trust() -> None:
    """See and change whose signatures count.

    \b
    Example:
      adaptergit trust add github.com/acme/adapters "ssh-ed25519 AAAA… alice"
      adaptergit trust ls
    """


@trust.command("add")
@click.argument("repository")
@click.argument("key")
@json_option
def add(repository: str, key: str, as_json: bool) -> None:
    """Let KEY (a public key line, or a .pub file) sign for REPOSITORY, a name like github.com/acme/adapters or a glob.

    \b
    Example:
      adaptergit trust add "github.com/acme/*" acme.pub
    """
    from adaptergit.indexes import revoked as revoked_by_indexes
    from adaptergit.pins import pin_key, warn_of_revocations
    from adaptergit.settings import load_settings

    signer = pin_key(repository, key)
    warn_of_revocations(signer, revoked_by_indexes(load_settings()))
    if as_json:
        print_json({"repository": repository, "fingerprint": signer.key.fingerprint})
    else:
        click.echo(f"{signer.key.fingerprint} may sign for {', '.join(signer.principals)}")


@trust.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List whose signatures count and which unsigned checkpoints are pinned, and where that is written.

    \b
    Example:
      adaptergit trust ls --json
    """
    from adaptergit.pins import known_checkpoints, known_revocations, known_signers
    from adaptergit.settings import load_settings

    settings = load_settings()
    signers, checkpoints = known_signers(settings), known_checkpoints(settings)
    revocations, now = known_revocations(settings), datetime.now(UTC)
    notes = [[*_limits(s, now), *(str(one) for one in revocations if one.key == s.key.fingerprint)] for s in signers]
    if as_json:
        print_json(
            {
                "signers": [
                    {"principals": s.principals, "fingerprint": s.key.fingerprint, "source": s.source, "notes": said}
                    for s, said in zip(signers, notes, strict=True)
                ],
                "checkpoints": {place: sorted(pinned) for place, pinned in checkpoints.items()},
            }
        )
        return
    for signer, said in zip(signers, notes, strict=True):
        click.echo("\t".join((", ".join(signer.principals), signer.key.fingerprint, signer.source, *said)))
    for place, pinned in checkpoints.items():
        for identity in sorted(pinned):
            click.echo(f"{place}\tsha256:{identity}\t{settings.checkpoints_path}")
    if not signers and not checkpoints:
        click.echo("nobody yet: adaptergit trust add REPOSITORY KEY", err=True)


@trust.command("remove")
@click.argument("what")
@json_option
def remove(what: str, as_json: bool) -> None:
    """Remove every pin of WHAT, a key, or that of a repository or an unsigned checkpoint, from your pins.

    \b
    Example:
      adaptergit trust remove SHA256:qzN…
      adaptergit trust remove github.com/acme/adapters
      adaptergit trust remove huggingface.co/acme/bert-sst2@main
    """
    from adaptergit.pins import unpin

    count = unpin(what)
    if as_json:
        print_json({"removed": count})
    else:
        click.echo(f"removed {counted(count, 'pin')}")


@trust.command("revoke")
@click.argument("what")
@click.option("--since", type=click.DateTime(), help="For a key: what this machine saw before then still counts (UTC).")
@click.option("--warn", is_flag=True, help="Do not refuse; say so at every load.")
@click.option("--reason", default="", help="Shown whenever it matters.")
@json_option
def revoke(what: str, since: datetime | None, warn: bool, reason: str, as_json: bool) -> None:
    """Let WHAT, a key (SHA256:…) or a release (sha256: and its digest), no longer count on this machine.

    \b
    Example:
      adaptergit trust revoke SHA256:qzN… --since 2026-11-01 --reason "stolen laptop"
      adaptergit trust revoke sha256:9f86… --reason "poisoned data"
    """
    from adaptergit.pins import revoke as run

    moment = None if since is None else since.replace(tzinfo=UTC)
    one = run(what, since=moment, severity="warn" if warn else "refuse", reason=reason)
    if as_json:
        print_json({"revoked": what, "severity": one.severity, "file": one.source})
    else:
        click.echo(f"{what} is {one}")


@trust.command("explain")
@click.argument("repository")
@json_option
def explain(repository: str, as_json: bool) -> None:
    """Say what is asked of releases of REPOSITORY (host/org/repo, or any address), whose signatures count, and why.

    \b
    Example:
      adaptergit trust explain github.com/acme/adapters
    """
    from adaptergit.indexes import revoked as revoked_by_indexes
    from adaptergit.indexes import word_on
    from adaptergit.package.names import PRINCIPAL
    from adaptergit.pins import known_checkpoints, known_revocations, known_signers, principal_of
    from adaptergit.reference import check_no_adapter
    from adaptergit.settings import load_settings

    settings = load_settings()
    check_no_adapter(repository)
    asked, repository = repository, principal_of(repository, settings)
    if not PRINCIPAL.fullmatch(repository):
        hint = "write host/org/repo, as its releases name it (adaptergit info REFERENCE), or its address on a server"
        raise UsageError(f"{asked!r} is not the public name of a repository", hint=hint)
    level, threshold = settings.policy_for(repository), settings.threshold_for(repository)
    signers = [s for s in known_signers(settings) if s.names(repository)]
    word = word_on(repository, settings)
    if not signers:
        signers, threshold = word.signers, max(threshold, word.threshold)
    now, every = datetime.now(UTC), (*known_revocations(settings), *revoked_by_indexes(settings))
    revoked = {
        s.key.fingerprint: sorted(
            (one for one in every if one.speaks_of(s.key.fingerprint, repository)), key=lambda one: one.severity
        )
        for s in signers
    }
    places = {
        place: sorted(pinned)
        for place, pinned in known_checkpoints(settings).items()
        if place.startswith((f"{repository}@", f"{repository}/"))
    }
    if as_json:
        print_json(
            {
                "repository": repository,
                "level": level,
                "threshold": threshold,
                "signers": [
                    {
                        "fingerprint": s.key.fingerprint,
                        "source": s.source,
                        "limits": _limits(s, now),
                        "revoked": "; ".join(map(str, revoked[s.key.fingerprint])) or None,
                    }
                    for s in signers
                ],
                "checkpoints": places,
            }
        )
        return
    click.echo(f"repository   {repository}")
    click.echo(f"policy       {level}, {threshold} {'key' if threshold == 1 else 'different keys'}")
    for signer in signers:
        gone, limits = revoked[signer.key.fingerprint], _limits(signer, now)
        said = [*limits, *(f"{one}{'; that only warns' if one.severity == 'warn' else ''}" for one in gone)]
        over = limits or any(one.severity == "refuse" and one.since is None for one in gone)
        note = f", but {'; '.join(said)}" if said else ""
        verb = "may not sign" if over else "may sign    "
        click.echo(f"{verb} {signer.key.fingerprint} ({signer.source}){note}")
    for place, pinned in places.items():
        click.echo(f"unsigned     {place}: {', '.join(f'sha256:{identity}' for identity in pinned)}")
    if not signers:
        click.echo("may sign     nobody you know" + ("; the first key seen is pinned" if level == "tofu" else ""))


def _limits(signer: AllowedSigner, now: datetime) -> list[str]:
    """Say why a key may not sign releases now."""
    from adaptergit.trust import MANIFEST_NAMESPACE

    why = signer.refusal(MANIFEST_NAMESPACE, now)
    return [] if why is None else [why]
