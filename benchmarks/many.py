"""What one adapter costs beside many others on one model: to load, to activate, to delete."""

from __future__ import annotations

from harness import Bench, Case

COUNTS = (10, 100, 1000)
STEPS = ("load", "activate", "delete")
METHOD = {"ours": "seq_bn", "adapters": "seq_bn", "peft": "lora"}
SECONDS = 600
"""How long a contender may take to get to a count; after that it is left out, with a note."""
FLAT = 1.5


def main() -> None:
    with Bench("many", "One adapter beside many, on one model") as bench:
        size = "small" if bench.size == "base" else bench.size
        counts = COUNTS[:2] if bench.quick else COUNTS
        for count in counts:
            cases = [
                Case(
                    who,
                    step,
                    "many",
                    {"count": count, "step": step, "method": method, "size": size, "seconds": SECONDS},
                    ("ours", step),
                )
                for who, method in METHOD.items()
                for step in STEPS
            ]
            bench.compare(f"BERT-{size}, beside {count:,}", cases, x=count)
        took = {(row.name, row.x): row.value for row in bench.result.rows if row.contender == "ours"}
        few, most = counts[0], counts[-1]
        for step in STEPS:
            grown = took[step, most] / took[step, few] if {(step, most), (step, few)} <= took.keys() else None
            bench.result.target(f"{step} beside {most:,} against beside {few}, flat", grown, FLAT, "x")


if __name__ == "__main__":
    main()
