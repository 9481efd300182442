"""What adapters cost on a GPU: forward, mixed batches, a training step; in bfloat16 and float32.

Says so and ends where there is no CUDA. ``--device cpu --size tiny`` tries the script out.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Bench, Case, ContenderError

ROWS, LENGTH = (8, 32, 128, 256), 64
PLAIN = "plain model"
MIXED_MOST = 1.3


def main() -> None:
    with Bench("gpu", "On a GPU", percent=True, device="cuda") as bench:
        name_device(bench)
        for dtype in ("bfloat16", "float32"):
            where = {"size": bench.size, "device": bench.device, "dtype": dtype}
            for batch, length in ((32, 128), (1, 32)):
                forward(bench, batch, length, where)
            mixed(bench, where)
            training(bench, where)


def forward(bench: Bench, batch: int, length: int, where: dict[str, Any]) -> None:
    shape = {"batch": batch, "length": length, **where}
    cases = []
    for who, methods in (("ours", ("seq_bn", "double_seq_bn", "lora")), ("peft", ("lora",))):
        base = (who, PLAIN)
        cases += [Case(who, PLAIN, "plain_forward", shape), Case(who, f"{PLAIN} again", "plain_forward", shape, base)]
        cases += [Case(who, method, "forward", {**shape, "method": method}, base) for method in methods]
        inactive = {**shape, "method": methods[0], "active": False}
        cases.append(Case(who, f"{methods[0]}, inactive", "forward", inactive, base))
    group = f"{where['dtype']}, {batch} × {length}"
    bench.compare(group, cases)
    add_speed(bench, group, batch * length)


def name_device(bench: Bench) -> None:
    """Write down which GPU it is, or end where there is none."""
    if bench.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device here: nothing was measured")
        bench.result.settings["device"] = torch.cuda.get_device_name()


def add_speed(bench: Bench, group: str, tokens: int) -> None:
    """Say the times of a group as tokens a second, and as shares of the plain model's."""
    for row in [row for row in bench.result.rows if row.group == group]:
        share = {} if row.ratio is None else {"of the plain model's": 1 / row.ratio}
        bench.add(f"{group}, speed", row.contender, row.name, tokens / row.value, "tokens/s", facts=share)


def mixed(bench: Bench, where: dict[str, Any]) -> None:
    for rows in ROWS[:2] if bench.quick else ROWS:
        cases = []
        for who, methods in (("ours", ("seq_bn", "lora")), ("peft", ("lora",))):
            for method in methods:
                options, one = {"rows": rows, "length": LENGTH, "method": method, **where}, f"{method}, one adapter"
                cases.append(Case(who, one, "mixed", {**options, "one": True}))
                cases.append(Case(who, f"{method}, an adapter for each row", "mixed", options, (who, one)))
        group = f"{where['dtype']}, {rows} rows × {LENGTH}"
        found = bench.compare(group, cases)
        for method in ("seq_bn", "lora"):
            ratio = bench.ratio_of(found, f"{method}, an adapter for each row", f"{method}, one adapter")
            bench.result.target(f"{group}, {method}: an adapter for each row against one", ratio, MIXED_MOST, "x")


def training(bench: Bench, where: dict[str, Any]) -> None:
    shape, group = {"batch": 16, "length": 128, **where}, f"{where['dtype']}, a training step of 16 × 128"
    steps = (
        ("ours", "seq_bn", {"method": "seq_bn"}),
        ("ours", "lora", {"method": "lora"}),
        ("peft", "lora", {"method": "lora"}),
        ("plain", "every weight", {}),
    )
    whole = ("plain", "every weight")
    bench.compare(group, [Case(who, name, "train_step", {**shape, **more}, whole) for who, name, more in steps])
    for who, name, more in steps:
        if bench.has(who):
            try:
                facts = bench.ask(who, "train_memory", "memory", **shape, **more)
                bench.add(f"{group}, memory", who, name, facts["peak"], "bytes")
            except ContenderError as failure:
                bench.result.notes.append(f"memory of {who}, {name}: {str(failure).splitlines()[-1]}")
            bench.dismiss(who, "memory")


if __name__ == "__main__":
    main()
