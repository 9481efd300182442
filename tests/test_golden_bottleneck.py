"""The numbers of AdapterHub's `adapters`, reproduced from its own checkpoints.

Every case is one forward of a tiny model with bottleneck adapters; inputs, outputs and tolerance are in the case.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from adaptergit.errors import PackageError
from adaptergit.formats.adapterhub import read_adapterhub, translate
from adaptergit.splice import Stack, adapters
from adaptergit.splice.checkpoint import fill
from adaptergit.splice.heads import build_head

GOLDEN = Path(__file__).parent / "assets" / "golden"
CASES = sorted(path.name for path in (GOLDEN / "cases").iterdir())
# Heads other than classification, and the merging of adapters, are not part of this version.
OTHER_HEADS = {
    "causal_lm",
    "masked_lm",
    "tagging",
    "question_answering",
    "multiple_choice",
    "multilabel_classification",
    "dependency_parsing",
}


def read(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "cases" / case / "case.json").read_text())


def has_other_head(case: dict[str, Any]) -> bool:
    return any((head.get("config") or {}).get("head_type") in OTHER_HEADS for head in case["heads"].values())


def tensors_of(folder: Path, safe: str, pickled: str) -> dict[str, torch.Tensor]:
    """The library writes some checkpoints as pickle only; the test, unlike the library, trusts these files."""
    path = folder / safe
    return load_file(path) if path.exists() else torch.load(folder / pickled, weights_only=True)


def splice(panel: Any, name: str, folder: Path, record: dict[str, Any], with_head: bool) -> None:
    raw = json.loads((folder / "adapter_config.json").read_text())
    leave_out = (record["checkpoint"].get("load_kwargs") or {}).get("leave_out", [])
    tensors = tensors_of(folder, "adapter.safetensors", "pytorch_adapter.bin")
    raw["config"]["leave_out"] = sorted({*raw["config"].get("leave_out", []), *leave_out})
    tensors = {
        k: v for k, v in tensors.items() if not any(f".{i}." in k.split(".adapters.")[0] + "." for i in leave_out)
    }
    head_raw = head_tensors = None
    if with_head and (folder / "head_config.json").exists():
        head_raw = json.loads((folder / "head_config.json").read_text())
        head_tensors = tensors_of(folder, "model_head.safetensors", "pytorch_model_head.bin")
    found = translate(raw, tensors, panel.anatomy, head_raw, head_tensors, model_class=type(panel.model).__name__)
    modules = panel.build(found.config)
    fill({f"{site.key}.": module for site, module in modules.items()}, found.tensors, where=str(folder))
    panel.insert(name, found.config, modules)
    if found.head is not None:
        with torch.device("meta"):
            head = build_head(found.head, panel.model, panel.anatomy.hidden_size).to("meta")
        fill({"": head}, found.head_tensors, where=str(folder))
        panel.insert_head(name, found.head, head)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_adapters_are_met(name: str) -> None:
    case = read(name)
    folder = GOLDEN / "cases" / name
    kind = getattr(transformers, case["load_base_with"])
    model = kind.from_pretrained(GOLDEN / "bases" / case["base"], attn_implementation="eager").eval()
    io = load_file(folder / "io.safetensors")
    inputs = {key.removeprefix("in."): value for key, value in io.items() if key.startswith("in.")}
    seen = watch(model, case)
    panel = adapters(model)
    flexible = not has_other_head(case)
    for adapter, record in case["adapters"].items():
        checkpoint = record["checkpoint"]
        splice(panel, adapter, folder / checkpoint["path"], record, flexible and checkpoint.get("load_with_head", True))
    structure = case["active_struct"]
    names = [structure] if isinstance(structure, str) else structure["children"]
    panel.activate(Stack(*names), skip_layers=case["skip_layers"] or ())
    wants_head = panel.active_head is not None and any(key.startswith("head.") for key in io)
    if not wants_head:  # what only a head reads
        for extra in ("labels", "word_starts", "start_positions", "end_positions", "labels_arcs", "labels_rels"):
            inputs.pop(extra, None)
    forward = {} if case["base"].startswith("bert") or "bert" in case["base"] else {"use_cache": False}
    with torch.no_grad():
        output = model(**inputs, **forward)
    compare(case, io, seen, output, wants_head)


def watch(model: torch.nn.Module, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Collect the base model's output and what enters each block, as the cases name them."""
    seen: dict[str, torch.Tensor] = {}
    base = model.base_model
    blocks = base.get_submodule(case["layers_tf5"]["hidden"])
    for index, block in enumerate(blocks):

        def enter(_m: Any, args: Any, kwargs: Any, index: int = index) -> None:
            seen[f"hidden.{index}"] = args[0] if args else kwargs["hidden_states"]

        block.register_forward_pre_hook(enter, with_kwargs=True)

    def leave(_m: Any, _a: Any, output: Any) -> None:
        seen.update({f"out.{key}": value for key, value in output.items() if isinstance(value, torch.Tensor)})

    base.register_forward_hook(leave)
    return seen


def compare(
    case: dict[str, Any], io: dict[str, torch.Tensor], seen: dict[str, torch.Tensor], output: Any, head: bool
) -> None:
    atol = case["tolerance"]["atol"]
    compared = 0
    for key, expected in io.items():
        if key.startswith("in.") or (key.startswith("head.") and not head):
            continue
        if key == "out.pooler_output" and key not in seen:
            continue  # classes with a head of their own may be built without the pooler
        found = output[key.removeprefix("head.")] if key.startswith("head.") else seen[key]
        assert torch.allclose(found, expected, atol=atol, rtol=1e-5), (
            f"{case['id']} {key}: differs by {(found - expected).abs().max():.2e}, allowed {atol}"
        )
        compared += 1
    assert compared >= 2


def test_every_bottleneck_option_of_adapters_is_covered() -> None:
    options = {tag for name in CASES for tag in read(name)["tags"] if tag.startswith(("opt:", "method:"))}
    assert {"method:seq_bn", "method:double_seq_bn", "method:par_bn"} <= options
    assert len(options) > 35


@pytest.mark.parametrize(
    "name", ["bert__seq_bn", "bert__head_classification", "llama__seq_bn", "gpt2__head_classification"]
)
def test_a_checkpoint_folder_of_adapters_loads_as_it_is(name: str) -> None:
    import adaptergit

    case = read(name)
    folder = GOLDEN / "cases" / name
    kind = getattr(transformers, case["load_base_with"])
    model = kind.from_pretrained(GOLDEN / "bases" / case["base"], attn_implementation="eager").eval()
    io = load_file(folder / "io.safetensors")
    adaptergit.load(folder / "checkpoint" / "a", model)
    inputs = {key.removeprefix("in."): value for key, value in io.items() if key.startswith("in.")}
    with torch.no_grad():
        output = model(**inputs)
    for key in ("head.logits", "out.last_hidden_state"):
        if key in io and (key != "out.last_hidden_state" or "head.logits" not in io):
            assert torch.allclose(output[key.split(".")[1]], io[key], atol=case["tolerance"]["atol"], rtol=1e-5)


def test_a_pickled_checkpoint_is_refused() -> None:
    case = read("bert__ln_before")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / case["base"])
    with pytest.raises(PackageError, match="pickle"):
        read_adapterhub(GOLDEN / "cases" / "bert__ln_before" / "checkpoint" / "a", adapters(model).anatomy)
