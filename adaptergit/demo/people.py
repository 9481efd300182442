"""People of the demo: each has a home, an environment, and nothing shared but the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptergit.errors import AdaptergitError


@dataclass
class Person:
    """Somebody with a home, an environment and nothing shared."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "ADAPTERGIT_", "XDG_", "HF_"))}
        self.settings = {
            **kept,
            "HOME": str(self.home),
            "ADAPTERGIT_CONFIG_DIR": str(self.config),
            "ADAPTERGIT_CACHE_DIR": str(self.home / "cache"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    @property
    def config(self) -> Path:
        """Folder of the person's adaptergit settings."""
        return self.home / "config"

    def run(self, *argv: str, cwd: Path | None = None, show: bool = False) -> str:
        """Run a program and return what it prints; its progress goes to the terminal with ``show``."""
        done = subprocess.run(
            argv,
            env=self.settings,
            cwd=cwd or self.home,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            encoding="utf-8",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise AdaptergitError(
                f"{' '.join(argv[:4])} failed ({done.returncode}): {done.stdout[-2000:]}{(done.stderr or '')[-3000:]}"
            )
        return done.stdout

    def adaptergit(self, *argv: str, cwd: Path | None = None, show: bool = False) -> dict[str, Any]:
        """Run an adaptergit command with ``--json``."""
        result: dict[str, Any] = json.loads(
            self.run(sys.executable, "-m", "adaptergit", *argv, "--json", cwd=cwd, show=show)
        )
        return result

    def refused(self, *argv: str) -> dict[str, Any]:
        """Run an adaptergit command that must refuse; return how it did."""
        done = subprocess.run(
            [sys.executable, "-m", "adaptergit", *argv, "--json"],
            env=self.settings,
            cwd=self.home,
            capture_output=True,
            encoding="utf-8",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        try:
            error = json.loads(done.stdout).get("error", {})
        except ValueError:
            error = {"type": None, "what": (done.stdout + done.stderr)[-500:]}
        return {
            "refused": done.returncode in (3, 4, 7),
            "exit_code": done.returncode,
            "type": error.get("type"),
            "message": error.get("what"),
        }

    def new_cache(self, name: str) -> None:
        """Forget everything fetched so far."""
        self.settings["ADAPTERGIT_CACHE_DIR"] = str(self.home / f"cache-{name}")
