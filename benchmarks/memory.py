"""What many loaded adapters hold in memory, against the bytes of their weights; alone and in two processes at once.

One is loaded before memory is looked at: what a library imports for its first load is not memory of adapters.
"""

from __future__ import annotations

from typing import Any

from harness import Bench, ContenderError

METHOD = {"ours": "seq_bn", "adapters": "seq_bn", "peft": "lora[r=24]"}
MOST = 1.05
LOADED, USED, SHARED = "loaded", "loaded and used once", "in each of two processes"


def main() -> None:
    with Bench("memory", "Memory of many adapters, over the weights' bytes") as bench:
        count = 20 if bench.quick else 100
        for who in METHOD:
            if bench.has(who):
                try:
                    measure(bench, who, count)
                except ContenderError as failure:
                    bench.result.notes.append(f"{who}: {str(failure).splitlines()[-1]}")
        found = {(row.contender, row.name): row.value for row in bench.result.rows}
        for name in (LOADED, USED, SHARED):
            limit = MOST / 2 if name == SHARED else MOST
            note = "memory-mapped and shared, each holds half" if name == SHARED else ""
            bench.result.target(f"memory of {count} adapters, {name}", found.get(("ours", name)), limit, "x", note)


def measure(bench: Bench, who: str, count: int) -> None:
    first, *folders = bench.ask(who, "publish", "publisher", count=count + 1, method=METHOD[who], size=bench.size)
    bench.dismiss(who, "publisher")
    group = f"{count} adapters"
    for name, use in ((LOADED, False), (USED, True)):
        bench.ask(who, "hold", name, size=bench.size, folder=first)
        before = bench.ask(who, "memory", name)
        after = bench.ask(who, "load_all", name, folders=folders, use=use)
        bench.dismiss(who, name)
        _add(bench, group, who, name, after, after["resident"] - before["resident"])
    instances = ("one", "other")
    for instance in instances:
        bench.ask(who, "hold", instance, size=bench.size, folder=first)
    before = [bench.ask(who, "memory", instance)["proportional"] for instance in instances]
    after = [bench.ask(who, "load_all", instance, folders=folders, use=True) for instance in instances]
    held = [bench.ask(who, "memory", instance)["proportional"] for instance in instances]
    for instance in instances:
        bench.dismiss(who, instance)
    _add(bench, group, who, SHARED, after[0], (sum(held) - sum(before)) / len(instances))


def _add(bench: Bench, group: str, who: str, name: str, facts: dict[str, Any], grown: float) -> None:
    bench.add(group, who, name, grown / facts["weights"], "x", facts={"bytes": grown, "weights": facts["weights"]})


if __name__ == "__main__":
    main()
