"""Real servers besides nginx: sshd as it comes, killed and started again in the middle of a transfer; git daemon."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Hub, git
from test_servers import free_port, program, wait_for

from adaptergit.errors import TransportError, UsageError
from adaptergit.housekeeping import stored, verify_store
from adaptergit.pins import pin_key
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.settings import Limits, Settings, cache_dir
from adaptergit.trust import SigningKey

Source = Callable[..., Path]
RATE = 2_000_000


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


@dataclass
class Sshd:
    """A stock sshd, and a slow line to it; whoever cuts it in the middle kills the sshd and all its sessions."""

    folder: Path
    port: int
    line: socket.socket
    running: subprocess.Popen[bytes] | None = None
    passed: int = 0
    """Bytes that came over the line since the last start."""
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        argv = [program("sshd", "openssh-server"), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self.passed = 0
        self.running = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        wait_for(self.port)

    def kill(self) -> None:
        assert self.running is not None
        doomed = [self.running.pid]
        for pid in doomed:
            doomed += children(pid)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.running.wait()

    def serve(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(OSError):
                client, _ = self.line.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as server:
            threading.Thread(target=self._pass_on, args=(client, server, 0), daemon=True).start()
            self._pass_on(server, client, RATE)

    def _pass_on(self, source: socket.socket, target: socket.socket, rate: int) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)
                if rate:
                    self.passed += len(block)
                    time.sleep(len(block) / rate)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def when_half_way(self, action: Callable[[], None]) -> threading.Thread:
        """Do something as soon as some of the weights have come over the line."""

        def run() -> None:
            while self.passed < RATE // 2:
                time.sleep(0.01)
            action()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def sshd(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no list of processes to find sshd's sessions in")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    line = socket.create_server(("127.0.0.1", 0))
    server = Sshd(folder, free_port(), line)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile {folder}/pid\nPermitRootLogin yes\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    monkeypatch.setenv(
        "GIT_SSH_COMMAND",
        f"ssh -F none -i {folder}/client -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
        f" -o UserKnownHostsFile={folder}/known_hosts",
    )
    server.start()
    threading.Thread(target=server.serve, daemon=True).start()
    yield server
    server.ended.set()
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()
    server.kill()


@pytest.fixture
def url(sshd: Sshd, tmp_path: Path, source: Source, key: SigningKey) -> str:
    """Of a repository with a release that takes three seconds over the line."""
    bare, clone = tmp_path / "srv" / "adapters.git", tmp_path / "clone2"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    git(tmp_path, "clone", "-q", bare.as_uri(), str(clone))
    publish(source(os.urandom(6_000_000)), clone=clone, key=key.path, repository=f"127.0.0.1{bare.with_suffix('')}")
    pin_key(f"127.0.0.1{bare.with_suffix('')}", key.public.line)
    return f"ssh://{getpass.getuser()}@127.0.0.1:{sshd.line.getsockname()[1]}{bare}"


@pytest.mark.slow
def test_an_sshd_that_dies_in_the_middle_is_asked_again(sshd: Sshd, url: str) -> None:
    deaths: list[int] = []

    def restart() -> None:
        deaths.append(sshd.passed)
        sshd.kill()
        sshd.start()

    waiting = sshd.when_half_way(restart)
    found = fetch(f"{url}@sst2==1.0.0")
    waiting.join()
    assert deaths[0] < 6_000_000
    assert sshd.passed > 6_000_000, "all of it came anew"
    assert (found.path / "adapter.safetensors").stat().st_size > 6_000_000
    assert verify_store() == {}


@pytest.mark.slow
def test_an_sshd_that_stays_dead_leaves_nothing(sshd: Sshd, url: str) -> None:
    waiting = sshd.when_half_way(sshd.kill)
    with pytest.raises(TransportError):
        fetch(f"{url}@sst2==1.0.0", settings=Settings(limits=Limits(fetch_seconds=20)))
    waiting.join()
    assert stored() == []
    assert not list((cache_dir() / "tmp").iterdir())
    sshd.start()


def test_git_daemon_is_not_even_asked(hub: Hub, tmp_path: Path) -> None:
    """Unencrypted, and nobody knows who answers: its protocol is refused by name."""
    port, log = free_port(), tmp_path / "daemon.log"
    daemon = subprocess.Popen(
        ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", "--verbose", "--reuseaddr",
         f"--base-path={hub.bare.parent.parent}"],
        stderr=log.open("wb"), start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(port)
        git(tmp_path, "ls-remote", f"git://127.0.0.1:{port}/acme/adapters.git")  # it does serve
        asked = log.read_text().count("Request")
        assert asked == 1
        with pytest.raises(UsageError, match="protocol 'git' is not allowed"):
            fetch(f"git://127.0.0.1:{port}/acme/adapters@sst2")
        assert log.read_text().count("Request") == asked
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
