"""What a training step takes, in time and in memory beyond the weights: forward, backward, AdamW."""

from __future__ import annotations

from harness import Bench, Case, ContenderError

DROPPED = 5
"""Blocks without adapter in AdapterDrop, as in Rücklé et al. 2021."""


def main() -> None:
    with Bench("training", "A training step") as bench:
        batch, length = (4, 128) if bench.quick else (16, 128)
        shape = {"batch": batch, "length": length, "size": bench.size}
        group = f"BERT-{bench.size}, {batch} × {length}"
        methods = [
            ("ours", "seq_bn", {"method": "seq_bn"}),
            ("adapters", "seq_bn", {"method": "seq_bn"}),
            ("ours", "LoRA", {"method": "lora"}),
            ("adapters", "LoRA", {"method": "lora"}),
            ("peft", "LoRA", {"method": "lora"}),
            ("ours", "seq_bn, AdapterDrop", {"method": "seq_bn", "skip": DROPPED}),
            ("adapters", "seq_bn, AdapterDrop", {"method": "seq_bn", "skip": DROPPED}),
            ("plain", "every weight", {}),
        ]
        against = {"seq_bn": ("ours", "seq_bn"), "LoRA": ("ours", "LoRA"), "seq_bn, AdapterDrop": ("ours", "seq_bn")}
        cases = [
            Case(who, name, "train_step", {**shape, **options}, against.get(name)) for who, name, options in methods
        ]
        bench.compare(group, cases)
        for who, name, options in methods:
            if not bench.has(who):
                continue
            try:  # in a process of its own, so that nothing else was freed before
                facts = bench.ask(who, "train_memory", name, **shape, **options)
                bench.add(f"{group}, memory", who, name, facts["peak"], "bytes", against.get(name))
            except ContenderError as failure:
                bench.result.notes.append(f"memory of {who}, {name}: {str(failure).splitlines()[-1]}")
            bench.dismiss(who, name)
        judge(bench)


def judge(bench: Bench) -> None:
    for unit, what in (("s", "time"), ("bytes", "memory")):
        found = {(row.contender, row.name): row.value for row in bench.result.rows if row.unit == unit}
        for peer, name in (("adapters", "seq_bn"), ("adapters", "LoRA"), ("peft", "LoRA")):
            ours, theirs = found.get(("ours", name)), found.get((peer, name))
            share = None if ours is None or theirs is None else ours / theirs
            bench.result.target(f"{what} of a step, {name}, against {peer}", share, 1.0, "x")
        whole, dropped = found.get(("ours", "seq_bn")), found.get(("ours", "seq_bn, AdapterDrop"))
        share = None if whole is None or dropped is None else dropped / whole
        bench.result.target(f"{what} of a step, AdapterDrop of {DROPPED} blocks against none", share, 0.85, "x")


if __name__ == "__main__":
    main()
