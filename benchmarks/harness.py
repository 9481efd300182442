"""Contenders measured side by side: in turn, in random order, pinned to the same processors, with equal threads.

Each contender is a long-lived process (:mod:`worker`) in an environment of its own. After a warm-up, every round runs
every case once, in an order of its own from a seed, so that a busy moment and a warm cache hit all alike. Ratios are
of the two times of one round; the interval around their median is a bootstrap's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from environments import environment
from results import Result, Row, shown
from spread import quartiles, ratio

ROUNDS, QUICK_ROUNDS = 20, 7
_SAMPLE_SECONDS, _MOST_SECONDS, _MOST_RUNS = 0.02, 0.5, 200
"""A sample is as many runs as a clock can measure, unless what is done around them takes too long."""


@dataclass(frozen=True)
class Case:
    """One thing that one contender does."""

    contender: str
    name: str
    do: str
    """Function of the contender's file."""
    options: Mapping[str, Any] = field(default_factory=dict)
    against: tuple[str, str] | None = None
    """Contender and name of the case of the same group that is 1."""

    @property
    def key(self) -> tuple[str, str]:
        """What names it within a group."""
        return self.contender, self.name


@dataclass(frozen=True)
class Series:
    """What one case took, round by round, in seconds."""

    times: list[float]
    facts: dict[str, Any]


class ContenderError(Exception):
    """A contender could not do what it was asked."""


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, cpus: Sequence[int], threads: int, home: Path) -> None:
        where = environment(contender)
        if where is None:
            raise ContenderError(f"{contender} is not installed: make .venv-peers/.installed")
        self._errors = (home / f"errors of {contender}").open("a+")
        script = Path(__file__).with_name("worker.py")
        listed = ",".join(map(str, cpus))
        self._process = subprocess.Popen(
            [*where.command, str(script), where.module, listed, str(threads)],
            env=variables(home, threads) | where.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answer(self, request: dict[str, Any]) -> Any:
        """Send a request and wait for its answer.

        Raises:
            ContenderError: With what the contender said.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            raise ContenderError(f"the process ended: {self._errors.read()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Bench:
    """One question being answered. Use it in a ``with`` block; what was found is written at its end."""

    def __init__(self, name: str, title: str, *, percent: bool = False, **defaults: Any) -> None:
        options = _arguments(title, defaults)
        self.quick: bool = options.quick
        self.size: str = options.size
        self.cpus: list[int] = options.cpus
        self.device: str = options.device
        self.rounds: int = options.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="adaptergit-bench-")
        self.home = Path(self._folder.name)
        (self.home / ".gitconfig").write_text("[user]\nname = b\nemail = b@example.org\n[init]\ndefaultBranch = main\n")
        self._workers: dict[str, Worker] = {}
        self._random = random.Random(options.seed)
        settings = {key: vars(options)[key] for key in ("size", "cpus", "threads", "seed", "clock")} | {
            "rounds": self.rounds
        }
        self.result = Result(name, title, "quick" if self.quick else "full", settings, percent=percent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()
        if isinstance(error, KeyboardInterrupt):  # time on a lent machine may end before the questions do
            self.result.notes.append("interrupted: what is missing was not measured")
        if error is None or (isinstance(error, KeyboardInterrupt) and self._options.out):
            self.result.finish(self._options.out)

    def has(self, contender: str) -> bool:
        """Tell whether a contender takes part."""
        who = "ours" if contender == "plain" else contender.split(" ")[0]
        if self._options.only and who not in self._options.only:
            return False
        if environment(contender) is None:
            note = f"{contender} is not installed (make .venv-peers/.installed) and was left out"
            if note not in self.result.notes:
                self.result.notes.append(note)
            return False
        return True

    def worker(self, contender: str, instance: str = "") -> Worker:
        """Return a contender's process, started on first use; another instance is another process."""
        key = f"{contender} {instance}".strip()
        if key not in self._workers:
            worker = Worker(contender, self._options.cpus, self._options.threads, self.home)
            self._workers[key] = worker
            if contender not in self.result.versions and contender != "plain":
                self.result.versions[contender] = worker.answer({"ask": "versions", "with": {}})
        return self._workers[key]

    def dismiss(self, contender: str, instance: str = "") -> None:
        """End a contender's process."""
        worker = self._workers.pop(f"{contender} {instance}".strip(), None)
        if worker is not None:
            worker.close()

    def ask(self, contender: str, function: str, instance: str = "", **options: Any) -> Any:
        """Call a function of a contender and return its facts.

        Raises:
            ContenderError: With what the contender said.
        """
        return self.worker(contender, instance).answer({"ask": function, "with": options})

    def compare(
        self, group: str, cases: Sequence[Case], *, x: float | None = None, keep: bool = False
    ) -> dict[tuple[str, str], Series]:
        """Measure cases side by side, and add a row for each to the result.

        Args:
            group: What is compared, for the table.
            cases: What fails or is not installed is left out, with a note.
            x: Where the group lies on the x axis of a plot of growth.
            keep: Do not let go of the contenders' models.
        """
        ready: dict[tuple[str, str], tuple[Case, int, dict[str, Any]]] = {}
        for case in cases:
            if not self.has(case.contender):
                continue
            shown(f"{group}: {case.contender}, {case.name}")
            try:
                ready[case.key] = (case, *self._prepared(case))
            except ContenderError as failure:
                self.result.notes.append(f"{group}: {case.contender}, {case.name}: {str(failure).splitlines()[-1]}")
                print(failure, file=sys.stderr)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
        for _ in range(self.rounds):
            order = list(ready)
            self._random.shuffle(order)
            for key in order:
                case, runs, _ = ready[key]
                times[key].append(self._sample(case, runs))
        found = {key: Series(times[key], ready[key][2]) for key in ready}
        for case, runs, _ in ready.values():
            self._profile(group, case, runs)
            self.result.rows.append(_row(group, case, found, x))
            if not keep:
                self.worker(case.contender).answer({"drop": case.name})
        return found

    @staticmethod
    def ratio_of(found: Mapping[tuple[str, str], Series], name: str, against: str, who: str = "ours") -> float | None:
        """Return the median ratio of two cases of one contender, or None if one is missing."""
        both = [found.get((who, one)) for one in (name, against)]
        return None if both[0] is None or both[1] is None else ratio(both[0].times, both[1].times)[0]

    def add(
        self, group: str, who: str, name: str, value: float, unit: str,
        against: tuple[str, str] | None = None, facts: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add a row that no clock measured; ``against`` names an earlier row of the group."""
        row = Row(group, who, name, value, unit, facts=facts or {})
        base = next((r for r in self.result.rows if r.group == group and (r.contender, r.name) == against), None)
        if base is not None and base.value:
            row.against, row.ratio = ", ".join((base.contender, base.name)), value / base.value
        self.result.rows.append(row)

    def _prepared(self, case: Case) -> tuple[int, dict[str, Any]]:
        """Make a case ready, warm it up, and find out how many runs make a sample that a clock can measure."""
        worker = self.worker(case.contender)
        facts = worker.answer({"prepare": case.name, "do": case.do, "with": dict(case.options)})
        worker.answer({"run": case.name, "times": 1})
        once = worker.answer({"run": case.name, "times": 2})
        wanted = min(_SAMPLE_SECONDS / max(once["wall"], 1e-6), _MOST_SECONDS / max(once["whole"], 1e-6))
        return max(1, min(_MOST_RUNS, round(wanted))), facts

    def _sample(self, case: Case, runs: int) -> float:
        answer = self.worker(case.contender).answer({"run": case.name, "times": runs})
        return float(answer[self._options.clock])

    def _profile(self, group: str, case: Case, runs: int) -> None:
        if not self._options.profile or case.contender != "ours":
            return
        request = {"profile": case.name, "times": max(3, runs), "clock": self._options.clock}
        found = self.worker(case.contender).answer(request)
        mine = [one for one in found if "adaptergit/" in one["file"]]
        for title, listed, key in (("costliest functions", found, "own"), ("ours, with what they call", mine, "total")):
            print(f"\n{group}: {case.name}: {title}, ms a run\n{'own':>9} {'total':>9} {'calls':>9}")
            for one in sorted(listed, key=lambda one: -one[key])[: self._options.profile]:
                print(f"{1e3 * one['own']:9.3f} {1e3 * one['total']:9.3f} {one['calls']:9.1f}  {one['where']}")


def _row(group: str, case: Case, found: Mapping[tuple[str, str], Series], x: float | None) -> Row:
    series = found[case.key]
    low, middle, high = quartiles(series.times)
    row = Row(group, case.contender, case.name, middle, "s", low, high, x=x, facts=series.facts)
    if case.against is None or case.against not in found:
        return row
    row.against = ", ".join(case.against)
    row.ratio, row.ratio_low, row.ratio_high = ratio(series.times, found[case.against].times)
    return row


def _arguments(title: str, defaults: Mapping[str, Any]) -> argparse.Namespace:
    usable = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases; results go to results/quick")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, or {QUICK_ROUNDS} if quick")
    parser.add_argument("--size", choices=("base", "small", "tiny"), default="base", help="of the random BERT")
    parser.add_argument("--cpus", default=str(usable[-1]), help="processors to run on, like 0,1 (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of every contender (default: one a processor)")
    parser.add_argument("--device", default="cpu", help="of gpu.py (default: %(default)s)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine with other work")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--only", action="append", choices=("ours", "adapters", "peft"), help="may be repeated")
    parser.add_argument(
        "--profile", type=int, nargs="?", const=12, metavar="N", help="show ours' N costliest functions"
    )
    parser.add_argument("--out", type=Path, help="folder of the results, also of a run that is interrupted")
    parser.set_defaults(**defaults)
    options = parser.parse_args()
    try:
        options.cpus = sorted({int(cpu) for cpu in options.cpus.split(",")})
    except ValueError:
        parser.error(f"--cpus: {options.cpus!r} is not a list of processors; write it like 0,1")
    if not set(options.cpus) <= set(usable):
        parser.error(f"--cpus: this process may use only {', '.join(map(str, usable))}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be positive, not {options.threads}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be positive, not {options.rounds}")
    options.threads = options.threads or len(options.cpus)
    return options


def variables(home: Path, threads: int) -> dict[str, str]:
    """Return the environment of a contender: threads, no network, and a home without settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "ADAPTERGIT_", "XDG_", "HF_"))}
    return {
        **kept,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "HOME": str(home),
        "TMPDIR": str(home),
        "ADAPTERGIT_CONFIG_DIR": str(home / "config"),
        "ADAPTERGIT_CACHE_DIR": str(home / "cache"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }
