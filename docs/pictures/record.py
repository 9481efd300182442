"""The recording of ``adaptergit demo`` in the README: a real run, kept as text with times, and drawn as a picture.

Run: ``python docs/pictures/record.py run`` (minutes: it is the demo) or ``python docs/pictures/record.py draw``.
``demo.cast`` is an asciicast v2, which ``asciinema play`` shows too, and is not kept in git: it is large, and the next
run makes another. ``demo.svg`` moves by CSS alone, and shows the end of the run where nothing moves. Drawing needs
``pip install 'adaptergit[docs]'``.
"""

from __future__ import annotations

import codecs
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyte

HERE = Path(__file__).parent
CAST, PICTURE = HERE / "demo.cast", HERE / "demo.svg"
COLUMNS, ROWS = 100, 28
TYPED = "adaptergit demo"

_ABOUT = "An adapter is trained, published signed, loaded elsewhere and attacked; accuracy, bytes, refusals and times."
_PAUSE, _REPAINT, _KEY = 1.5, 0.3, 0.07
"""Seconds at most between two changes, between two repaints of one line, and for each key."""
_REPAINTS = 5
"""Of one line in a row, at most."""
_TOGETHER = 0.25
"""Seconds within which what is written counts as written at once."""
_WIDTH, _HEIGHT, _MARGIN, _BAR = 8.4, 19, 16, 34
_COLOURS = {"green": "#8fd694", "red": "#ff8f8f", "cyan": "#7fd4e8", "magenta": "#d9a6f2", "yellow": "#e8d27f"}
_COLOURS |= {"blue": "#93b4ff", "brightblack": "#8a90a5", "brown": "#e8d27f"}
_TEXT, _PAGE = "#dfe3f0", "#1b1f2e"


# --- a run ------------------------------------------------------------------------------------------------------------


def run() -> None:
    """Run the demo in a terminal of its own, and keep what it wrote and when."""
    import fcntl
    import pty
    import termios

    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    began, events = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", *TYPED.split()],
            cwd=folder,
            env={**os.environ, "TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        decode = codecs.getincrementaldecoder("utf-8")().decode
        while wrote := _read(master):
            now, text = round(time.monotonic() - began, 3), decode(wrote)
            if events and now - events[-1][0] < _TOGETHER:  # progress is painted again and again
                events[-1][2] += text
            else:
                events.append([now, "o", text])
        if process.wait() != 0:
            sys.exit(f"the demo ended with {process.returncode}:\n{''.join(text for _, _, text in events)}")
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": TYPED}
    lines = [json.dumps(one, ensure_ascii=False) for one in (header, *events)]
    CAST.write_text("\n".join(lines) + "\n", "utf-8")


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # Linux's way of saying that nobody holds the other end any more
        return b""


# --- a picture --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What the terminal shows from some time on: lines as SVG, and how many of them are in use."""

    seconds: float
    lines: tuple[str, ...]


def draw() -> None:
    """Draw the recording."""
    PICTURE.write_text(picture(CAST.read_text("utf-8")), "utf-8")


def picture(cast: str) -> str:
    """Return the SVG of a recording: every state of every line once, shown and hidden by CSS."""
    frames = [*_typing(), *_hastened(_frames(cast))]
    end = frames[-1].seconds
    last = max(0, len(frames[-1].lines) - ROWS)
    scrolls = {frame.seconds: max(0, len(frame.lines) - ROWS) for frame in frames}
    steps = "".join(
        f"{100 * seconds / end:.2f}%{{transform:translateY({-down * _HEIGHT}px)}}"
        for seconds, down in [(0.0, 0), *(new for old, new in pairwise(scrolls.items()) if old[1] != new[1])]
    )
    width, height = round(COLUMNS * _WIDTH + 2 * _MARGIN), ROWS * _HEIGHT + _BAR + _MARGIN
    colours = "".join(f".{name}{{fill:{value}}}" for name, value in _COLOURS.items())
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{_ABOUT}">
<title>A recording of {TYPED}</title>
<style>
text{{font:14px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;fill:{_TEXT};white-space:pre}}
.bold{{font-weight:bold}}.italics{{font-style:italic}}{colours}
.all{{transform:translateY({-last * _HEIGHT}px);animation:scroll {end:.2f}s steps(1,end)}}
.on{{animation:on .01s both}}.off{{visibility:hidden;animation:off 1s}}
@keyframes on{{from{{visibility:hidden}}}}@keyframes off{{from,to{{visibility:visible}}}}@keyframes scroll{{{steps}}}
@media(prefers-reduced-motion:reduce){{*{{animation:none!important}}}}
</style>
<rect width="{width}" height="{height}" rx="10" fill="{_PAGE}"/>
<circle cx="20" cy="17" r="5.5" fill="#ff6f61"/>
<circle cx="38" cy="17" r="5.5" fill="#f2bf4b"/>
<circle cx="56" cy="17" r="5.5" fill="#5cc46a"/>
<svg y="{_BAR}" width="{width}" height="{ROWS * _HEIGHT + 4}"><g class="all">
{"".join(_shown(frames))}</g></svg>
</svg>
"""


def _typing() -> Iterator[Frame]:
    for count in range(len(TYPED) + 1):
        yield Frame(0.6 * bool(count) + count * _KEY, (_line("$ " + TYPED[:count]),))


def _frames(cast: str) -> Iterator[Frame]:
    """Play a recording on a page so long that nothing leaves it."""
    import pyte

    header, *events = map(json.loads, cast.splitlines())
    screen = pyte.Screen(header["width"], 1000)
    screen.set_mode(pyte.modes.LNM)
    stream = pyte.Stream(screen)
    stream.feed(f"$ {TYPED}\n")
    for seconds, _, text in events:
        stream.feed(text)
        lines = [_styled(screen, row) for row in range(screen.cursor.y + 1)]
        while lines and not lines[-1]:
            lines.pop()
        yield Frame(seconds, tuple(lines))


def _hastened(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Leave out what nobody needs to see: long pauses, and most of a line that is painted again and again."""
    changes = [new for old, new in pairwise([Frame(0, ()), *frames]) if old.lines != new.lines]
    repainted = [False, *(_is_repaint(old, new) for old, new in pairwise(changes))]
    kept: list[tuple[bool, Frame]] = []
    for again, group in groupby(zip(repainted, changes, strict=True), key=lambda pair: pair[0]):
        found = list(group)
        step = max(1, -(-len(found) // _REPAINTS)) if again else 1
        kept += [*found[step - 1 :: step], *([found[-1]] if len(found) % step else [])]
    now, before = 0.6 + len(TYPED) * _KEY, 0.0
    for again, frame in kept:
        now, before = now + min(max(frame.seconds - before, 0.02), _REPAINT if again else _PAUSE), frame.seconds
        yield replace(frame, seconds=round(now, 2))


def _is_repaint(old: Frame, new: Frame) -> bool:
    return len(old.lines) == len(new.lines) and sum(a != b for a, b in zip(old.lines, new.lines, strict=True)) == 1


def _shown(frames: list[Frame]) -> Iterator[str]:
    """Yield each state of each line, with the times it is there."""
    for row in range(max(len(frame.lines) for frame in frames)):
        states = [(frame.lines[row] if row < len(frame.lines) else "", frame.seconds) for frame in frames]
        firsts = [next(group) for _, group in groupby(states, key=lambda state: state[0])]
        for (line, begin), after in zip(firsts, [*firsts[1:], None], strict=True):
            times = f'on" style="animation-delay:{begin:.2f}s'
            if after is not None:
                times = f'off" style="animation-delay:{begin:.2f}s;animation-duration:{after[1] - begin:.2f}s'
            if line:
                yield f'<text x="{_MARGIN}" y="{row * _HEIGHT + 15}" class="{times}" {line}</text>\n'


def _line(text: str, markup: str | None = None) -> str:
    """Return the rest of a ``text`` element; its length is said, so that columns fit in any font."""
    return f'textLength="{len(text) * _WIDTH:.1f}">{escape(text) if markup is None else markup}'


def _styled(screen: pyte.Screen, row: int) -> str:
    cells = [screen.buffer[row][column] for column in range(COLUMNS)]
    text = "".join(cell.data for cell in cells).rstrip()
    parts = []
    for style, group in groupby(cells[: len(text)], key=lambda cell: (cell.fg, cell.bold, cell.italics)):
        names = " ".join([*([style[0]] if style[0] in _COLOURS else []), *["bold"] * style[1], *["italics"] * style[2]])
        part = escape("".join(cell.data for cell in group))
        parts.append(f'<tspan class="{names}">{part}</tspan>' if names else part)
    return _line(text, "".join(parts)) if text else ""


if __name__ == "__main__":
    {"run": run, "draw": draw}[sys.argv[1]]()
