"""A terminal that somebody looks at."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest


def at_a_terminal(argv: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command whose stderr is a terminal; return its exit code and what it showed."""
    pty = pytest.importorskip("pty")  # Windows has none
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptergit", *argv], stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while block := os.read(ours, 4096):
                shown.extend(block)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait(timeout=120)
    reader.join(timeout=10)
    os.close(ours)
    return code, shown.decode("utf-8", "replace")
