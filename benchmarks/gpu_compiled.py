"""What adapters cost in a compiled model on a GPU; a small batch with CUDA graphs, which start all kernels at once.

Says so and ends where there is no CUDA. ``--device cpu --size tiny`` tries the script out.
"""

from __future__ import annotations

from gpu import PLAIN, add_speed, name_device
from harness import Bench, Case

GRAPHS = "reduce-overhead"
SHAPES: tuple[tuple[int, int, str | None], ...] = ((32, 128, None), (1, 32, GRAPHS))


def main() -> None:
    with Bench("gpu_compiled", "On a GPU, compiled", percent=True, device="cuda") as bench:
        name_device(bench)
        for dtype in ("bfloat16",) if bench.quick else ("bfloat16", "float32"):
            for batch, length, mode in SHAPES:
                shape = {"batch": batch, "length": length, "size": bench.size, "device": bench.device, "dtype": dtype}
                compiled = {**shape, "compiled": True, "mode": mode}
                cases = []
                for who, methods in (("ours", ("seq_bn", "lora")), ("peft", ("lora",))):
                    cases.append(Case(who, PLAIN, "plain_forward", compiled))
                    cases += [Case(who, m, "forward", {**compiled, "method": m}, (who, PLAIN)) for m in methods]
                group = f"{dtype}, {batch} × {length}" + (", CUDA graphs" if mode == GRAPHS else "")
                bench.compare(group, cases)
                add_speed(bench, group, batch * length)


if __name__ == "__main__":
    main()
