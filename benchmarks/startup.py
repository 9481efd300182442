"""How long it takes to start: importing a library, and the command line, above starting Python itself."""

from __future__ import annotations

import os
import random
import subprocess
import time

from environments import environment
from harness import Bench, variables
from results import Row
from spread import quartiles

IMPORT_SECONDS, COMMAND_SECONDS = 0.060, 0.200
PYTHON, IMPORT, COMMAND = "python", "import adaptergit", "adaptergit --help"
CASES = {
    (PYTHON, "ours"): ["-c", "pass"],
    (IMPORT, "ours"): ["-c", "import adaptergit"],
    (COMMAND, "ours"): ["-m", "adaptergit", "--help"],
    ("import what loads and splices", "ours"): ["-c", "import adaptergit; adaptergit.load, adaptergit.adapters"],
    ("import torch, transformers", "ours"): ["-c", "import torch, transformers; transformers.BertModel"],
    ("import adapters", "adapters"): ["-c", "import adapters; adapters.init"],
    # Where there is no torchao, which PEFT imports if it finds it.
    ("import peft", "peft on 4.57"): ["-c", "import peft"],
}


def main() -> None:
    with Bench("startup", "Starting up") as bench:
        cases = {(name, who): argv for (name, who), argv in CASES.items() if bench.has(who)}
        for who in {who for _, who in cases}:
            bench.worker(who)  # says its versions
            bench.dismiss(who)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in cases}
        order = random.Random(0)
        for round_number in range(bench.rounds + 1):  # the first one warms up
            for key in order.sample(list(cases), len(cases)):
                took = seconds(bench, key[1], cases[key])
                if round_number:
                    times[key].append(took)
        least = quartiles(times[PYTHON, "ours"])[1]
        for (name, who), taken in times.items():
            low, middle, high = quartiles(taken)
            above = {} if name == PYTHON else {"above_python": middle - least}
            bench.result.rows.append(Row("a new process", who, name, middle, "s", low, high, facts=above))
        for what, limit in ((IMPORT, IMPORT_SECONDS), (COMMAND, COMMAND_SECONDS)):
            note = f"starting Python alone takes {1e3 * least:.0f} ms of it"
            bench.result.target(what, quartiles(times[what, "ours"])[1], limit, "s", note)


def seconds(bench: Bench, who: str, arguments: list[str]) -> float:
    where = environment(who)
    assert where is not None
    started = time.perf_counter()
    subprocess.run(
        [*where.command, *arguments],
        env=variables(bench.home, 1) | where.variables,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, bench.cpus),
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
