"""Folders in the formats of others are recognised for what they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import GOLDEN, base_model, inputs_of, read
from safetensors.torch import load_file

import adaptergit
from adaptergit.errors import AdaptergitError, ModelError, PackageError
from adaptergit.splice import adapters, parse_composition

FUSION = "bert__fuse_named"


def case_folder(name: str) -> Path:
    folder = GOLDEN / "public" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in this set of cases")
    return folder


def run(model: Any, case: str) -> torch.Tensor:
    io = load_file(GOLDEN / "public" / case / "io.safetensors")
    with torch.no_grad():
        return model(**inputs_of(io))[0]


def expected(case: str) -> torch.Tensor:
    return load_file(GOLDEN / "public" / case / "io.safetensors")["out.last_hidden_state"]


def test_a_peft_folder_loads_in_one_line() -> None:
    folder = case_folder("peft_bert__lora_r4_a16")
    model = base_model(read(folder.name))
    adaptergit.load(folder / "checkpoint", model, name="p")
    assert adapters(model).config("p").method == "lora"
    assert torch.allclose(run(model, folder.name), expected(folder.name), atol=2e-5)


def test_a_head_alone() -> None:
    folder = case_folder("bert__save_head")
    model = base_model(read(folder.name))
    adaptergit.load(folder / "checkpoint" / "a", model)
    adaptergit.load(folder / "checkpoint" / "head_myhead", model)
    panel = adapters(model)
    assert (panel.active, panel.active_head) == ("a", "myhead")
    io = load_file(folder / "io.safetensors")
    assert torch.allclose(run(model, folder.name), io["head.logits"], atol=2e-5)


def test_a_fusion_over_adapters_that_are_there() -> None:
    folder = case_folder(FUSION)
    model = base_model(read(FUSION))
    for name in ("a", "b", "fusion_0"):
        adaptergit.load(folder / "checkpoint" / name, model)
    assert str(adapters(model).active) == "Fuse(a, b, name='myfusion')"
    assert torch.allclose(run(model, FUSION), expected(FUSION), atol=2e-5)


def setup(tmp_path: Path) -> Path:
    """A folder as ``save_adapter_setup`` of adapters writes it."""
    folder = tmp_path / "setup"
    for name in ("a", "b", "fusion_0"):
        shutil.copytree(case_folder(FUSION) / "checkpoint" / name, folder / name)
    children = [{"type": "single", "children": ["a"]}, {"type": "single", "children": ["b"]}]
    record = {"type": "Fuse", "children": children, "kwargs": {"name": "myfusion"}}
    (folder / "adapter_setup.json").write_text(json.dumps({"adapter_setup": record, "head_setup": None}))
    return folder


def test_a_whole_setup_with_its_composition(tmp_path: Path) -> None:
    model = base_model(read(FUSION))
    adaptergit.load(setup(tmp_path), model)
    assert adapters(model).active == parse_composition("Fuse(a, b, name='myfusion')")
    assert torch.allclose(run(model, FUSION), expected(FUSION), atol=2e-5)


def test_a_setup_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = setup(tmp_path)
    (folder / "fusion_0" / "model_adapter_fusion.safetensors").unlink()
    model = base_model(read(FUSION))
    with pytest.raises(AdaptergitError):
        adaptergit.load(folder, model)
    assert not hasattr(model, "adaptergit")
    panel = adapters(model)
    panel.add("mine")
    with pytest.raises(AdaptergitError):
        adaptergit.load(folder, model)
    assert (panel.names, panel.fusions, panel.heads) == (["mine"], [], [])


def test_a_checkpoint_of_another_model_is_refused() -> None:
    folder = case_folder("peft_bert__lora_r4_a16")
    model = base_model(read("llama__seq_bn"))
    with pytest.raises(ModelError, match="no module"):
        adaptergit.load(folder / "checkpoint", model)


def test_a_type_without_equivalent_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(case_folder("peft_bert__lora_r4_a16") / "checkpoint", folder)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, "peft_type": "VBLORA"}))
    with pytest.raises(PackageError, match="VBLORA"):
        adaptergit.load(folder, base_model(read("peft_bert__lora_r4_a16")))


@pytest.mark.parametrize(
    "name", ["gptj__seq_bn", "gemma2__seq_bn", "albert__double_seq_bn", "phi__seq_bn", "modernbert__seq_bn"]
)
def test_an_adapter_trained_at_other_places_acts_there_after_saving_too(name: str, tmp_path: Path) -> None:
    folder = case_folder(name)
    model = base_model(read(name))
    adaptergit.load(folder / "checkpoint" / "a", model)
    found = run(model, name)
    assert torch.allclose(found, expected(name), atol=5e-5)
    adapters(model).save("a", tmp_path / "a")
    again = base_model(read(name))
    adaptergit.load(tmp_path / "a", again, policy="unsigned")
    assert torch.equal(run(again, name), found)
