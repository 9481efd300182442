"""Plays a tutorial as a reader would: files are written, commands typed in one shell after the other, Python in one session.

Run: ``python tutorial_player.py PAGE`` in an empty folder, in the environment that the reader has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def main(page: Path) -> None:
    session: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        language, title, content = match[1], match[2], match[3]
        where = f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"
        print(f"--- {where} {language}", flush=True)
        if title:
            Path(title).write_text(content, "utf-8")
        elif language == "console":
            shell(content)
        elif language == "python":
            exec(compile(content, where, "exec"), session)
        else:
            sys.exit(f"{where}: a block of a tutorial is a file, a command or Python, not {language!r}")


def shell(content: str) -> None:
    """Type what is behind the prompts; where the shell ends up, the next one begins."""
    typed = re.findall(r"^\$ ((?:.*\\\n)*.*)", content, re.M)
    script = "\n".join(["set -euo pipefail", *typed, 'pwd > "$HOME/.where"'])
    done = subprocess.run(["bash", "-c", script], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)
    os.chdir((Path.home() / ".where").read_text("utf-8").strip())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
