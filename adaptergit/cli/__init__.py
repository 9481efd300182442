"""The command line. Thin: each command parses, calls one function of the library, and prints.

Commands are imported when they are run, so that ``adaptergit --help`` is quick and starts no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from adaptergit._version import __version__
from adaptergit.cli.groups import Group, with_switches
from adaptergit.cli.output import report, run_safely, write_any_letter
from adaptergit.errors import UsageError

# name: (module, one line for --help). The order is the order of a first hour with adaptergit.
_COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Train, publish, load and attack an adapter, for real, on this machine."),
    "keygen": ("publish", "Make an ed25519 key to sign adapters with."),
    "init": ("init", "Prepare a git clone for publishing adapters."),
    "train": ("train", "Train an adapter on a file and write a package folder."),
    "eval": ("train", "Score an adapter on a file, and check its card's numbers."),
    "publish": ("publish", "Sign adapters and push them as releases."),
    "yank": ("publish", "Withdraw a release."),
    "rotate": ("publish", "Sign with another key from now on."),
    "load": ("load", "Fetch and verify an adapter, and say what it is."),
    "predict": ("predict", "Run a published adapter over texts."),
    "serve": ("serve", "Answer requests for many adapters over HTTP."),
    "verify": ("load", "Verify a release or a package folder, step by step."),
    "info": ("load", "Show an adapter's card."),
    "summary": ("compare", "Say what an adapter is: parameters, placement, sizes."),
    "diff": ("compare", "Show what differs between two adapters."),
    "convert": ("convert", "Bring a checkpoint from one library's format to another's."),
    "export": ("convert", "Write a published adapter for vLLM, PEFT or AdapterHub's library."),
    "card": ("card", "Make, change, check and render the card of an adapter."),
    "search": ("search", "Search the indexes you have added."),
    "show": ("search", "Show what your indexes know of an adapter."),
    "inspect": ("inspect", "Show where adapters go in a model."),
    "index": ("index", "Add, update and maintain indexes."),
    "lock": ("lock", "Write down exactly which releases are used."),
    "sync": ("lock", "Bring every locked release into the store."),
    "mirror": ("mirror", "Copy releases to another place."),
    "bundle": ("mirror", "Carry releases to a machine without network."),
    "store": ("store", "See and tidy what was fetched."),
    "trust": ("trust", "See and change whose signatures count."),
    "doctor": ("doctor", "Look at everything needed here, and say what mends it."),
    "completion": ("doctor", "Print the script that completes commands in a shell."),
}


# What people say elsewhere.
_ALIASES = {
    **dict.fromkeys(("download", "get", "install", "pull", "clone"), "load"),
    **dict.fromkeys(("push", "upload", "release"), "publish"),
    **dict.fromkeys(("list", "find"), "search"),
    **dict.fromkeys(("delete", "withdraw", "unpublish"), "yank"),
    **dict.fromkeys(("config", "settings", "check", "status"), "doctor"),
    "import": "convert",
    "fetch": "load",
}


class _Lazy(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"adaptergit.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, {"eval": "evaluate"}.get(cmd_name, cmd_name))
        return with_switches(command)

    def suggestion(self, ctx: click.Context, name: str) -> str | None:
        """Also name the groups that have such a command, and our word for what others call so."""
        groups = {one: self.get_command(ctx, one) for one in _COMMANDS}
        inside = [
            f"{one} {name}" for one, group in groups.items() if isinstance(group, Group) and name in group.commands
        ]
        known = [*inside, *([_ALIASES[name]] if name in _ALIASES else [])]
        if not known:
            return super().suggestion(ctx, name)
        return f"did you mean {' or '.join(repr(one) for one in known)}?"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def main(self, *args: Any, **options: Any) -> Any:
        """Answer a wrong call in JSON too, where that was asked for."""
        write_any_letter()
        if "--json" not in sys.argv:
            return super().main(*args, **options)
        try:
            done = super().main(*args, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "adaptergit"
            report(UsageError(error.format_message(), hint=f"{command} --help"))
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(1)
        sys.exit(done if isinstance(done, int) else 0)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``--json`` before the command too."""
        before = next((at for at, arg in enumerate(args) if not arg.startswith("-")), 0)
        if "--json" in args[:before]:
            rest = [arg for at, arg in enumerate(args) if at >= before or arg != "--json"]
            end = rest.index("--") if "--" in rest else len(rest)
            args = [*rest[:end], "--json", *rest[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        return run_safely(lambda: super(_Lazy, self).invoke(ctx))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="adaptergit")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing beside results and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also print where an error comes from, and what libraries warn of.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Publish, find, verify and load transformer adapters, with nothing but git.

    What an adapter is: show asks your indexes, info its card, summary its weights too; load also verifies and keeps it.
    --quiet, --verbose and --json may stand before or behind the command.

    \b
    Exit codes: 0 done · 1 other error
    2 wrong usage · 3 invalid package
    4 refused by verification, or a key is of no use
    5 not found · 6 git, network or disk failed
    7 does not fit the model · 8 unusable data
    9 release refused · 130 interrupted (SIGTERM: 143)
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        ctx.color = False
