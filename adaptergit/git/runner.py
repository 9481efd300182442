"""One hardened way to run git, on GitPython's process runner.

What is switched off, and why:

* the shell and every option taken from data: argument lists only, ``--`` before every URL;
* protocols: ``GIT_ALLOW_PROTOCOL`` holds only those the reference may use, so that ``ext::`` and redirects to
  ``file://`` never run, whatever the user's configuration says; reads use ``none``, so that a promisor remote can never
  make a read go to the network;
* the system's and the user's configuration, when talking to somebody else's server: ``url.*.insteadOf`` would move the
  host silently. Proxy, CA, credential helper and ssh command are passed through by name;
* hooks, fsmonitor, templates, submodules, LFS smudging, gc and maintenance;
* prompts: a missing credential is an error, not a hang.

Objects are checked on arrival (``transfer.fsckObjects``). Time is bounded by a kill, size by ``ulimit -f``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adaptergit.errors import NotFoundError, TransportError

_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "protocol.version=2",
    "transfer.fsckObjects=true",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "http.followRedirects=initial",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "advice.detachedHead=false",
)
_PASSED_THROUGH = (
    r"^(http\.(.*\.)?(proxy|sslcainfo|sslcapath)|credential\.(.*\.)?(helper|username|usehttppath)|core\.sshcommand)$"
)
_TIMEOUT = 120.0
_SECRETS = re.compile(r"(?i)(https?://)[^/@\s]+@")


@dataclass(frozen=True)
class Git:
    """Git in one folder. ``trusted`` folders are the user's own: there the user's configuration applies."""

    directory: Path
    trusted: bool = False

    def text(self, *arguments: str, **options: Any) -> str:
        """Run git and return its output without the final newline."""
        return self.raw(*arguments, **options).decode("utf-8", "replace").rstrip("\n")

    def raw(
        self,
        *arguments: str,
        stdin: IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        protocols: Sequence[str] = (),
        timeout: float = _TIMEOUT,
        max_file_bytes: int | None = None,
    ) -> bytes:
        """Run git to its end and return its output.

        Args:
            arguments: Subcommand and arguments; values from outside come after ``--``.
            stdin: File the command reads.
            env: More environment, for example the identity of a commit.
            protocols: What may be used to talk to a remote; none by default.
            timeout: Seconds until the process is killed.
            max_file_bytes: Bound on any one file git may write, a pack included.

        Raises:
            TransportError: Git failed, with what it said.
        """
        status, output, errors = self._runner().execute(
            _bounded([*self._command(protocols), *arguments], max_file_bytes),
            istream=stdin if stdin is not None else subprocess.DEVNULL,
            env={**self._environment(protocols), **(env or {})},
            with_extended_output=True,
            with_exceptions=False,
            stdout_as_string=False,
            strip_newline_in_stdout=False,
            kill_after_timeout=timeout,
        )
        if status != 0:
            raise _failure(arguments, _text(errors), status, timeout)
        return output if isinstance(output, bytes) else str(output).encode()

    @contextmanager
    def stream(self, *arguments: str, stdin: IO[bytes]) -> Iterator[IO[bytes]]:
        """Run git and read its output as it comes, without the network.

        Raises:
            TransportError: Git failed.
        """
        process = self._runner().execute(
            [*self._command(()), *arguments], istream=stdin, env=self._environment(()), as_process=True
        )
        try:
            yield process.stdout
        finally:
            inner = process.proc
            if inner is not None:
                for pipe in (inner.stdout, inner.stderr):
                    if pipe is not None:
                        pipe.close()
                inner.kill()
                inner.wait()

    def _runner(self) -> Any:
        return _git_class()(str(self.directory))

    def _command(self, protocols: Sequence[str]) -> list[str]:
        settings = [*_CONFIG, *(_user_transport_settings() if protocols and not self.trusted else ())]
        return ["git", *(part for setting in settings for part in ("-c", setting))]

    def _environment(self, protocols: Sequence[str]) -> dict[str, str]:
        environment = {
            "GIT_ALLOW_PROTOCOL": ":".join(protocols) or "none",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            # Inherited from a hook or a parent git, each of these would move the repository under our feet.
            "GIT_CONFIG_PARAMETERS": "",
            "GIT_CONFIG_COUNT": "0",
            "GIT_NAMESPACE": "",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
        }
        if "ssh" in protocols and "GIT_SSH_COMMAND" not in os.environ:
            environment["GIT_SSH_COMMAND"] = "ssh -o BatchMode=yes -o ConnectTimeout=20"
        if self.trusted:
            return environment
        home = str(self.directory)
        return environment | {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_DIR": home,
            "GIT_COMMON_DIR": home,
            "GIT_OBJECT_DIRECTORY": f"{home}/objects",
            "GIT_INDEX_FILE": f"{home}/index",
        }


def init_bare(directory: Path, *, object_format: str = "sha1") -> Git:
    """Make an empty bare repository without templates or hooks."""
    directory.mkdir(parents=True, exist_ok=True)
    git = Git(directory)
    git.text("init", "--quiet", "--bare", "--template=", f"--object-format={object_format}")
    return git


@functools.cache
def _git_class() -> Any:
    """Import GitPython on first use: it starts ``git version`` when imported, which a cached load must not."""
    if shutil.which("git") is None:
        raise NotFoundError("git is not installed", hint="install git 2.30 or newer")
    import git

    return git.Git


@functools.cache
def _user_transport_settings() -> tuple[str, ...]:
    """The few of the user's settings that reaching a server may need."""
    status, output, _ = _git_class()(os.getcwd()).execute(  # noqa: PTH109 - GitPython wants text
        ["git", "config", "--global", "-z", "--get-regexp", _PASSED_THROUGH],
        with_extended_output=True,
        with_exceptions=False,
    )
    if status != 0:
        return ()
    pairs = (entry.partition("\n") for entry in output.split("\0") if entry)
    return tuple(f"{name}={value}" for name, _, value in pairs)


def _bounded(command: list[str], max_file_bytes: int | None) -> list[str]:
    """Limit the size of every file the command writes. The script is constant; the command is passed as arguments."""
    if max_file_bytes is None or os.name != "posix":
        return command
    blocks = str(max_file_bytes // 512 + 1)
    return ["/bin/sh", "-c", 'ulimit -f "$1" && shift && exec "$@"', "sh", blocks, *command]


def _text(output: Any) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else str(output)


def _failure(arguments: Sequence[str], errors: str, status: int, timeout: float) -> TransportError:
    said = _SECRETS.sub(r"\1***@", errors.strip())
    lines = [line for line in said.splitlines() if line.strip()]
    important = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", " ! "))] or lines
    what = "; ".join(important[-3:]) or f"exit status {status}"
    hint = None
    if "timed out. kill_after_timeout" in said or said.startswith("Timeout:"):
        what, hint = f"no end within {timeout:.0f} s", "check the network, or try again later"
    elif "could not read Username" in said or "Authentication failed" in said:
        hint = "store credentials with git's credential helper; adaptergit never asks for passwords"
    elif "Permission denied" in said:
        hint = "check that your ssh key is loaded (ssh-add -l) and known to the server"
    elif "died of signal 25" in said or "File size limit" in said:  # SIGXFSZ
        what = f"the server sent more than the limit allows ({what})"
    return TransportError(f"git {arguments[0]}: {what}", hint=hint)
