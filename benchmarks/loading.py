"""What it takes to load one adapter of 3.5 MB into a model: ours verified from the store, the peers' from a folder."""

from __future__ import annotations

from harness import Bench, Case

METHOD = {"ours": "seq_bn", "adapters": "seq_bn", "peft": "lora[r=24]"}
"""PEFT has no bottleneck; this LoRA has as many bytes."""
SECONDS = 0.010
LOAD, FIRST, THEIRS = "into a model that has a panel", "into a plain model", "into a model that has one"


def main() -> None:
    with Bench("loading", "Loading one adapter into a model") as bench:
        group = f"BERT-{bench.size}, verified"
        cases = [Case("ours", LOAD, "load", {"method": "seq_bn", "size": bench.size})]
        for name, function in (
            (FIRST, "first_load"),
            ("from a folder, nobody's", "load_unverified"),
            ("only verified", "verify"),
            ("only read and hashed once", "hash_once"),
        ):
            cases.append(_case(bench, "ours", name, function))
        if not bench.quick:
            cases.append(
                Case(
                    "ours",
                    "a LoRA, into a model that has a panel",
                    "load",
                    {"method": "lora[r=24]", "size": bench.size},
                )
            )
        for who in ("adapters", "peft"):
            cases += [_case(bench, who, THEIRS, "load"), _case(bench, who, FIRST, "first_load")]
        found = bench.compare(group, cases)
        medians = {(row.contender, row.name): row.value for row in bench.result.rows}
        size = found["ours", LOAD].facts["bytes"] if ("ours", LOAD) in found else 0
        for name in (LOAD, FIRST):
            what = f"load one adapter {name}, signature and checksums of {size / 1e6:.1f} MB verified"
            bound = medians.get(("ours", "only read and hashed once"))
            theirs = medians.get(("adapters", FIRST if name == FIRST else THEIRS))
            said = [f"reading and hashing the file once takes {1e3 * bound:.1f} ms"] if bound else []
            said += [f"`adapters`, which verifies nothing, {1e3 * theirs:.0f} ms"] if theirs else []
            note = ", ".join(said)
            bench.result.target(what, medians.get(("ours", name)), SECONDS, "s", note)


def _case(bench: Bench, who: str, name: str, function: str) -> Case:
    return Case(who, name, function, {"method": METHOD[who], "size": bench.size}, ("ours", LOAD))


if __name__ == "__main__":
    main()
