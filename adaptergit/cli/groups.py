"""Groups of commands that say what was probably meant."""

from __future__ import annotations

import click

from adaptergit.errors import did_you_mean

CALLED = "adaptergit.called"
"""Where the contexts of a call keep the command, for whoever speaks of it after it has ended."""


def with_switches(command: click.Command) -> click.Command:
    """Let a command take ``--quiet`` and ``--verbose``; they mean the same there as before it."""

    def said(context: click.Context, switch: click.Parameter, value: bool) -> None:
        if value:
            context.find_root().params[str(switch.name)] = True

    if not isinstance(command, click.Group) and all(one.name != "quiet" for one in command.params):
        command.params += [
            click.Option(spelt, is_flag=True, hidden=True, expose_value=False, callback=said)
            for spelt in (["-q", "--quiet"], ["-v", "--verbose"])
        ]
    return command


class Group(click.Group):
    """A group that knows its commands' near misses, and whose commands take what the program takes before them."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, with the switches that may stand behind it too."""
        super().add_command(with_switches(cmd), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, or say which one may be meant."""
        name = str(args[0])
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = self.suggestion(ctx, name)
            ctx.fail(f"No such command {name!r}." + (f" {near[0].upper()}{near[1:]}" if near else ""))
        ctx.meta[CALLED] = f"{ctx.command_path} {name}"
        return super().resolve_command(ctx, args)

    def suggestion(self, ctx: click.Context, name: str) -> str | None:
        """Return what a name that is no command may stand for."""
        return did_you_mean(name, self.list_commands(ctx))
