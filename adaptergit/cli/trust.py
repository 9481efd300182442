"""``trust``: the user's pins, which are OpenSSH allowed-signers lines."""

from __future__ import annotations

import click

from adaptergit.cli.output import json_option, print_json


@click.group()
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
    from adaptergit.pins import pin_key

    signer = pin_key(repository, key)
    if as_json:
        print_json({"repository": repository, "fingerprint": signer.key.fingerprint})
    else:
        click.echo(f"{signer.key.fingerprint} may sign for {repository}")


@trust.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List whose signatures count, and where that is written.

    \b
    Example:
      adaptergit trust ls --json
    """
    from adaptergit.pins import known_signers
    from adaptergit.settings import load_settings

    signers = known_signers(load_settings())
    if as_json:
        print_json(
            {
                "signers": [
                    {"principals": s.principals, "fingerprint": s.key.fingerprint, "source": s.source} for s in signers
                ]
            }
        )
        return
    for signer in signers:
        click.echo(f"{', '.join(signer.principals)}\t{signer.key.fingerprint}\t{signer.source}")
    if not signers:
        click.echo("nobody yet: adaptergit trust add REPOSITORY KEY", err=True)


@trust.command("remove")
@click.argument("fingerprint")
@json_option
def remove(fingerprint: str, as_json: bool) -> None:
    """Remove every pin of a key from your pins.

    \b
    Example:
      adaptergit trust remove SHA256:qzN…
    """
    from adaptergit.pins import unpin_key

    count = unpin_key(fingerprint)
    if as_json:
        print_json({"removed": count})
    else:
        click.echo(f"removed {count} pins")
