"""``init``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from adaptergit.cli.output import clean, json_option, print_json
from adaptergit.cli.publish import clone_option, key_option
from adaptergit.errors import AdaptergitError, quoted
from adaptergit.reference import expand

_LICENSE = "Apache-2.0"
_NONE = "none"


@dataclass(frozen=True)
class _Wanted:
    """What options say, and then answers."""

    key: Path | None
    new_key: bool
    remote_url: str | None
    purpose: str | None
    base_model: str | None
    license: str | None


@click.command()
@clone_option
@key_option
@click.option("--new-key", is_flag=True, help="Make a key to sign with: at --key, or where keygen does.")
@click.option("--remote-url", help="Where the clone pushes to, if it has no remote 'origin'.")
@click.option("--purpose", help="What the adapters are for, in a sentence: for the README.")
@click.option("--base-model", help="Model that most of them are for: for the README.")
@click.option("--license", help="SPDX expression that holds for most of them: for the README.")
@click.option("--yes", is_flag=True, help="Ask nothing: take the options and their defaults.")
@json_option
def init(
    clone: Path,
    key: Path | None,
    new_key: bool,
    remote_url: str | None,
    purpose: str | None,
    base_model: str | None,
    license: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Prepare a git clone for publishing adapters.

    Writes .gitattributes, so that git never changes a published byte, and your public key into
    .adaptergit/allowed_signers. You review and commit them. On a terminal it asks for what no option says and the clone
    does not have: which key, which remote, and what a README says. Nothing is written before the last answer.

    \b
    Example:
      git clone git@github.com:acme/adapters.git && cd adapters && adaptergit init
      adaptergit init --yes --new-key --purpose "Sentiment in twelve languages." --license Apache-2.0
    """
    from adaptergit.prepare import Purpose, initialise

    wanted = _Wanted(key, new_key, remote_url, purpose, base_model, license)
    if sys.stdin.isatty() and sys.stdout.isatty() and not yes and not as_json:
        try:
            wanted = _asked(clone, wanted)
        except click.Abort as error:
            click.echo(err=True)  # what was typed stands on a line of its own
            raise KeyboardInterrupt from error  # said as for every command
    written = initialise(
        clone,
        wanted.key,
        new_key=wanted.new_key,
        remote_url=wanted.remote_url,
        purpose=Purpose(wanted.purpose or "", wanted.base_model or "", wanted.license or ""),
    )
    if as_json:
        print_json({"written": written})
        return
    for path in written:
        click.echo(f"wrote {path}")
    git = "git" if expand(clone).resolve() == Path.cwd() else f"git -C {quoted(clone)}"
    click.echo(f"review and commit: {git} add --all && {git} commit" if written else "nothing to do")
    if wanted.key is not None:
        click.echo(f"publish with this key: adaptergit publish … --key {wanted.key}")


def _asked(clone: Path, wanted: _Wanted) -> _Wanted:
    """Ask for what is missing. Ctrl-C leaves everything as it was, since nothing has been done."""
    from adaptergit.git import Clone
    from adaptergit.prepare import Purpose, check_remote, state_of
    from adaptergit.publish import push_source

    there = state_of(Clone.at(clone))
    click.echo(f"Preparing {clean(there.root)}. Enter takes what stands in brackets.", err=True)
    if wanted.key is None and not wanted.new_key and not there.announced:
        url = wanted.remote_url or there.remote
        wanted = _which_key(wanted, push_source(url, there.root).principal if url is not None else None)
    if wanted.remote_url is None and there.remote is None:
        url = _answer("Remote to push to, a URL", _NONE, lambda text: check_remote(text, there.root))
        wanted = replace(wanted, remote_url=url or None)
    if there.readme:
        return wanted
    if wanted.purpose is None:
        wanted = replace(
            wanted,
            purpose=_answer("What the adapters are for, in a sentence", _NONE, lambda text: Purpose(text).check()),
        )
    if wanted.base_model is None:
        wanted = replace(
            wanted,
            base_model=_answer("Base model that most of them are for", _NONE, lambda text: Purpose("", text).check()),
        )
    if wanted.license is None and (wanted.purpose or wanted.base_model):
        wanted = replace(
            wanted, license=_answer("Licence, an SPDX expression", _LICENSE, lambda text: Purpose("", "", text).check())
        )
    return wanted


def _which_key(wanted: _Wanted, principal: str | None) -> _Wanted:
    from adaptergit.prepare import usable_keys
    from adaptergit.publish import default_key
    from adaptergit.settings import config_dir

    keys = usable_keys(principal=principal)
    for number, one in enumerate(keys, 1):
        click.echo(f"  {number}  {clean(one.path)}   {one.public.type} {one.public.fingerprint}", err=True)
    ours, fresh = default_key(), not (config_dir() / "signing_key").exists()
    if fresh:  # never overwritten, so there is one new key at most
        click.echo(f"  {len(keys) + 1}  a new key", err=True)
    most = len(keys) + fresh
    if most == 0:  # what there is was replaced, and is refused with what to do
        return wanted

    def parsed(text: str) -> int:
        if not text.strip().isdecimal() or not 1 <= int(text) <= most:
            raise click.UsageError("there is one key: 1" if most == 1 else f"a number from 1 to {most}")
        return int(text)

    default = 1 if ours and keys else most
    chosen = int(click.prompt("Key to sign with", value_proc=parsed, default=str(default), err=True))
    if chosen > len(keys):
        return replace(wanted, new_key=True)
    path = keys[chosen - 1].path
    return wanted if path == ours else replace(wanted, key=path)


def _answer(question: str, default: str, check: Callable[[str], object]) -> str:
    """Ask until the answer is one that will do."""

    def parsed(text: str) -> str:
        answer = "" if text.strip() == _NONE else text.strip()
        try:
            if answer:
                check(answer)
        except AdaptergitError as error:
            raise click.UsageError(clean(": ".join(filter(None, (error.what, error.hint))))) from error
        return answer

    return str(click.prompt(question, default=default, value_proc=parsed, err=True))
