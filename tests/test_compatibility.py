"""docs/compatibility.md has a row for every option and a cell for every method in every block, and they are true."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model

from adaptergit.errors import UsageError
from adaptergit.splice import Average, BatchSplit, Fuse, MultiTask, Parallel, Route, Split, Stack, adapters
from adaptergit.splice.config import parse_config
from adaptergit.splice.fusion import FusionConfig

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
START, STOP = "<!-- tables: python tests/test_compatibility.py -->\n", "<!-- end of tables -->\n"
THEIRS = json.loads((Path(__file__).parent / "assets" / "adapters_fields.json").read_text())
"""Every field of the configurations of ``adapters`` 1.3.0, with its default."""

METHODS = {
    "bottleneck": "seq_bn[reduction_factor=4]",
    "bottleneck, parallel": "par_bn[reduction_factor=4]",
    "Compacter": "compacter[phm_dim=2, reduction_factor=4]",
    "bottleneck with invertible": "seq_bn_inv[reduction_factor=4]",
    "LoRA": "lora[r=2]",
    "DoRA": "dora[r=2]",
    "VeRA": "vera[r=2]",
    "MTL-LoRA": "mtl_lora[r=2]",
    "IA3": "ia3",
    "prefix tuning": "prefix_tuning_flat[prefix_length=2]",
    "prompt tuning": "prompt_tuning[prompt_length=2]",
    "ReFT": "loreft",
    "MAM": "prefix_tuning[prefix_length=1, bottleneck_size=4] | par_bn[reduction_factor=4]",
    "UniPELT": "unipelt",
}
BLOCKS = {
    "Stack": Stack("a", "b"),
    "Fuse": Fuse("a", "b"),
    "Split": Split("a", "b", splits=[2, 4]),
    "BatchSplit": BatchSplit("a", "b", batch_sizes=[1, 3]),
    "Parallel": Parallel("a", "b"),
    "Average": Average("a", "b", weights=[0.3, 0.7]),
    "MultiTask": MultiTask("a", "b"),
    "Route": Route("a", None, "b", "a"),
}
# What `adapters` does, from its source and the golden cases. What is missing here, it refuses or has not.
SAME, ROWS = {"Stack", "BatchSplit", "Parallel"}, {"BatchSplit", "Parallel"}
PEER: dict[str, tuple[set[str], set[str]]] = {
    # method: (same numbers, other numbers for a reason that is listed under the defects)
    "bottleneck": (SAME | {"Fuse", "Split"}, {"Average"}),
    "bottleneck, parallel": (SAME | {"Fuse", "Split"}, {"Average"}),
    "Compacter": (SAME | {"Fuse", "Split"}, {"Average"}),
    "bottleneck with invertible": (set(), SAME | {"Average", "Split"}),
    "LoRA": (SAME, {"Average"}),
    "DoRA": ({"Stack"}, ROWS | {"Average"}),
    "VeRA": (SAME, {"Average"}),
    "MTL-LoRA": (SAME | {"MultiTask"}, {"Average"}),
    "IA3": (SAME, {"Average"}),
    "prefix tuning": (SAME, set()),
    "prompt tuning": (set(), SAME),
    "ReFT": (set(), SAME),
    "MAM": (SAME, set()),
    "UniPELT": (SAME, set()),
}


def host() -> Any:
    panel = adapters(tiny_model())
    torch.manual_seed(0)
    for name, config in METHODS.items():
        for leaf in ("a", "b"):
            panel.add(f"{name} {leaf}", config)
            with torch.no_grad():
                for parameter in panel.module(f"{name} {leaf}").parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn(parameter.shape) * 0.2)
    return panel


def composed(panel: Any, method: str, block: str) -> Any:
    names = {"a": f"{method} a", "b": f"{method} b", None: None}
    kind, given = type(BLOCKS[block]), BLOCKS[block]
    options = {f: getattr(given, f) for f in given.named if getattr(given, f) is not None}
    tree = kind(*(names[child] for child in given.children), **options)
    if block == "Fuse" and tree.key not in panel.fusions:
        panel.add_fusion(tree)
    return tree


def works(panel: Any, method: str, block: str) -> bool:
    """Run it, and tell whether it is refused."""
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(0))
    try:
        with panel.using(composed(panel, method, block), task_ids=[0, 1, 1, 0]), torch.no_grad():
            hidden = panel.model(ids)[0]
    except UsageError:
        return False
    assert torch.isfinite(hidden).all()
    return True


def cell(method: str, block: str, here: bool) -> str:
    same, other = PEER[method]
    if not here:
        return "refused"
    return "same" if block in same else "differs: theirs is a defect" if block in other else "only here"


def tables() -> str:
    panel = host()
    lines = [f"| method | {' | '.join(BLOCKS)} |", f"|---|{'---|' * len(BLOCKS)}"]
    for method in METHODS:
        lines.append(f"| {method} | {' | '.join(cell(method, b, works(panel, method, b)) for b in BLOCKS)} |")
    lines += ["", "| configuration | field | default | `adapters` |", "|---|---|---|---|"]
    for family, made in options().items():
        theirs = THEIRS.get(family, {})
        for field in fields(made):
            value = getattr(made, field.name)
            shown = json.dumps(list(value) if isinstance(value, tuple) else value)
            known = "same" if field.name in theirs else "only here"
            lines.append(f"| {family} | `{field.name}` | `{shown}` | {known} |")
        for name in sorted(theirs.keys() - {field.name for field in fields(made)}):
            lines.append(f"| {family} | `{name}` | – | read, and fixed by the method |")
    return "\n".join(lines) + "\n"


def options() -> dict[str, Any]:
    texts = {
        "bottleneck": "seq_bn", "lora": "lora", "ia3": "ia3", "vera": "vera", "mtl_lora": "mtl_lora",
        "prefix_tuning": "prefix_tuning", "prompt_tuning": "prompt_tuning", "reft": "loreft", "weight_form": "loha",
    }  # fmt: skip
    return {family: parse_config(text) for family, text in texts.items()} | {"fusion": FusionConfig()}


def test_the_tables_are_what_the_library_does() -> None:
    """A method, block or option changed? python tests/test_compatibility.py writes them anew."""
    page = PAGE.read_text(encoding="utf-8")
    assert page[page.index(START) + len(START) : page.index(STOP)] == "\n" + tables() + "\n"


@pytest.mark.parametrize("family", [family for family in options() if family in THEIRS])
def test_every_field_of_adapters_is_one_of_ours(family: str) -> None:
    missing = set(THEIRS[family]) - {field.name for field in fields(options()[family])}
    fixed = {"composition_mode", "use_dora", "vera_d", "vera_b", "prompt_init_text", "init_weights"}
    assert missing <= fixed


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text[: text.index(START) + len(START)], text[text.index(STOP) :]
    PAGE.write_text(f"{head}\n{tables()}\n{tail}", encoding="utf-8")
