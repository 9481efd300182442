"""What it takes to choose another adapter, and to add one more, with many loaded."""

from __future__ import annotations

from harness import Bench, Case

LOADED = (2, 10, 40)
METHOD = {"ours": "seq_bn", "adapters": "seq_bn", "peft": "lora"}
SWITCH, ADD, USING = "switch the active adapter", "add one more", "enter and leave using()"
DRAW = "draw a fresh adapter's values"
SWITCH_SECONDS, ADD_SECONDS, FLAT = 0.001, 0.005, 1.3


def main() -> None:
    with Bench("switching", "Switching and adding adapters, many loaded") as bench:
        for loaded in LOADED[:: 2 if bench.quick else 1]:
            cases = []
            for who, method in METHOD.items():
                options = {"loaded": loaded, "method": method, "size": bench.size}
                cases += [
                    Case(who, SWITCH, "switch", options, ("ours", SWITCH)),
                    Case(who, ADD, "add", options, ("ours", ADD)),
                ]
            options = {"loaded": loaded, "method": "lora", "size": bench.size}
            cases.append(Case("ours", f"{SWITCH}, LoRA", "switch", options))
            cases.append(Case("ours", f"{ADD}, LoRA", "add", options))
            options = {"loaded": loaded, "method": "seq_bn", "size": bench.size}
            cases.append(Case("ours", USING, "switch_for_a_call", options))
            cases.append(Case("ours", DRAW, "draw", {"method": "seq_bn", "size": bench.size}))
            bench.compare(f"{loaded} loaded", cases, x=loaded)
        took = {(row.name, row.x): row.value for row in bench.result.rows if row.contender == "ours"}
        few, many = LOADED[0], LOADED[-1]
        drawn = took.get((DRAW, many))
        bound = "" if drawn is None else f"drawing its first values alone takes {1e3 * drawn:.1f} ms"
        bench.result.target(f"{SWITCH}, {many} loaded", took.get((SWITCH, many)), SWITCH_SECONDS, "s")
        bench.result.target(f"{USING}, {many} loaded", took.get((USING, many)), SWITCH_SECONDS, "s")
        bench.result.target(f"{ADD}, {many} loaded", took.get((ADD, many)), ADD_SECONDS, "s", bound)
        for what in (SWITCH, USING, ADD):
            grown = took[what, many] / took[what, few] if {(what, many), (what, few)} <= took.keys() else None
            bench.result.target(f"{what}: with {many} loaded against {few}, flat", grown, FLAT, "x")


if __name__ == "__main__":
    main()
