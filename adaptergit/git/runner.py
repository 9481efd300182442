"""One hardened way to run git, on GitPython's process runner.

What is switched off, and why:

* the shell and every option taken from data: argument lists only, ``--`` before every URL;
* protocols: ``GIT_ALLOW_PROTOCOL`` holds only those the reference may use, so that ``ext::`` and redirects to
  ``file://`` never run, whatever the user's configuration says; reads use ``none``, so that a promisor remote can never
  make a read go to the network;
* the system's and the user's configuration, when talking to somebody else's server: ``url.*.insteadOf`` would move the
  host silently. Proxy, CA, credential helper and ssh command are passed through by name, in the environment: a list of
  processes, which anybody can read, shows no password of a proxy;
* hooks, fsmonitor, templates, submodules, LFS smudging, gc and maintenance;
* prompts: a missing credential is an error, not a hang.

Objects are checked on arrival (``transfer.fsckObjects``). Time is bounded by killing the whole session, memory and
files by ``ulimit``, answers by reading no more than a limit. On Windows, packs are looked at while they grow, and git's
memory has no bound.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any

from adaptergit.errors import StorageError, TransportError
from adaptergit.settings import cache_dir, check_online

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
_THROWN_AWAY = (
    # Packs are kept as they came, and nothing waits for the disk: what is wanted of them is written anew.
    "fetch.unpackLimit=1",
    "core.fsync=none",
)
_PASSED_THROUGH = (
    r"^(http\.(.*\.)?(proxy|sslcainfo|sslcapath)|credential\.(.*\.)?(helper|username|usehttppath)|core\.sshcommand)$"
)
_FROM_CLONES = r"^(http\.(.*\.)?(extraheader|sslcert|sslkey)|url\..*\.insteadof)$"
MINIMUM = (2, 32)
"""The oldest git that is supported: an older one does not hear of the settings that harden it."""
_TIMEOUT, _PATIENCE = 120.0, 20.0
_NOW_AND_THEN = 0.2
_MAX_OUTPUT = 64 * 2**20
_MAX_MEMORY_KB = 4 * 2**20
# Everything else named GIT_* is taken away: set by an outer git (a hook, an alias) or left in a shell, it would move
# the repository under our feet, switch TLS checks off, or trace secrets.
_KEPT = re.compile(
    r"GIT_(AUTHOR|COMMITTER)_(NAME|EMAIL|DATE)|GIT_SSH(_COMMAND|_VARIANT)?|GIT_EXEC_PATH|GIT_SSL_CA(INFO|PATH)|GIT_PYTHON_.*"
)
_KEPT_IN_CLONES = re.compile(r"GIT_CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)")
_POSIX = os.name == "posix"
_ROOM = 2**29
"""Bytes: with more room than this, no disk is full."""
_REMOTE = re.compile("remote:|fatal: remote error:")
_DISK = re.compile(r"No space left on device|Disk quota exceeded|Read-only file system")
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
        max_output: int = _MAX_OUTPUT,
        settings: Sequence[str] = (),
        heard: Callable[[bytes], None] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> bytes:
        """Run git to its end and return its output.

        Args:
            arguments: Subcommand and arguments; values from outside come after ``--``.
            stdin: File the command reads.
            env: More environment, for example the identity of a commit.
            protocols: What may be used to talk to a remote; none by default.
            timeout: Seconds until git and everything it started is killed.
            max_file_bytes: Bound on any one file git may write, a pack included.
            max_output: Bound on what git may print, in bytes.
            settings: More settings, ``name=value``; they win over the others.
            heard: Called, on a thread of its own, with what git says on stderr as it comes.
            meanwhile: Called now and then, on a thread of its own. Its errors end git, and are raised.

        Raises:
            TransportError: Git failed, with what it said.
        """
        if not _POSIX and max_file_bytes is not None:
            meanwhile = self._watched(max_file_bytes, meanwhile)
        process = self._start(arguments, stdin, env or {}, protocols, max_file_bytes, settings)
        with _Deadline(process, timeout) as deadline, _Meanwhile(meanwhile, deadline.kill):
            errors = _Tail(process.stderr, heard)
            output = bytearray()
            with process.stdout:
                # In blocks: one read of the limit would hold a buffer of that size.
                while len(output) <= max_output and (block := process.stdout.read1(1 << 20)):
                    output += block
            if len(output) > max_output:
                deadline.kill()
                process.wait()
                raise TransportError(f"git {arguments[0]}: more than the limit of {max_output} bytes of answer")
            status = process.wait()
            said = errors.text()
        if deadline.expired:
            hint = "check the network, or try again later"
            raise TransportError(f"git {arguments[0]}: no end within {timeout:.0f} s", hint=hint)
        if status != 0:
            failure = _failure(arguments, said, status, self.directory)
            if max_file_bytes is not None and self._is_full(max_file_bytes):
                failure.what = f"the server sent more than the limit allows ({failure.what})"
            raise failure
        return bytes(output)

    def _is_full(self, max_file_bytes: int) -> bool:
        """Tell whether git was stopped for writing too large a pack: it says so in many ways, or not at all."""
        packs = (self.directory / "objects" / "pack").glob("*pack*")
        return any(path.stat().st_size >= max_file_bytes // 512 * 512 for path in packs)

    def _watched(self, max_file_bytes: int, meanwhile: Callable[[], None] | None) -> Callable[[], None]:
        """Return what ends git when a pack is too large, where no system does."""

        def look() -> None:
            with contextlib.suppress(FileNotFoundError):
                if self._is_full(max_file_bytes):
                    raise TransportError("the server sent more than the limit allows")
            if meanwhile is not None:
                meanwhile()

        return look

    @contextmanager
    def stream(self, *arguments: str, stdin: IO[bytes]) -> Iterator[IO[bytes]]:
        """Run git and read its output as it comes, without the network.

        Raises:
            TransportError: Git failed.
        """
        process = self._start(arguments, stdin, {}, (), None)
        with _Deadline(process, _TIMEOUT) as deadline:
            _Tail(process.stderr)
            try:
                yield process.stdout
            finally:
                deadline.kill()
                process.stdout.close()

    def _start(
        self,
        arguments: Sequence[str],
        stdin: IO[bytes] | None,
        env: Mapping[str, str],
        protocols: Sequence[str],
        max_file_bytes: int | None,
        settings: Sequence[str] = (),
    ) -> Any:
        # Where a clone's remote leads to is not known here: whoever pushes to it has asked before.
        if not self.trusted and any(protocol != "file" for protocol in protocols):
            check_online(f"git {arguments[0]}")
        environment = {**self._environment(protocols, settings), **env}
        command = [*self._command(), *arguments]
        istream = stdin if stdin is not None else subprocess.DEVNULL
        if not _POSIX:
            return _popen(command, self.directory, environment, istream, trusted=self.trusted)
        started = _git_class()(str(self.directory)).execute(
            _confined(command, max_file_bytes, trusted=self.trusted, own=environment),
            istream=istream,
            env=environment,
            as_process=True,
            start_new_session=True,
        )
        process, started.proc = started.proc, None  # ours to wait for
        return process

    def _command(self) -> list[str]:
        return ["git"] if self.trusted else ["git", f"--git-dir={self.directory}"]

    def _environment(self, protocols: Sequence[str], settings: Sequence[str]) -> dict[str, str]:
        environment = {
            "LC_ALL": "C",
            "GIT_ALLOW_PROTOCOL": ":".join(protocols) or "none",
            # A push from a partial clone of the user's own may find that it needs more than it has.
            "GIT_NO_LAZY_FETCH": "0" if self.trusted and protocols else "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            **_as_environment([*self._settings(protocols), *settings]),
        }
        if self.trusted:
            return environment
        return environment | {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def _settings(self, protocols: Sequence[str]) -> list[str]:
        settings = [*_CONFIG, *(() if self.trusted else _THROWN_AWAY)]
        if protocols and not self.trusted:
            # Later settings win: the user's own ssh command, if there is one.
            settings += ["core.sshCommand=ssh -o BatchMode=yes -o ConnectTimeout=20", *transport_settings()]
        if protocols == ("http",):
            # On loopback, or where a person allowed it: a redirect would lead elsewhere without encryption.
            settings.append("http.followRedirects=false")
        return settings


def _as_environment(settings: Sequence[str]) -> dict[str, str]:
    """Return settings as variables that git reads; later ones win."""
    environment = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, setting in enumerate(settings):
        name, _, value = setting.partition("=")
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def init_bare(directory: Path, *, object_format: str = "sha1") -> Git:
    """Make an empty bare repository without templates or hooks, to be thrown away: no process is started for it."""
    for name in ("objects", "refs"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "HEAD").write_text("ref: refs/heads/main\n", newline="\n")
    wide = object_format != "sha1"
    extension = f"[extensions]\n\tobjectFormat = {object_format}\n" if wide else ""
    (directory / "config").write_text(
        f"[core]\n\trepositoryFormatVersion = {int(wide)}\n\tbare = true\n{extension}", newline="\n"
    )
    return Git(directory)


def check_installed() -> None:
    """Refuse a machine without git.

    Raises:
        TransportError: There is none on the PATH.
    """
    if shutil.which("git") is None:
        raise TransportError("git is not installed", hint=f"install git {MINIMUM[0]}.{MINIMUM[1]} or newer")


@functools.cache
def _git_class() -> Any:
    """Import GitPython on first use: it starts ``git version`` when imported, which a cached load must not."""
    check_installed()
    import git

    found = git.Git().version_info
    if found < MINIMUM:
        # It would not hear of the settings that harden it.
        raise TransportError(
            f"git {'.'.join(map(str, found))} is too old", hint=f"install git {MINIMUM[0]}.{MINIMUM[1]} or newer"
        )
    return git.Git


@functools.cache
def transport_settings(clone: Path | None = None) -> tuple[str, ...]:
    """Return the few of the machine's and the user's settings that reaching a server may need.

    Args:
        clone: A clone of the user's own, whose settings count too: also headers and certificates of its remote,
            and ``url.*.insteadOf``.
    """
    # Outside of clones no folder may be looked at: the home folder can be one.
    outside = {} if clone is not None else {"GIT_DIR": os.devnull}
    found: list[str] = []
    for names in (_PASSED_THROUGH, *((_FROM_CLONES,) if clone is not None else ())):
        command = ["git", "config", "--includes", "-z", "--get-regexp", names]
        status, output = _said(command, clone or Path.home(), outside)
        if status == 0:
            pairs = (entry.partition("\n") for entry in output.split("\0") if entry)
            found += [f"{name}={value}" for name, _, value in pairs if "=" not in name]
    return tuple(found)


def _said(command: list[str], directory: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command of git's that needs no network; return how it ended and what it printed."""
    if not _POSIX:
        process = _popen(command, directory, environment, subprocess.DEVNULL, trusted=True)
        with _Deadline(process, _PATIENCE):
            output, _ = process.communicate()
        return process.returncode, output.decode("utf-8", "replace")
    status, said, _ = _git_class()(str(directory)).execute(
        _confined(command, None, trusted=True, own=environment),
        env=environment,
        with_extended_output=True,
        with_exceptions=False,
        kill_after_timeout=_PATIENCE,
    )
    return status, said


def _popen(
    command: list[str], directory: Path, environment: dict[str, str], stdin: IO[bytes] | int, *, trusted: bool
) -> subprocess.Popen[bytes]:
    """Start git where no shell takes variables away: GitPython hands on all there are."""
    _git_class()
    doomed = _outer(environment, trusted=trusted)
    kept = {name: value for name, value in os.environ.items() if name not in doomed}
    return subprocess.Popen(
        command, cwd=directory, env=kept | environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )  # fmt: skip


def _outer(own: Iterable[str], *, trusted: bool) -> list[str]:
    """Return the variables that git must not see, of those that are set."""
    return [
        name
        for name in os.environ
        if re.fullmatch(r"GIT_[A-Z0-9_]+", name)
        and name not in own
        and not _KEPT.fullmatch(name)
        and not (trusted and _KEPT_IN_CLONES.fullmatch(name))
    ]


def _confined(command: list[str], max_file_bytes: int | None, *, trusted: bool, own: Iterable[str] = ()) -> list[str]:
    """Run a command without an outer git's variables, and with bounds on the files it may write and on its memory.

    The person's own clone may be of any size: there, git may map what it likes. The script is constant but for names of
    variables; the command is passed as arguments.
    """
    blocks = "unlimited" if max_file_bytes is None else str(max_file_bytes // 512 + 1)
    doomed = _outer(own, trusted=trusted)
    forget = f"unset {' '.join(doomed)};" if doomed else ""
    memory = "" if trusted else f"ulimit -v {_MAX_MEMORY_KB} 2>/dev/null;"
    return ["/bin/sh", "-c", f'{forget} {memory} ulimit -f "$1" 2>/dev/null; shift; exec "$@"', "sh", blocks, *command]


class _Deadline:
    """Kills a process, and everything it started, after some time or when asked."""

    def __init__(self, process: Any, seconds: float) -> None:
        self.expired = False
        self._process = process
        self._timer = threading.Timer(seconds, self._expire)

    def kill(self) -> None:
        """Kill the whole session: git's helpers would keep its pipes open."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _POSIX:
                os.killpg(self._process.pid, signal.SIGKILL)
            elif self._process.poll() is None:
                with contextlib.suppress(OSError):
                    subprocess.run(
                        ["taskkill", "/T", "/F", "/PID", str(self._process.pid)], capture_output=True, check=False
                    )
                self._process.kill()

    def _expire(self) -> None:
        self.expired = True
        self.kill()

    def __enter__(self) -> _Deadline:
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.kill()  # also when git itself has ended: what it started may live on and hold the pipes
        self._process.wait()


class _Meanwhile:
    """Calls something now and then while a process runs, and once when it has ended."""

    def __init__(self, action: Callable[[], None] | None, stop: Callable[[], None]) -> None:
        self._action, self._stop, self._ended = action, stop, threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        assert self._action is not None
        try:
            while not self._ended.wait(_NOW_AND_THEN):
                self._action()
            self._action()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for the process
            self._failed = error
            self._stop()

    def __enter__(self) -> None:
        if self._action is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._action is None:
            return
        self._ended.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed


class _Tail:
    """Reads what a process says on stderr, and keeps the end of it."""

    def __init__(self, pipe: IO[bytes], heard: Callable[[bytes], None] | None = None) -> None:
        self._kept, self._heard = b"", heard
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while block := os.read(pipe.fileno(), 1 << 16):
                self._kept = (self._kept + block)[-(1 << 16) :]
                if self._heard is not None:
                    self._heard(block)
            pipe.close()

    def text(self) -> str:
        """Return what was said, once the process has ended."""
        self._thread.join(timeout=5.0)
        return self._kept.decode("utf-8", "replace")


_UNREACHED = re.compile(
    r"Could not resolve (host|proxy)|Connection refused|Could(n't| not) connect|Failed to connect|from proxy|"
    r"Proxy CONNECT|Operation too slow|timed out"
)
_MISSING = re.compile(
    r"repository .{0,500} not found|does not appear to be a git repository|Repository not found", re.I
)


_PROGRESS = re.compile(
    r"(?<![^\r\n])(?:(?:Enumerating|Counting|Compressing|Writing) objects: |Delta compression using |Total \d)"
    r"[^\r\n]*[\r\n]+"
)
"""What ``git push --progress`` tells beside what went wrong."""


_NOTHING_NEW = (
    "hint:", "warning: ", "Please make sure you have the correct access rights", "and the repository exists.",
)  # fmt: skip


def _may_be_full(directory: Path) -> bool:
    """Tell whether the disk may be as somebody says: over ssh, a server's words look like git's own."""
    there = next((folder for folder in (directory, *directory.parents) if folder.is_dir()), Path("/"))
    return not os.access(there, os.W_OK) or min(shutil.disk_usage(one).free for one in (there, gettempdir())) < _ROOM


def _failure(arguments: Sequence[str], errors: str, status: int, directory: Path) -> TransportError:
    # What a server says is somebody else's text: it must not drive the terminal.
    errors = _PROGRESS.sub("", errors)
    plain = "".join(char if char.isprintable() or char == "\n" else " " for char in errors)
    said = _SECRETS.sub(r"\1***@", plain.strip())
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(_NOTHING_NEW)]
    what = "; ".join(line.removesuffix(".") for line in lines[-8:]) or f"exit status {status}"
    hint = None
    if "could not read Username" in said or "Authentication failed" in said:
        hint = "store credentials with git's credential helper; adaptergit never asks for passwords"
    elif "returned error: 403" in said:
        hint = "you may not do that there: look at your credentials, or push to a fork of your own"
    elif "Permission denied" in said:
        hint = "check that your ssh key is loaded (ssh-add -l) and known to the server"
    elif re.search(r"HOST IDENTIFICATION HAS CHANGED|host key .{0,200} has changed", said, re.I | re.S):
        hint = "the server answers with another key than before, as an attacker would: ask its owner which one it has"
        hint += ", and only if it is that one: ssh-keygen -R HOST, then connect once with ssh"
    elif "Host key verification failed" in said:
        hint = "connect once with ssh to see and accept the server's key"
    elif _UNREACHED.search(said):
        hint = "check the address and the network, and the proxy, if there is one (https_proxy, git config http.proxy)"
    elif re.search(r"certificate|SSL", said):
        hint = "log in, if the network asks for that first; an authority of yours: git config http.sslCAInfo FILE"
    elif "dubious ownership" in said:
        hint = "the folder belongs to somebody else: ask its owner to serve it (ssh, http), or clone it with git first"
    elif "hash algorithm" in said:
        hint = "one is a SHA-1 repository, the other a SHA-256 one: publish from a clone of the other"
    elif re.search(r"'(/|file:)[^']*' does not appear to be a git repository", said):
        hint = "check the address: there is no git repository"
    elif _MISSING.search(said):
        hint = "check the address; a private repository is not found without credentials"
    elif any(_DISK.search(line) for line in lines if not _REMOTE.match(line)) and _may_be_full(directory):
        mend = "look at who may write in" if "Read-only" in what else "free some space in"
        store = cache_dir()
        place = store if directory.is_relative_to(store) else directory  # what lies in it for a moment is gone by then
        hint = f"{mend} {place}; ADAPTERGIT_CACHE_DIR moves the store, TMPDIR what is temporary"
        return StorageError(f"git {arguments[0]}: {what}", where=str(place), hint=hint)
    return TransportError(f"git {arguments[0]}: {what}", hint=hint)
