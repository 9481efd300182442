"""Whether torch.compile takes a model with an adapter in one graph, and what switching between adapters recompiles."""

from __future__ import annotations

from harness import Bench, Case, ContenderError

ADAPTERS = 3
METHODS = {"ours": ("seq_bn", "lora"), "adapters": ("seq_bn", "lora"), "peft": ("lora",)}
COMPILED = "compiled"


def main() -> None:
    with Bench("compiling", "torch.compile with an adapter", percent=True) as bench:
        size = "small" if bench.size == "base" else bench.size
        for who, methods in METHODS.items():
            for method in methods:
                if not bench.has(who):
                    continue
                try:
                    facts = bench.ask(who, "compiling", method=method, count=ADAPTERS, size=size)
                except ContenderError as failure:
                    bench.result.notes.append(f"{who}, {method}: {str(failure).splitlines()[-1]}")
                    continue
                bench.add("graph breaks", who, method, facts["breaks"], "breaks", facts=facts)
                bench.add(f"compilations when switching between {ADAPTERS}", who, method, facts["recompiled"], "graphs")
                if not facts["right"]:
                    bench.result.notes.append(f"{who}, {method}: a compiled forward gave another adapter's answer")
        if not bench.quick:
            shape = {"batch": 4, "length": 64, "size": bench.size, "compiled": True}
            cases = []
            for who, methods in METHODS.items():
                cases.append(Case(who, f"plain model, {COMPILED}", "plain_forward", shape))
                for method in methods:
                    against = (who, f"plain model, {COMPILED}")
                    cases.append(Case(who, f"{method}, {COMPILED}", "forward", {**shape, "method": method}, against))
            bench.compare(f"BERT-{bench.size}, 4 × 64", cases)
        found = {(row.group.split(" ")[0], row.name): row.value for row in bench.result.rows if row.contender == "ours"}
        for method in METHODS["ours"]:
            bench.result.target(f"graph breaks, {method}", found.get(("graph", method)), 0, "breaks")
            what = f"compilations when switching between {ADAPTERS} equal shapes, {method}"
            bench.result.target(what, found.get(("compilations", method)), 0, "graphs")


if __name__ == "__main__":
    main()
