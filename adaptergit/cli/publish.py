"""``keygen`` and ``publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adaptergit.cli.output import clean, json_option, print_json, sending


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--comment", default="", help="Written into the public key, for people.")
@click.option("--ask-passphrase", is_flag=True, help="Protect the private key; ssh-keygen asks for the passphrase.")
@json_option
def keygen(path: Path | None, comment: str, ask_passphrase: bool, as_json: bool) -> None:
    """Make an ed25519 key to sign adapters with.

    Any existing SSH key works as well, in a file, an agent or a security key: name it with --key.

    \b
    Example:
      adaptergit keygen --comment "alice@example.org"
    """
    from adaptergit.settings import config_dir
    from adaptergit.trust import generate_key

    target = path or config_dir() / "signing_key"
    key = generate_key(target, comment=comment, ask_passphrase=ask_passphrase)
    if as_json:
        print_json({"path": str(key.path), "public_key": key.public.line, "fingerprint": key.public.fingerprint})
        return
    click.echo(f"private key  {key.path}")
    click.echo(f"public key   {key.public.line}")
    click.echo(f"fingerprint  {key.public.fingerprint}")


clone_option = click.option(
    "--repo", "clone", type=click.Path(path_type=Path), default=Path(), help="Clone to publish from; default: here."
)
_repository = click.option("--repository", help="Public name host/org/repo, where the remote's URL does not tell it.")
key_option = click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Private key file, or .pub file of a key in the agent; default: the settings' signing_key, or keygen's.",
)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", help="Adapter name; default: the card's.")
@click.option("--version", help="PEP 440 version; default: the card's.")
@clone_option
@key_option
@click.option(
    "--cosigner",
    "cosigners",
    multiple=True,
    type=click.Path(path_type=Path),
    help="One more key that signs; may be repeated.",
)
@click.option("--remote", default="origin", show_default=True, help="Git remote to push to.")
@click.option("--no-push", is_flag=True, help="Commit and tag here only.")
@_repository
@click.option("--pull-request", is_flag=True, help="Push to a new branch, where the branch itself is protected.")
@click.option(
    "--model-signing-key",
    type=click.Path(path_type=Path),
    help="PEM file of an elliptic-curve key: sign an OpenSSF bundle (model.sig) too.",
)
@click.option("--to", help="hf:org/repo[/folder]: publish to the Hugging Face Hub, without a clone.")
@click.option("--dry-run", is_flag=True, help="Show everything, change nothing.")
@json_option
def publish(
    paths: tuple[Path, ...],
    name: str | None,
    version: str | None,
    clone: Path,
    key: Path | None,
    cosigners: tuple[Path, ...],
    remote: str,
    no_push: bool,
    repository: str | None,
    pull_request: bool,
    model_signing_key: Path | None,
    to: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Sign the adapters in the folders PATHS and push each as a release, all in one push.

    The files appear on the branch under adapters/NAME/, and the tag adapters/NAME/VERSION holds exactly them.
    A failed push leaves the clone as it was.

    \b
    Example:
      adaptergit publish out/sst2 --name sst2 --version 1.0.0 --dry-run
      adaptergit publish out/sst2 --name sst2 --version 1.0.0
      adaptergit publish out/*
      adaptergit publish out/sst2 --to hf:acme/bert-sst2
    """
    from adaptergit.publish import publish as publish_one
    from adaptergit.publish import publish_all

    if to is not None and len(paths) > 1:
        raise click.UsageError("--to takes one folder at a time")
    options: dict[str, Any] = {
        "name": name,
        "version": version,
        "clone": clone,
        "key": key,
        "cosigners": cosigners,
        "remote": None if no_push else remote,
        "repository": repository,
        "pull_request": pull_request,
        "model_signing_key": model_signing_key,
        "dry_run": dry_run,
    }
    with sending(quiet=as_json) as report:
        options["report"] = report
        releases = publish_all(paths, **options) if to is None else [publish_one(paths[0], to=to, **options)]
    if as_json:
        print_json(releases[0] if len(releases) == 1 else {"releases": releases})
        return
    for release in releases:
        for file in release.files:
            click.echo(f"  {file.sha256[:12]}  {file.size:>12,}  {file.path}")
        done = "would publish" if dry_run else "tagged" if no_push else "published"
        click.echo(f"{done} {release.reference}")
    if (page := releases[0].pull_request) is not None:
        click.echo(f"propose {releases[0].branch.removeprefix('refs/heads/')}: {clean(page)}")
    if remote and not no_push and not dry_run:
        for release in releases:
            click.echo(f'load it: adaptergit.load("{release.reference.partition("#")[0]}")')


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--reason", default="", help="Why, for people; needed unless --undo.")
@click.option("--undo", is_flag=True, help="Take it back.")
@clone_option
@click.option("--remote", default="origin", show_default=True, help="Git remote to push to.")
@json_option
def yank(name: str, version: str, reason: str, undo: bool, clone: Path, remote: str, as_json: bool) -> None:
    """Withdraw the release VERSION of the adapter NAME.

    It stays where it is, for those who name its version or locked it; nobody else is given it. To make machines refuse
    it, revoke it: adaptergit trust revoke sha256:…

    \b
    Example:
      adaptergit yank sst2 1.0.0 --reason "trained on the test set"
    """
    from adaptergit.publish import yank as run

    if not reason and not undo:
        raise click.UsageError("say why with --reason")
    run(name, version, reason=reason, clone=clone, remote=remote, undo=undo)
    if as_json:
        print_json({"name": name, "version": version, "yanked": not undo})
    else:
        click.echo(f"{name} {version} is {'no longer ' if undo else ''}yanked")


@click.command()
@click.argument("new", type=click.Path(path_type=Path))
@key_option
@click.option(
    "--cosigner",
    "cosigners",
    multiple=True,
    type=click.Path(path_type=Path),
    help="One more old key that signs; may be repeated.",
)
@click.option("--keep", is_flag=True, help="The old key goes on counting, beside the new one.")
@clone_option
@click.option("--remote", default="origin", show_default=True, help="Git remote to push to.")
@_repository
@click.option("--pull-request", is_flag=True, help="Announce it in a new branch, where the branch itself is protected.")
@json_option
def rotate(
    new: Path,
    key: Path | None,
    cosigners: tuple[Path, ...],
    keep: bool,
    clone: Path,
    remote: str,
    repository: str | None,
    pull_request: bool,
    as_json: bool,
) -> None:
    """Sign the repository's releases with the key NEW from now on; the old key says so, and everybody follows.

    Releases signed before stay valid for those who had them. A stolen key is not rotated but revoked.

    \b
    Example:
      adaptergit keygen ~/.config/adaptergit/signing_key-2027
      adaptergit rotate ~/.config/adaptergit/signing_key-2027
    """
    from adaptergit.rotate import rotate as run
    from adaptergit.settings import config_dir

    told: list[str] = []
    done = run(
        new, key=key, cosigners=cosigners, keep=keep, clone=clone, remote=remote, repository=repository,
        pull_request=pull_request, report=told.append,
    )  # fmt: skip
    if as_json:
        added = [one.fingerprint for one in done.add]
        print_json({"repository": done.repository, "added": added, "removed": done.remove})
        return
    click.echo(f"{done.repository} is signed by {', '.join(one.fingerprint for one in done.add)} from now on")
    for line in told:
        click.echo(line)
    if pull_request:
        click.echo("merge the branch rotate/… into your own: it announces the key; users follow the tag")
    if done.remove:
        click.echo(f"no longer by {', '.join(done.remove)}")
    click.echo(f"publish with it: adaptergit publish … --key {new}")
    click.echo(f'or always: signing_key = "{new.absolute().as_posix()}" in {config_dir() / "config.toml"}')
