"""Has something become much slower? Ratios of our own against the plain model, with margins as wide as a busy machine.

``make bench-check`` runs it, in CI too: no second counts, no peer is needed, and it ends with 1 if a ratio is crossed.
A limit is about twice what was measured when it was set; lower it when something was made faster.
"""

from __future__ import annotations

import os
import sys

from harness import Bench, Case

PLAIN = "plain model"
# What is measured, as (function, options), and the most it may take as a multiple of another of them.
SMALL = {"size": "small"}
ONE_ROW, MANY_ROWS = {"batch": 1, "length": 32, **SMALL}, {"rows": 16, "length": 32, **SMALL}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    PLAIN: ("plain_forward", ONE_ROW),
    "seq_bn": ("forward", {**ONE_ROW, "method": "seq_bn"}),
    "lora": ("forward", {**ONE_ROW, "method": "lora"}),
    "seq_bn, inactive": ("forward", {**ONE_ROW, "method": "seq_bn", "active": False}),
    "load from the store": ("load", {"method": "seq_bn", **SMALL}),
    "switch, 2 loaded": ("switch", {"loaded": 2, **SMALL}),
    "switch, 40 loaded": ("switch", {"loaded": 40, **SMALL}),
    "add, 2 loaded": ("add", {"loaded": 2, **SMALL}),
    "add, 40 loaded": ("add", {"loaded": 40, **SMALL}),
    "one adapter for 16 rows": ("mixed", {**MANY_ROWS, "one": True}),
    "an adapter for each of 16 rows": ("mixed", MANY_ROWS),
    "using(), 40 loaded": ("switch_for_a_call", {"loaded": 40, **SMALL}),
    "merge": ("merge", SMALL),
    "unmerge": ("unmerge", SMALL),
}
LIMITS: list[tuple[str, str, float]] = [
    ("seq_bn", PLAIN, 1.3),
    ("lora", PLAIN, 1.3),
    ("seq_bn, inactive", PLAIN, 1.15),
    ("load from the store", PLAIN, 5),
    ("switch, 40 loaded", PLAIN, 0.02),
    ("using(), 40 loaded", PLAIN, 1),
    ("switch, 40 loaded", "switch, 2 loaded", 2),
    ("add, 40 loaded", PLAIN, 1),
    ("add, 40 loaded", "add, 2 loaded", 2),
    ("an adapter for each of 16 rows", "one adapter for 16 rows", 2),
    ("merge", PLAIN, 1),
    ("unmerge", "merge", 0.4),
]


def main() -> None:
    # One thread on whichever processor is free, by the processor's clock: other work costs time, not ratios.
    anywhere = {"cpus": ",".join(map(str, os.sched_getaffinity(0))), "threads": 1, "clock": "cpu", "rounds": 5}
    with Bench("regression", "Ratios that must not grow", quick=True, size="small", **anywhere) as bench:
        cases = [Case("ours", name, function, options) for name, (function, options) in CASES.items()]
        found = bench.compare("BERT-small", cases)
        for name, against, limit in LIMITS:
            bench.result.target(f"{name}, against {against}", bench.ratio_of(found, name, against), limit, "x")
        steps = {"batch": 2, "length": 64, "size": "small"}
        trained = bench.compare(
            "training",
            [Case("ours", "seq_bn", "train_step", steps), Case("plain", "every weight", "train_step", steps)],
        )
        ours, plain = (trained[key].times for key in (("ours", "seq_bn"), ("plain", "every weight")))
        bench.result.target("a training step, against training every weight", min(ours) / min(plain), 1, "x")
        facts = bench.ask("ours", "compiling", size="tiny", count=3)
        bench.result.target("graph breaks", facts["breaks"], 0, "breaks")
        bench.result.target("compilations when switching between 3", facts["recompiled"], 0, "graphs")
        bench.result.target(
            "compiled forwards that gave another adapter's answer", int(not facts["right"]), 0, "forwards"
        )
    if any(target.met is not True for target in bench.result.targets):
        sys.exit(1)


if __name__ == "__main__":
    main()
