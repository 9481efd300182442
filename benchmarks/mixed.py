"""What it costs that every row of a batch goes through an adapter of its own, against all rows through one."""

from __future__ import annotations

from harness import Bench, Case

ROWS, LENGTH = (8, 32, 128), 32
MOST = 1.3
MANY = 32
"""Rows up to which other ways to say the same are measured too."""
ONE, MIXED = "one adapter for all rows", "an adapter for each row"


def main() -> None:
    with Bench("mixed", "A batch whose rows use different adapters") as bench:
        for rows in ROWS[:2] if bench.quick else ROWS:
            shape = {"rows": rows, "length": LENGTH, "size": bench.size}
            cases = []
            for who, methods in (("ours", ("seq_bn", "lora")), ("adapters", ("seq_bn", "lora")), ("peft", ("lora",))):
                for method in methods:
                    one = f"{method}, {ONE}"
                    options = {**shape, "method": method}
                    cases.append(Case(who, one, "mixed", {**options, "one": True}))
                    cases.append(Case(who, f"{method}, {MIXED}", "mixed", options, (who, one)))
            if rows <= MANY:
                base, options = ("ours", f"seq_bn, {ONE}"), {**shape, "method": "seq_bn"}
                routed = {**options, "routed": True}
                cases.append(Case("ours", f"seq_bn, {MIXED}, routed each time", "mixed", routed, base))
                cases.append(Case("ours", "seq_bn, as BatchSplit", "mixed", {**options, "split": True}, base))
            bench.compare(f"{rows} rows × {LENGTH}", cases)
        for row in bench.result.rows:
            if row.contender == "ours" and row.name.endswith(MIXED):
                bench.result.target(f"{row.group}, {row.name}", row.ratio, MOST, "x")


if __name__ == "__main__":
    main()
