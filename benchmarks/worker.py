"""One contender in a process of its own: makes actions ready and times them, a JSON line a request.

Started by :mod:`harness`: ``python worker.py CONTENDER CPUS THREADS``. Requests are
``{"prepare": key, "do": function, "with": {…}}``, ``{"run": key, "times": n}``, ``{"drop": key}``,
``{"profile": key, "times": n, "clock": "wall"}`` and ``{"ask": function, "with": {…}}``.
"""

from __future__ import annotations

import cProfile
import gc
import importlib
import json
import os
import pstats
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    name, cpus, threads = sys.argv[1], [int(cpu) for cpu in sys.argv[2].split(",")], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    os.sched_setaffinity(0, cpus)
    import torch

    torch.set_num_threads(threads)
    contender = importlib.import_module(f"contenders.{name}")
    actions: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": _answer(request, contender, actions)}
        except Exception:  # noqa: BLE001 - whatever a contender raises is an answer about it, and the others go on
            answer = {"error": traceback.format_exc(limit=-6)}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any], contender: Any, actions: dict[str, Any]) -> Any:
    if "prepare" in request:
        action = getattr(contender, request["do"])(**request["with"])
        actions[request["prepare"]] = action
        # What is there stays: collecting before every sample need not look through it again.
        gc.collect()
        gc.freeze()
        return action.facts
    if "ask" in request:
        return getattr(contender, request["ask"])(**request["with"])
    if "drop" in request:
        actions.pop(request["drop"], None)
        gc.unfreeze()
        gc.collect()
        return None
    if "profile" in request:
        return _profile(actions[request["profile"]], request["times"], request["clock"])
    return _time(actions[request["run"]], request["times"])


def _time(action: Any, times: int) -> dict[str, float]:
    """Return the seconds of one run: by the clock on the wall, by the processor's, and with what is done around it."""
    wall = cpu = 0.0
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    try:
        for _ in range(times):
            action.before()
            action.synchronise()
            wall_before, cpu_before = time.perf_counter(), time.process_time()
            action.run()
            action.synchronise()
            wall += time.perf_counter() - wall_before
            cpu += time.process_time() - cpu_before
            action.after()
    finally:
        gc.enable()
    return {"wall": wall / times, "cpu": cpu / times, "whole": (time.perf_counter() - began) / times}


def _profile(action: Any, times: int, clock: str) -> list[dict[str, Any]]:
    """Return every function that ran, with the seconds of a run that were its own, and with what it called."""
    profile = cProfile.Profile({"wall": time.perf_counter, "cpu": time.process_time}[clock])
    for _ in range(times):
        action.before()
        profile.enable()
        action.run()
        profile.disable()
        action.after()
    found = []
    for (file, line, function), (_, calls, own, total, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        where = function if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {function}"
        found.append({"where": where, "file": file, "calls": calls / times, "own": own / times, "total": total / times})
    return found


if __name__ == "__main__":
    main()
