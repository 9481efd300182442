"""What an adapter costs a forward pass, against the plain model of the same transformers version."""

from __future__ import annotations

from harness import Bench, Case, Series

SHAPES = ((4, 64), (1, 32))
PLAIN = "plain model"
FLOOR, NOISE = 0.005, 0.02
"""Overheads below the floor cannot be told from none. Where two equal models differ by the noise, nothing is judged."""


def main() -> None:
    with Bench("forward", "Forward pass with one adapter", percent=True) as bench:
        for batch, length in SHAPES:
            found = measure(bench, batch, length, bench.size)
            judge(bench, f"{batch} × {length}", found)
        if not bench.quick:
            measure(bench, 4, 64, "minilm")


def measure(bench: Bench, batch: int, length: int, size: str) -> dict[tuple[str, str], Series]:
    shape = {"batch": batch, "length": length, "size": size}
    methods = {"ours": ("seq_bn", "lora"), "adapters": ("seq_bn", "lora"), "peft": ("lora",)}
    if not bench.quick:
        whole = ("seq_bn", "double_seq_bn", "lora")
        methods = {"ours": whole, "ours on 4.57": ("seq_bn",), "adapters": whole, "peft": ("lora",)}
    cases = []
    for who, listed in methods.items():
        base = (who, PLAIN)
        cases += [Case(who, PLAIN, "plain_forward", shape), Case(who, f"{PLAIN} again", "plain_forward", shape, base)]
        cases += [Case(who, method, "forward", {**shape, "method": method}, base) for method in listed]
        cases.append(
            Case(who, f"{listed[0]}, inactive", "forward", {**shape, "method": listed[0], "active": False}, base)
        )
    name = "all-MiniLM-L6-v2" if size == "minilm" else f"BERT-{size}"
    return bench.compare(f"{name}, {batch} × {length}", cases)


def judge(bench: Bench, shape: str, found: dict[tuple[str, str], Series]) -> None:
    over = {(row.contender, row.name): row for row in bench.result.rows if row.group.endswith(shape)}

    def overhead(who: str, name: str) -> float | None:
        row = over.get((who, name))
        return None if row is None or row.ratio is None else row.ratio - 1

    plain, spliced = found.get(("ours", PLAIN)), found.get(("ours", "seq_bn"))
    bound = "" if plain is None or spliced is None else _bound(plain, spliced)
    theirs, control = overhead("adapters", "seq_bn"), overhead("ours", f"{PLAIN} again")
    what = f"overhead of one active seq_bn, {shape}, at most half of `adapters`'"
    bench.result.target(
        what, overhead("ours", "seq_bn"), None if theirs is None else max(theirs / 2, FLOOR), "%", bound
    )
    note = "" if control is None else f"a second plain model {100 * control:+.1f} %"
    limit = None if control is None or abs(control) > NOISE else max(FLOOR, abs(control))
    what = f"overhead of an inactive seq_bn, {shape}, none that can be measured"
    bench.result.target(what, overhead("ours", "seq_bn, inactive"), limit, "%", note)


def _bound(plain: Series, spliced: Series) -> str:
    return f"its own FLOPs are {100 * (spliced.facts['flops'] / plain.facts['flops'] - 1):+.2f} %"


if __name__ == "__main__":
    main()
