"""Other systems than this one: what only POSIX has is asked for only where it is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_hub
import test_wrong_turns
from conftest import GOLDEN, Hub
from posix_only import needs_posix
from test_ladder import release

from adaptergit.errors import AdaptergitError
from adaptergit.git import runner
from adaptergit.resolve import fetch
from adaptergit.settings import load_settings

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


@pytest.fixture
def no_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git is started as it is on Windows: by no shell, and not by GitPython, which hands on all variables."""
    monkeypatch.setattr(runner, "_POSIX", False)
    runner.transport_settings.cache_clear()


@pytest.mark.parametrize(
    "name", ["GIT_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_CONFIG_PARAMETERS", "GIT_TRACE"]
)
def test_an_outer_git_does_not_reach_ours_without_a_shell(
    hub: Hub, source: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_posix: None, name: str
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    release(hub, source())
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_pack_that_is_too_large_is_ended_where_no_system_bounds_it(
    hub: Hub, source: Callable[..., Path], no_posix: None
) -> None:
    release(hub, source(os.urandom(20_000_000)))
    settings = load_settings()
    limits = dataclasses.replace(settings.limits, package_bytes=3_000_000)
    with pytest.raises(AdaptergitError, match="the server sent more than the limit allows"):
        fetch(f"{hub.url}@sst2==1.0.0", settings=dataclasses.replace(settings, limits=limits))


@pytest.mark.slow
def test_a_letter_that_an_output_does_not_have_is_no_error(home: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    argv = [sys.executable, "-m", "adaptergit", "inspect", str(GOLDEN / "bases" / "bert")]
    done = subprocess.run(argv, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u2514" in done.stdout


@pytest.mark.parametrize(
    ("test", "needs"),
    [
        (test_hub.test_a_git_too_old_to_be_hardened_is_refused, True),  # its own text
        (test_hub.test_an_outer_git_cannot_redirect_a_fetch, False),
        (test_wrong_turns.test_a_pin_is_removed_by_the_name_it_is_listed_by, False),
    ],
)
def test_what_needs_posix_is_seen_in_what_it_says(test: Callable[..., None], needs: bool) -> None:
    fixtures = SimpleNamespace(name2fixturedefs={})
    assert needs_posix(SimpleNamespace(function=test, _fixtureinfo=fixtures)) is needs


def test_what_a_fixture_needs_its_tests_need(request: pytest.FixtureRequest, small_disk: Path) -> None:
    assert needs_posix(request.node)
