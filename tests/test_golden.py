"""The peers' numbers, reproduced from their own checkpoints.

Every case is one forward of a tiny model; inputs, outputs and tolerance are in the case. Where the case records a defect
of the peer (docs/compatibility.md), the expected value is the right one: every leaf run alone, by ``reference.py``.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from golden import (
    GOLDEN,
    cases,
    composition,
    flatten,
    inputs_of,
    prepare,
    prepare_peft,
    read,
    splice_head,
    watch_blocks,
    watch_output,
)
from reference import Reference
from safetensors.torch import load_file

from adaptergit.errors import PackageError
from adaptergit.formats.adapterhub import read_adapterhub
from adaptergit.formats.files import Folder
from adaptergit.splice import Average, Fuse, Route, Split, adapters, parse_composition
from adaptergit.splice.composition import Block, copies_of

ADAPTERS = cases("adapters")
ONLY_FOR_HEADS = ("labels", "word_starts", "start_positions", "end_positions", "labels_arcs", "labels_rels")


def skip_on_oldest(name: str) -> None:
    """What transformers 4 cannot do: these attentions count their keys before a prefix is there."""
    if transformers.__version__ < "5" and name in (
        "distilbert__prefix",
        "peft_t5__prefix_tuning",
        "gemma3_text__seq_bn",
    ):
        pytest.skip("needs transformers 5")


def defect(case: dict[str, Any]) -> str | None:
    """Name the defect of ``adapters`` that a case records, as docs/compatibility.md does."""
    tree = composition(case["active_struct"])
    atol = case["tolerance"]["atol"]
    if "Average" in case["active"]:
        return "average"
    if (case["separate_runs_max_diff"] or 0) > atol or nested(tree):
        return "nested"
    if isinstance(tree, Block) and len({kinds(case, name) for name in tree.names()}) > 1 and second(case, tree):
        return "first only"
    if (case.get("merge_vs_forward_diff") or 0) > atol:
        return "merge"
    if case["base"] == "xmod":
        return "xmod"
    if case["base"] in ("distilbert", "deberta", "deberta-v2") and kinds(case, "a") == "prompt_tuning":
        return "prompt mask"
    if (
        case.get("average")
        and "inv" in str(case["adapters"]["a"]["config_class"]).lower()
        and case["construct"] == "AdapterModel"
    ):
        return "average drops inverse"
    return None


def nested(tree: Any) -> bool:
    if not isinstance(tree, Block):
        return False
    blocks = [child for child in tree.children if isinstance(child, Block)]
    return (isinstance(tree, Split | Fuse) and bool(blocks)) or any(map(nested, blocks))


def kinds(case: dict[str, Any], name: str) -> str:
    config = case["adapters"][name]["config"]
    return str(config.get("architecture") or ("inv" if config.get("inv_adapter") else "bottleneck"))


def second(case: dict[str, Any], tree: Any) -> bool:
    """Whether an adapter that the library only runs as the first of a set-up is not the first."""
    return any(kinds(case, name) in ("reft", "prompt_tuning", "inv") for name in list(tree.names())[1:])


@pytest.mark.parametrize("name", ADAPTERS)
def test_golden_adapters(name: str) -> None:
    case, folder = read(name), GOLDEN / "public" / name
    skip_on_oldest(name)
    io = load_file(folder / "io.safetensors")
    inputs = inputs_of(io)
    why = defect(case)
    if why == "average drops inverse":  # its own checkpoint lacks the invertible part: average a and b ourselves
        kept = {key: value for key, value in case["adapters"].items() if key != case["active"]}
        panel = prepare({**case, "adapters": kept}, folder)
        panel.average(case["active"], case["average"]["names"], case["average"].get("weights"))
        assert any(key.startswith("embedding.") for key in panel.module(case["active"]).state_dict())
    else:
        panel = prepare(case, folder)
    for head, record in case["heads"].items():
        own = record["checkpoint"] or case["adapters"].get(head, {}).get("checkpoint")
        if own and (folder / own["path"] / "head_config.json").exists():
            splice_head(panel, head, folder / own["path"])
    tree, tasks = composition(case["active_struct"]), inputs.pop("task_ids", None)
    seen = watch_output(panel.model)
    head = active_head(case, panel)
    panel.activate(tree, head, case["skip_layers"] or (), task_ids=tasks)
    watch_blocks(panel.model, case, seen)
    if head is None and not any(key.startswith("head.") for key in io):
        inputs = {key: value for key, value in inputs.items() if key not in ONLY_FOR_HEADS}
    if "use_cache" in inspect.signature(panel.model.forward).parameters:
        inputs["use_cache"] = False
    with torch.no_grad():
        output = panel.model(**inputs)
    flatten("head", output, seen)
    for number, answer in enumerate(output.get("head_outputs") or ()):
        flatten(f"head.{number}", answer, seen)
    expected = {key: value for key, value in io.items() if not key.startswith("in.")}
    seen = dict(seen)  # what is run from here on is compared with it
    if why in ("average", "nested", "first only"):
        expected = alone(panel, tree, tasks, inputs)
    elif why in ("merge", "xmod", "average drops inverse"):
        assert not agrees(seen, expected, case)
        expected = alone(panel, tree, tasks, inputs)
    elif why == "prompt mask":
        assert not agrees(seen, expected, case)
        real = inputs["attention_mask"].bool()
        seen = {"real": seen["out.last_hidden_state"][:, -real.shape[1] :][real]}
        expected = {"real": prompted(panel, tree, inputs["input_ids"], real)}
    expected = tokens_only(expected, seen, panel)
    assert agrees(seen, expected, case), differences(seen, expected)
    if why == "merge":
        panel.activate(None)
        panel.merge(case["active"])
        merged: dict[str, Any] = {}
        with torch.no_grad():
            flatten("out", panel.host.base(**inputs), merged)
        assert agrees(merged, expected, case), differences(merged, expected)


@pytest.mark.parametrize("name", cases("peft"))
def test_golden_peft(name: str) -> None:
    case, folder = read(name), GOLDEN / "public" / name
    skip_on_oldest(name)
    io = load_file(folder / "io.safetensors")
    panel = prepare_peft(case, folder)
    active: Any = case["active"]
    if case.get("adapter_names_arg"):
        active = Route(*[None if name == "__base__" else name for name in case["adapter_names_arg"]])
    elif isinstance(active, list):  # several at once: the sum of their updates
        active = Average(*active, weights=[1.0] * len(active), normalize_weights=False)
    seen = watch_output(panel.model)
    panel.activate(active)
    watch_blocks(panel.model, case, seen)
    with torch.no_grad():
        output = panel.model(**inputs_of(io))
    flatten("out", output, seen)
    flatten("head", output, seen)
    expected = {key: value for key, value in io.items() if not key.startswith("in.")}
    expected = tokens_only(expected, seen, panel)
    assert agrees(seen, expected, case), differences(seen, expected)


def tokens_only(expected: dict[str, torch.Tensor], seen: dict[str, Any], panel: Any) -> dict[str, torch.Tensor]:
    """Take a prompt's positions out of what the peers' heads say of every position: ours answer for tokens."""
    configs = [c for c in map(panel.config, panel.names) if type(c).__name__ == "PromptTuning"]
    if not configs:
        return expected
    (length,), (start,) = {c.prompt_length for c in configs}, {int(c.combine == "prefix_after_bos") for c in configs}
    return {
        key: torch.cat([value[:, :start], value[:, start + length :]], dim=1)
        if key in seen and key.endswith("logits") and value.dim() > 1 and value.shape[1] == seen[key].shape[1] + length
        else value
        for key, value in expected.items()
    }


def active_head(case: dict[str, Any], panel: Any) -> Any:
    head = case["active_head"]
    if isinstance(head, str) and "(" in head:
        return list(parse_composition(head).names())
    return None if not head or (isinstance(head, str) and head not in panel.heads) else head


def alone(panel: Any, tree: Any, tasks: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run every leaf alone on its rows."""
    panel.activate(None)
    times = copies_of(tree)
    repeated = {
        k: v.repeat(times, *[1] * (v.dim() - 1)) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()
    }
    if any(type(place).__name__ == "Attention" for n in panel.names for place in panel.spliced(n).parts.places):
        return {"out.last_hidden_state": rows_alone(panel, tree, inputs)}
    found: dict[str, torch.Tensor] = {}
    with Reference(panel, tree, tasks, repeated.get("attention_mask")), torch.no_grad():
        flatten("out", panel.host.base(**{k: v for k, v in repeated.items() if k not in ONLY_FOR_HEADS}), found)
    return found


def prompted(panel: Any, name: str, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Run one row at a time, without padding, so that no mask hides or shows anything."""
    base, rows = panel.host.base, []
    for tokens, kept in zip(ids, real, strict=True):
        with torch.no_grad():
            if hasattr(base, "transformer"):  # DistilBERT's blocks can be run without us
                (site,) = panel.spliced(name).parts.places.values()
                prompt = next(site.parameters())
                panel.activate(None)
                embedded = torch.cat([prompt[None], base.embeddings(tokens[kept][None])], 1)
                old = () if transformers.__version__ >= "5" else (torch.ones(embedded.shape[:2]), [None] * 9)
                output = base.transformer(embedded, *old)
            else:
                output = base(tokens[kept][None])
        rows.append(output[0][0, -int(kept.sum()) :])
    return torch.cat(rows)


def rows_alone(panel: Any, tree: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """For prefixes: whole forwards of single adapters, on their rows."""
    sizes = getattr(tree, "batch_sizes", None)
    outputs, start = [], 0
    for number, child in enumerate(tree.children):
        stop = start + sizes[number] if sizes else None
        panel.activate(child)
        part = {k: v[start:stop] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        with torch.no_grad():
            outputs.append(panel.model(**part)[0])
        start = stop or 0
    return torch.cat(outputs)


def agrees(seen: dict[str, Any], expected: dict[str, torch.Tensor], case: dict[str, Any]) -> bool:
    atol = case["tolerance"]["atol"]
    return all(
        key in seen and torch.allclose(cut(seen[key], value), value, atol=atol, rtol=1e-5)
        for key, value in expected.items()
        # Classes with a head of their own may be built without the pooler.
        if not (key == "out.pooler_output" and key not in seen)
    )


def cut(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Parallel repeats our input at the start, and theirs at the first adapter."""
    return found[: len(expected)] if expected.dim() and found.shape[0] % expected.shape[0] == 0 else found


def differences(seen: dict[str, Any], expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        key: "missing" if key not in seen else float((cut(seen[key], value) - value).abs().max())
        for key, value in expected.items()
    }


def test_golden_defects_are_few() -> None:
    found = [name for name in ADAPTERS if defect(read(name))]
    assert len(found) <= max(1, len(ADAPTERS) // 10)
    assert all(isinstance(parse_composition("Average(a, b)"), Average) for _ in found[:1])


@pytest.mark.parametrize(
    "name", ["bert__seq_bn", "bert__head_classification", "llama__seq_bn", "gpt2__head_classification"]
)
def test_a_checkpoint_folder_of_adapters_loads_as_it_is(name: str) -> None:
    import adaptergit

    case, folder = read(name), GOLDEN / "public" / name
    kind = getattr(transformers, case["load_base_with"])
    model = kind.from_pretrained(GOLDEN / "bases" / case["base"], attn_implementation="eager").eval()
    io = load_file(folder / "io.safetensors")
    adaptergit.load(folder / "checkpoint" / "a", model)
    with torch.no_grad():
        output = model(**inputs_of(io))
    for key in ("head.logits", "out.last_hidden_state"):
        if key in io and (key != "out.last_hidden_state" or "head.logits" not in io):
            assert torch.allclose(output[key.split(".")[1]], io[key], atol=case["tolerance"]["atol"], rtol=1e-5)


def test_a_pickled_checkpoint_is_refused() -> None:
    case = read("bert__ln_before")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bases" / case["base"])
    with pytest.raises(PackageError, match="pickle"):
        read_adapterhub(Folder(GOLDEN / "public" / "bert__ln_before" / "checkpoint" / "a"), adapters(model).host)
