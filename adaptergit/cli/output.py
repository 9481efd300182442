"""What commands share: errors without tracebacks, JSON for machines, progress for people."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adaptergit.cli.groups import CALLED
from adaptergit.errors import (
    AdaptergitError,
    AdaptergitWarning,
    DataError,
    ModelError,
    NotFoundError,
    PackageError,
    ReleaseError,
    TransportError,
    TrustError,
    UsageError,
    printable,
    without_secrets,
)
from adaptergit.progress import Progress, watching

if TYPE_CHECKING:
    from rich.text import Text

T = TypeVar("T")
_HINTS = {
    errno.ENOENT: "look whether the path is right (ls), or name another place",
    errno.EACCES: "look at who may read and write there (ls -ld), or name another place",
    errno.EROFS: "nothing can be written there: name another place",
    errno.ENOSPC: "free some space",
}
_REMEDIES: dict[type[AdaptergitError], str] = {
    UsageError: "{command} --help shows how it is written",
    PackageError: "if it is yours, mend what is named (adaptergit card validate FOLDER looks at a package); "
    "if not, tell whoever made it",
    TrustError: "if that is a file of yours, mend it; if not, load nothing of it, and ask whoever published it",
    NotFoundError: "look at how it is written; adaptergit search finds adapters, adaptergit store ls what is here",
    TransportError: "try again; adaptergit doctor looks at git, ssh, indexes and the store",
    ModelError: "adaptergit inspect MODEL shows what the model has, and where adapters go in it",
    DataError: "mend what is named in the data, and run the command again",
    ReleaseError: "nothing was changed: mend what is named, and run the command again",
    AdaptergitError: "adaptergit doctor looks at everything that is needed on this machine",
}
"""What is said to whoever meets an error that has no hint of its own."""
_RECENT = 5.0
"""Seconds."""
_SOON = 1.0
"""Seconds that something takes without a word."""
_SPINNER, _SOME = 3, 20
"""Characters, and what is left of a text at least."""
_ERASE = "\r\x1b[K"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def write_any_letter() -> None:
    """Let no letter be an error of the terminal; into files and pipes, Windows writes UTF-8 as others do."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            unset = os.name == "nt" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if unset else None, errors="backslashreplace")


def run_safely(action: Callable[[], T]) -> T:
    """Run a command; an :class:`AdaptergitError` becomes a message and its exit code."""
    warnings.showwarning = _show_warning
    try:
        with _ended_as_by_ctrl_c():
            return action()
    except AdaptergitError as error:
        report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stopped:
        click.echo("; ".join(["interrupted", *getattr(stopped, "__notes__", ())]), err=True)
        sys.exit(128 + (stopped.number if isinstance(stopped, _Ended) else signal.SIGINT))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        said, where = error.strerror or str(error), str(error.filename) if error.filename else None
        if isinstance(error, shutil.Error) and error.args and error.args[0]:  # of every file that was not copied
            _, where, said = error.args[0][0]
        hint = _HINTS.get(error.errno or 0) or ("free some space" if "space" in said else None)
        what = TransportError(said, where=where, hint=hint)
        report(what)
        sys.exit(what.exit_code)


class _Ended(KeyboardInterrupt):
    """Another signal than Ctrl-C's that ends a command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let whoever ends a command (a supervisor, a closed terminal) leave nothing half done either, and no git running.

    Not in one of several processes that train: whoever started them ends those that wait for one that failed.
    """

    def end(number: int, _: object) -> None:
        raise _Ended(number)

    wanted = [found for name in ("SIGTERM", "SIGHUP") if (found := getattr(signal, name, None)) is not None]
    alone = threading.current_thread() is threading.main_thread() and "LOCAL_RANK" not in os.environ
    ours = [number for number in wanted if alone and signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def asked_for(flag: str) -> bool:
    """Tell whether ``--quiet`` or ``--verbose`` was said, before the command."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get(flag))


def report(error: AdaptergitError) -> None:
    """Print an error as it was asked for, for people or as JSON; one without a hint gets that of its class."""
    if error.hint is None:
        context = click.get_current_context(silent=True)
        called = context.meta.get(CALLED, context.command_path) if context else "adaptergit"
        error.hint = next(_REMEDIES[one] for one in type(error).__mro__ if one in _REMEDIES).format(command=called)
    if asked_for("verbose"):
        for line in "".join(traceback.format_exception(error)).splitlines():
            click.echo(clean(without_secrets(line)), err=True)
    if "--json" in sys.argv:
        detail: dict[str, Any] = {
            "type": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "hint": error.hint,
        }
        if notes := [clean(note) for note in getattr(error, "__notes__", ())]:
            detail["notes"] = notes
        if isinstance(error, TrustError) or error.steps:
            detail["passed"] = list(error.steps)
        try:
            click.echo(_as_json({"error": detail}))
        except OSError:  # it is stdout that cannot be written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            show_error(error)
    else:
        show_error(error)


def show_error(error: AdaptergitError) -> None:
    """Print an error as people read it: what happened, where, and what to do."""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo("\n".join(clean(line) for line in str(error).split("\n")), err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {clean(note)}", err=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON object, keys in their own order; without indent, on one line."""
    click.echo(_as_json(value, indent))


def _as_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as people read it: in their own letters, but nothing that drives a terminal."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def clean(text: object) -> str:
    """Return somebody else's text without control characters: a card must not drive the terminal or forge lines."""
    return printable(str(text))


def step(text: str) -> None:
    """Print a line about what was just done, beside the result; not with ``--quiet``."""
    if not asked_for("quiet"):
        click.echo(f"  {text}", err=True)


@contextmanager
def waiting(text: str, quiet: bool = False) -> Iterator[None]:
    """Show that something is going on, on a terminal: a spinner, and how far whatever is told of has come."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet or asked_for("quiet"))
    if not console.is_terminal:
        yield
        return
    line = _Line(text)
    with console.status(line), watching(line.draw):
        yield


class _Line:
    """What is going on, how far it is, and, where nobody tells, since when."""

    def __init__(self, text: str) -> None:
        self._text, self._began = text, time.monotonic()
        self._rates, self._said = defaultdict[str, Rate](Rate), dict[str, str]()

    def draw(self, one: Progress) -> None:
        """Take over how far it is."""
        self._said[one.unit] = self._rates[one.unit].told(one, time.monotonic())
        if one.done == one.total:
            del self._said[one.unit]

    def __rich__(self) -> Text:
        from rich.text import Text

        seconds = time.monotonic() - self._began
        said = "; ".join(list(self._said.values())) or (f"{seconds:.0f} s" if seconds >= _SOON else "")
        # An address may be long, and how far it is must be seen.
        room = shutil.get_terminal_size().columns - len(": ") - len(said) - _SPINNER
        text = self._text if len(self._text) <= room else f"{self._text[: max(room, _SOME) - 1]}…"
        return Text(f"{text}: {said}" if said else text)


@contextmanager
def sending(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Give what :func:`step` is; on a terminal, show how far a push is, on a line of its own.

    Nothing moves by itself: ssh and ssh-keygen may be asking for a passphrase meanwhile.
    """
    if quiet or asked_for("quiet") or not sys.stderr.isatty():
        yield (lambda _: None) if quiet else step
        return
    rate, since, drawn = Rate(), dict[str, float](), False

    def draw(one: Progress) -> None:
        nonlocal drawn
        now = time.monotonic()
        text = f"  {rate.told(one, now)}"
        if now - since.setdefault(one.what, now) >= _SOON:
            wide = shutil.get_terminal_size().columns
            click.echo(f"{_ERASE}{text[: wide - 1]}", nl=False, err=True)
            drawn = True

    def erase() -> None:
        nonlocal drawn
        if drawn:
            click.echo(_ERASE, nl=False, err=True)
            drawn = False

    def line(text: str) -> None:
        erase()
        step(text)

    try:
        with watching(draw):
            yield line
    finally:
        erase()


def per_second(speed: float) -> str:
    """Return a rate with as many digits as tell something.

    >>> per_second(10_612.3), per_second(1.234)
    ('10,612', '1.23')
    """
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


class Rate:
    """How fast something comes, and how long the rest will take."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def told(self, one: Progress, now: float) -> str:
        """Say how far it has come, as fast as in the last seconds.

        Args:
            one: How far it is.
            now: Seconds on any clock.
        """
        if self._seen and one.done < self._seen[-1][1]:
            self._seen.clear()  # something else
        self._seen.append((now, one.done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RECENT:
            self._seen.popleft()
        since, had = self._seen[0]

        def number(value: float) -> str:
            return f"{value / 1e6:.1f}" if one.unit == "bytes" else f"{value:,.0f}"

        unit = "MB" if one.unit == "bytes" else one.unit
        text = f"{number(one.done)}{'' if one.total is None else f' of {number(one.total)}'} {unit}"
        speed = (one.done - had) / (now - since) if now > since else 0.0
        if speed <= 0:
            return text
        left = "" if one.total is None else f", {math.ceil(max(0, one.total - one.done) / speed)} s left"
        return f"{text}, {number(speed) if one.unit == 'bytes' else per_second(speed)} {unit}/s{left}"


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str, int, int, str], None]]:
    """Give a function ``report(stage, done, total, note)`` that draws bars on stderr; without a terminal, lines.

    What is told to whoever watches has bars too: a base model that is downloaded first.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    class Note(TextColumn):
        """What gives way first where a terminal is narrow."""

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    console = Console(stderr=True, quiet=quiet or asked_for("quiet"))
    if not console.is_terminal:
        seen: dict[str, int] = {}

        def lines(stage: str, done: int, total: int, note: str) -> None:
            tenth = 10 * done // max(total, 1)
            if seen.get(stage) != tenth:
                seen[stage] = tenth
                console.print(f"  {stage} {done}/{total} {note}".rstrip(), highlight=False, soft_wrap=True)

        yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        Note("{task.fields[note]}", table_column=Column()),
    )
    with Bars(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def draw(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, note="", rate="")
            bar.update(tasks[stage], completed=done, total=total)
            speed = bar.tasks[tasks[stage]].speed
            bar.update(tasks[stage], rate=f"{per_second(speed)}/s" if speed else "")
            if note:
                bar.update(tasks[stage], note=note)

        def follow(one: Progress) -> None:
            if one.unit != "bytes":
                draw(f"loading {one.unit}", one.done, one.total or 0, "")
            elif one.total is not None and one.total >= 10**6:
                draw("downloading MB", one.done // 10**6, one.total // 10**6, one.what)

        with watching(follow) if not console.quiet else nullcontext():
            yield draw


def quiet_transformers() -> None:
    """Keep the libraries' own loading bars and reports away from the terminal, unless ``--verbose`` asks for them."""
    if asked_for("verbose"):
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils._pytree"):  # what of it was not built for this machine, when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every try of a server that does not answer


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if issubclass(category, AdaptergitWarning):
        click.secho("warning: ", fg="yellow", nl=False, err=True)
        click.echo("\n".join(clean(part) for part in str(message).split("\n")), err=True)
    elif asked_for("verbose"):
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)
