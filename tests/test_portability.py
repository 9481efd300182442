"""Other systems than this one: what only POSIX has is asked for only where it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Other people's packages know where they run: they are loaded as they are, and only ours once more without POSIX.
_WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, socket, sys
import adaptergit

names = [m.name for m in pkgutil.walk_packages(adaptergit.__path__, "adaptergit.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "adaptergit"]:
    del sys.modules[name]
for name in ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for owner, missing in {
    os: "fork forkpty geteuid getgid getloadavg getpgid getuid killpg mkfifo setsid statvfs uname "
        "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK WNOHANG sched_getaffinity",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIGXFSZ alarm setitimer",
    socket: "AF_UNIX",
}.items():
    for name in missing.split():
        if hasattr(owner, name):
            delattr(owner, name)
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.mark.slow
def test_every_module_is_imported_without_what_only_posix_has() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_POSIX], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200
