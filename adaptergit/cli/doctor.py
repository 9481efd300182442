"""``doctor`` and ``completion``."""

from __future__ import annotations

import sys

import click

from adaptergit.cli.output import clean, json_option, print_json, waiting
from adaptergit.errors import counted

_COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look at everything adaptergit needs here, and say what mends what is wrong. Exit code 1 if something is.

    git, ssh-keygen, your key, settings, trusted keys, indexes, the store, PyTorch, base models. Changes nothing and
    touches no network.

    \b
    Example:
      adaptergit doctor
    """
    from adaptergit.doctor import OK, PROBLEM
    from adaptergit.doctor import doctor as run

    with waiting("looking around", quiet=as_json):
        found = run()
    wrong = [one for one in found if one.level == PROBLEM]
    if as_json:
        print_json({"healthy": not wrong, "findings": found})
    else:
        for one in found:
            click.secho(f"{one.level:<8}", fg=_COLOURS[one.level], nl=False)
            click.echo(f" {one.topic:<12} {clean(one.text)}")
            if one.hint:
                click.echo(f"{'':<21} -> {clean(one.hint)}")
        noted = any(one.level != OK for one in found)
        well = "nothing is broken; the notes say what is still missing" if noted else "all is well"
        click.echo(counted(len(wrong), "problem") if wrong else well, err=True)
    if wrong:
        sys.exit(1)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that makes SHELL complete adaptergit's commands and options.

    \b
    Example:
      echo 'eval "$(adaptergit completion bash)"' >> ~/.bashrc
      echo 'eval "$(adaptergit completion zsh)"' >> ~/.zshrc
      adaptergit completion fish > ~/.config/fish/completions/adaptergit.fish
    """
    from click.shell_completion import get_completion_class

    from adaptergit.cli import main

    made_by = get_completion_class(shell)
    assert made_by is not None
    script = made_by(main, {}, "adaptergit", "_ADAPTERGIT_COMPLETE").source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
