"""What many processes, kill -9 and attackers leave behind: nothing. Run: make bench-stress.

``python benchmarks/stress.py [--quick]``: 64 processes load the same 8 adapters into one empty store; 200 fetches and
publications are killed at random moments, with ``git fsck`` after each; every attack of the test suite is tried. All of
it on loopback.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fetch import package
from forms import stressed
from results import save, show

from adaptergit.errors import AdaptergitError
from adaptergit.git import GitServer
from adaptergit.housekeeping import stored, verify_store
from adaptergit.pins import pin_key
from adaptergit.publish import publish_all
from adaptergit.resolve import fetch
from adaptergit.trust import SigningKey, generate_key

ROOT = Path(__file__).parent.parent
LOADER = """
import sys
from adaptergit.resolve import fetch
for reference in sys.argv[1:]:
    found = fetch(reference)
    print(found.digest, found.from_store)
"""
KILLED = """
import sys
from adaptergit.publish import publish
from adaptergit.resolve import fetch
if sys.argv[1] == "fetch":
    fetch(sys.argv[2])
else:
    publish(sys.argv[2], clone=sys.argv[3], key=sys.argv[4], version=sys.argv[5])
"""


def main() -> None:
    warnings.simplefilter("ignore")
    quick = "--quick" in sys.argv
    processes, adapters, kills = (8, 4, 20) if quick else (64, 8, 200)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"HOME": folder, "ADAPTERGIT_CONFIG_DIR": f"{folder}/config", "GIT_CONFIG_NOSYSTEM": "1"}
        os.environ["ADAPTERGIT_CACHE_DIR"] = f"{folder}/cache"
        (root / ".gitconfig").write_text("[user]\nname = b\nemail = b@example.org\n[init]\ndefaultBranch = main\n")
        (root / "server").mkdir()
        with GitServer(root / "server") as server:
            place = Place(root, server)
            found = {
                "crowd": crowd(place, processes, adapters),
                "kills": {"seed": 1, "fetch": killed_fetches(place, kills // 2)},
            }
            found["kills"]["publish"] = killed_publications(place, kills - kills // 2)
    found["attacks"] = attacks(quick)
    show(stressed({**found, "date": f"{datetime.now(UTC):%Y-%m-%d}"}))
    save("stress", found, quick=quick)


class Place:
    """A repository on a server, its publisher's clone, and a user who trusts the publisher."""

    def __init__(self, root: Path, server: GitServer) -> None:
        self.root, self.server = root, server
        self.url = server.create("acme/adapters")
        self.bare, self.clone = root / "server" / "acme" / "adapters.git", root / "clone"
        self.key: SigningKey = generate_key(root / "key")
        self.cache = root / "cache"
        subprocess.run(["git", "clone", "-q", self.url, str(self.clone)], check=True, capture_output=True)
        pin_key("127.0.0.1/acme/adapters", self.key.public.line)

    def git(self, *arguments: str) -> str:
        """Run git in the clone."""
        argv = ["git", "-C", str(self.clone), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def broken(self) -> list[str]:
        """Return what ``git fsck`` says of the repositories that do not pass it."""
        self.settle()
        said = []
        for where in (self.bare, self.clone):
            argv = ["git", "-C", str(where), "fsck", "--strict"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            said += [f"{where.name}: {done.stdout}{done.stderr}"] if done.returncode else []
        return said

    def settle(self) -> None:
        """Wait for what the killed process had started, and the server's end of it: fsck reads beside no writer."""
        end = time.monotonic() + 30
        while time.monotonic() < end and any(str(self.root) in command for command in commands("git")):
            time.sleep(0.02)


def commands(program: str) -> Iterator[str]:
    """Yield working directory and command line of every process of a program, and of those named after it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if Path(command.partition(" ")[0]).name.startswith(program):
                yield f"{(process / 'cwd').readlink()} {command}"


def crowd(place: Place, processes: int, adapters: int) -> dict[str, Any]:
    """Load the same adapters by many processes at once, from an empty store."""
    folders = [package(place.root / f"out{i}", f"a{i}") for i in range(adapters)]
    publish_all(folders, clone=place.clone, key=place.key.path)
    references = [f"{place.url}@a{i}==1.0.0" for i in range(adapters)]
    place.server.reset()
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LOADER, *(references[(n + i) % adapters] for i in range(adapters))],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for n in range(processes)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    lines = [line for output in outputs for line in output.splitlines()]
    return {
        "processes": processes,
        "adapters": adapters,
        "seconds": round(time.perf_counter() - started, 1),
        "failed": sum(process.returncode != 0 for process in running),
        "downloads": sum(line.endswith("False") for line in lines),
        "bytes": place.server.traffic.sent,
        "damaged": len(verify_store()),
    }


def killed_fetches(place: Place, kills: int) -> dict[str, int]:
    """Kill fetches at random moments; what is in the store must be whole each time."""
    reference = f"{place.url}@a0==1.0.0"
    shutil.rmtree(place.cache)
    seconds = timed("fetch", reference)
    chance, half, killed, tried = random.Random(1), 0, 0, 0
    while killed < kills and tried < 6 * kills:
        tried += 1
        shutil.rmtree(place.cache, ignore_errors=True)
        killed += kill_after(chance.uniform(0, 1.1 * seconds), ("fetch", reference))
        half += bool(verify_store()) or any(one.manifest is None for one in stored())
    unusable = fetch(reference).version != "1.0.0"
    return {"tried": tried, "killed": killed, "half_written": half, "unusable_after": int(unusable)}


def killed_publications(place: Place, kills: int) -> dict[str, int]:
    """Kill publications at random moments; both repositories must be whole, and have a release whole or not at all."""
    folder, key = package(place.root / "killed", "killed"), str(place.key.path)
    seconds = timed("publish", str(folder), str(place.clone), key, "1.0.0")
    chance, broken, killed, released, torn, tried = random.Random(2), 0, 0, 0, 0, 0
    while killed < kills and tried < 6 * kills:
        tried += 1
        version = f"1.{tried}.0"
        argv = ("publish", str(folder), str(place.clone), key, version)
        killed += kill_after(chance.uniform(0, 1.1 * seconds), argv)
        if said := place.broken():
            broken += 1
            print(version, *said, file=sys.stderr)
        for path in (place.clone / ".git").rglob("*.lock"):  # as git asks of whoever killed it
            path.unlink()
        place.git("fetch", "-q", "--tags", "--force", "origin")
        place.git("reset", "-q", "--hard", "origin/main")
        tagged = f"adapters/killed/{version}" in place.git("tag", "-l", "adapters/killed/*").split()
        on_branch = f"publish killed {version}" in place.git("log", "-1", "--format=%s")
        released += tagged
        torn += tagged is not on_branch
    whole = 0
    tags = place.git("tag", "-l", "adapters/killed/*").split()
    for tag in tags:
        with contextlib.suppress(AdaptergitError):
            whole += fetch(f"{place.url}@killed=={tag.rpartition('/')[2]}").version is not None
    return {
        "tried": tried, "killed": killed, "fsck_failed": broken, "released": released, "torn": torn,
        "unusable_after": len(tags) - whole,
    }  # fmt: skip


def timed(*argv: str) -> float:
    """Return how long one takes that is not killed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", KILLED, *argv], check=True, capture_output=True)
    return time.perf_counter() - started


def kill_after(seconds: float, argv: Sequence[str]) -> bool:
    """Start a process and kill it, with all that it started; return False if it was faster."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *argv],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def attacks(quick: bool) -> dict[str, int]:
    """Try every attack of the test suite; one that is not refused, or leaves something behind, is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        selected = "test_an_attack_is_refused_and_leaves_nothing" + (" and tree" if quick else "")
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        subprocess.run([*argv, "-k", selected, "tests/test_attacks.py"], cwd=ROOT, capture_output=True, check=False)
        suite = next(ET.parse(report).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {"tried": count["tests"], "refused": count["tests"] - sum(list(count.values())[1:])}


if __name__ == "__main__":
    main()
