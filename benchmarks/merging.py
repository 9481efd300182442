"""What it takes to merge a LoRA into the weights and to take it out again, and whether it leaves a trace."""

from __future__ import annotations

from harness import Bench, Case

MERGE, UNMERGE = "merge", "unmerge"


def main() -> None:
    with Bench("merging", "Merging and unmerging a LoRA of rank 8") as bench:
        cases = []
        for who in ("ours", "adapters", "peft"):
            for step in (MERGE, UNMERGE):
                cases.append(Case(who, step, step, {"size": bench.size}, ("peft", step)))
        found = bench.compare(f"BERT-{bench.size}", cases)
        for who in ("ours", "adapters", "peft"):
            if (who, MERGE) in found:
                left = found[who, MERGE].facts["left"]
                bench.result.notes.append(f"{who}: the largest change of a weight that stays behind is {left:.2g}")
        ratios = {(row.contender, row.name): row.ratio for row in bench.result.rows}
        for step in (MERGE, UNMERGE):
            bench.result.target(f"{step} a LoRA, against PEFT", ratios.get(("ours", step)), 1.0, "x")
        ours = found.get(("ours", MERGE))
        bench.result.target("weights after unmerging, exactly restored", ours and ours.facts["left"], 0.0, "off")


if __name__ == "__main__":
    main()
