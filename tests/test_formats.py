"""Folders in the formats of others are recognised for what they hold."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import git, tiny_model
from golden import GOLDEN, base_model, inputs_of, read
from safetensors.torch import load_file, save_file

import adaptergit
from adaptergit.errors import AdaptergitError, ModelError, PackageError
from adaptergit.package.foreign import MAX_HEADER_BYTES
from adaptergit.package.weights import tensors_in
from adaptergit.publish import publish
from adaptergit.splice import adapters, parse_composition
from adaptergit.splice.methods import LoRA, TunedParameters, Union

BASE = "bert__double_seq_bn"
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


@pytest.mark.parametrize(
    ("pattern", "alphas"),
    [
        ({"encoder.layer.0.attention.self.query": 3}, [3, 16]),
        ({"^bert.encoder.layer.0.*": 3}, [3, 16]),
        ({r"bert\.encoder\.layer\.[01]\..*": 3}, [3, 3]),
        ({"query": 3, "^bert.encoder.layer.1.*": 5}, [3, 3]),
        ({"^encoder.layer.0.*": 3}, [16, 16]),
        ({"layer.0.attention.self": 3}, [16, 16]),
    ],
)
def test_patterns_of_peft_name_paths_from_the_model_it_wrapped(
    pattern: dict[str, int], alphas: list[int], tmp_path: Path
) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    adapters(model).add("mine", "lora[alpha=16, attn_matrices=['q']]")
    adaptergit.export(model, "mine", tmp_path / "p", to="peft")
    path = tmp_path / "p" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": pattern}))
    for auto in ("AutoModelForSequenceClassification", "AutoModel"):
        twin = tiny_model("bert", auto)
        adaptergit.load(tmp_path / "p", twin, name="p")
        config: Any = adapters(twin).config("p")
        found = [(config.alpha_pattern or {}).get(target, config.alpha) for target in config.target_modules]
        assert found == alphas


def test_a_pattern_of_peft_that_is_no_expression_is_refused(tmp_path: Path) -> None:
    folder, _ = foreign(tmp_path, "peft")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": {"layer.(0": 3}}))
    refused(folder, r"alpha_pattern: 'layer\.\(0' is no regular expression")


def test_tokens_of_peft_are_named_by_paths_from_the_model_it_wrapped(tmp_path: Path) -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    adapters(model).add("mine", Union((LoRA(), TunedParameters((), {"model.embed_tokens": (5, 7)}))))
    adaptergit.export(model, "mine", tmp_path / "p", to="peft")
    for auto in ("AutoModelForCausalLM", "AutoModel"):
        twin = tiny_model("llama", auto)
        adaptergit.load(tmp_path / "p", twin, name="p")
        config: Any = adapters(twin).config("p")
        assert list(config.configs[1].tokens.values()) == [(5, 7)]


FOREIGN = pytest.mark.parametrize("to", ["peft", "adapterhub"])


def foreign(tmp_path: Path, to: str) -> tuple[Path, Path]:
    """A checkpoint as others write it: its folder, and its weights."""
    folder, model = tmp_path / "checkpoint", base_model(read(BASE))
    adapters(model).add("mine", "lora")
    adaptergit.export(model, "mine", folder, to=to)
    return folder, next(path for path in folder.glob("*.safetensors") if "head" not in path.name)


def refused(folder: Path, match: str) -> None:
    model = base_model(read(BASE))
    with pytest.raises(PackageError, match=match):
        adaptergit.load(folder, model)
    assert not hasattr(model, "adaptergit")


@FOREIGN
def test_a_tensor_that_is_named_twice_is_refused(tmp_path: Path, to: str) -> None:
    folder, weights = foreign(tmp_path, to)
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    name, value = next(pair for pair in json.loads(data[8 : 8 + size]).items() if pair[0] != "__metadata__")
    header = data[8 : 8 + size].rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}".encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    assert name in load_file(weights)  # others take one of the two
    refused(folder, re.escape(f"the key '{name}' appears twice"))


@FOREIGN
@pytest.mark.parametrize(
    ("more", "match"),
    [
        ('"{key}": 1', "the key '{key}' appears twice"),
        ('"x": {{"y": 1, "y": 2}}', "the key 'y' appears twice"),
        ('"x": NaN', "NaN is not a finite number"),
        ('"x": -Infinity', "-Infinity is not a finite number"),
        ('"x": [1e999]', "1e999 is not a finite number"),
    ],
)
def test_a_configuration_that_two_readers_read_differently_is_refused(
    tmp_path: Path, to: str, more: str, match: str
) -> None:
    folder, _ = foreign(tmp_path, to)
    path = folder / "adapter_config.json"
    text = path.read_text().rstrip()
    key = next(iter(json.loads(text)))
    path.write_text(f"{text[:-1]}, {more.format(key=key)}}}")
    refused(folder, match.format(key=key))


@FOREIGN
def test_a_header_that_is_far_too_large_is_refused_before_it_is_read(tmp_path: Path, to: str) -> None:
    folder, weights = foreign(tmp_path, to)
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    padded = size + MAX_HEADER_BYTES
    weights.write_bytes(padded.to_bytes(8, "little") + data[8 : 8 + size].ljust(padded) + data[8 + size :])
    assert load_file(weights)
    refused(folder, f"a header of {padded} bytes, the limit is {MAX_HEADER_BYTES}")
    with pytest.raises(PackageError, match="the limit is"):
        tensors_in(folder)


def test_a_header_that_is_far_too_large_is_refused_in_our_own_layout(tmp_path: Path) -> None:
    model = base_model(read(BASE))
    panel = adapters(model)
    panel.add("mine")
    panel.save("mine", tmp_path / "mine")
    panel.remove("mine")
    weights = tmp_path / "mine" / "adapter.safetensors"
    weights.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(PackageError, match=f"a header of {MAX_HEADER_BYTES + 1} bytes"):
        adaptergit.load(tmp_path / "mine", model)
    git(tmp_path, "init", "-q")
    with pytest.raises(PackageError, match=f"a header of {MAX_HEADER_BYTES + 1} bytes"):
        publish(tmp_path / "mine", remote=None, repository="example.org/a/b", clone=tmp_path, dry_run=True)


def said(folder: Path, **fields: Any) -> None:
    """Change what a checkpoint's configuration says."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_a_lora_of_peft_whose_start_changed_the_base_model_is_refused(tmp_path: Path, start: str) -> None:
    folder, _ = foreign(tmp_path, "peft")
    said(folder, init_lora_weights=start)
    refused(folder, f"init_lora_weights='{start}' changes the weights of the base model")


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_a_lora_of_peft_with_any_other_start_is_read(tmp_path: Path, start: object) -> None:
    folder, _ = foreign(tmp_path, "peft")
    said(folder, init_lora_weights=start)
    assert adapters(adaptergit.load(folder, base_model(read(BASE)))).names == ["checkpoint"]


@pytest.mark.parametrize("config", ["dora", "oft[block_size=8]", "hra[r=4]"])
def test_tuned_biases_beside_what_multiplies_are_refused(tmp_path: Path, config: str) -> None:
    model = base_model(read(BASE))
    adapters(model).add("mine", config)
    folder = tmp_path / "p"
    adaptergit.export(model, "mine", folder, to="peft")
    weights = folder / "adapter_model.safetensors"
    bias = "encoder.layer.0.attention.self.query.bias"
    own = model.get_parameter(bias).detach()
    name = f"base_model.model.{bias.replace('.bias', '.base_layer.bias')}"
    save_file(load_file(weights) | {name: own.clone()}, weights)
    adaptergit.load(folder, base_model(read(BASE)))  # the model's own bias is none that was tuned
    save_file(load_file(weights) | {name: own + 1}, weights)
    refused(folder, f"with tuned biases of the same layers has no equivalent here: {bias}")


@pytest.mark.parametrize(
    ("field", "name"), [("kasa_config", "KaSA"), ("velora_config", "VeLoRA"), ("monteclora_config", "MonteCLoRA")]
)
def test_a_variant_of_peft_s_lora_is_refused_by_its_name(tmp_path: Path, field: str, name: str) -> None:
    folder, _ = foreign(tmp_path, "peft")
    said(folder, **{field: {"x": 1}})
    refused(folder, f"{name} is not supported: {field}=")


def test_a_lora_beside_the_base_model_is_told_apart_from_one_of_another_model(tmp_path: Path) -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    adapters(model).add("mine", "lora")
    adaptergit.export(model, "mine", tmp_path / "p", to="peft")
    weights = tmp_path / "p" / "adapter_model.safetensors"
    parts = {f"base_model.model.lm_head.lora_{part}.weight": torch.ones(8, 8) for part in "AB"}
    save_file(load_file(weights) | parts, weights)
    with pytest.raises(ModelError, match="an adapter acts in the base model here, and 'lm_head' is beside it"):
        adaptergit.load(tmp_path / "p", tiny_model("llama", "AutoModelForCausalLM"))


def test_a_pattern_of_peft_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder, _ = foreign(tmp_path, "peft")
    said(folder, alpha_pattern="x")
    refused(folder, "alpha_pattern: expected an object")


def without(folder: Path, part: str) -> int:
    """Take the tensors out of a checkpoint whose names hold a part; return how many."""
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    left = {key: tensor for key, tensor in tensors.items() if part not in key}
    save_file(left, weights)
    return len(tensors) - len(left)


INCOMPLETE = [
    ("lora", {"target_modules": ["query", "value"]}, "layer.1.", 2),
    ("lora", {"target_modules": ["query", "value"]}, "query", 2),
    ("lora", {"target_modules": r".*\.self\.(query|value)"}, "query", 2),
    ("lora", {"target_modules": ["query", "value", "key"], "exclude_modules": ["key"]}, "layer.0.", 2),
    ("lora", {"target_modules": ["query", "value"], "layers_to_transform": [0, 1]}, "layer.0.attention.self.value", 1),
    ("lora[attn_matrices=['q', 'k', 'v'], intermediate_lora=True]", {"target_modules": "all-linear"}, "nothing", 4),
    ("ia3", {}, "layer.1.attention.self.key", 1),
    ("vera[r=4]", {}, "layer.0.attention.self.query", 1),
    ("loha", {}, "layer.0.attention.self.query", 1),
]


@pytest.mark.parametrize(("config", "fields", "part", "count"), INCOMPLETE)
def test_a_checkpoint_of_peft_without_tensors_of_a_module_that_it_names_is_refused(
    tmp_path: Path, config: str, fields: dict[str, Any], part: str, count: int
) -> None:
    model = base_model(read(BASE))
    adapters(model).add("mine", config)
    folder = tmp_path / "p"
    adaptergit.export(model, "mine", folder, to="peft")
    said(folder, **fields)
    if part != "nothing":
        adaptergit.load(folder, base_model(read(BASE)))
        assert without(folder, part)
    refused(folder, f": {count} of what its configuration names have no tensors: .*encoder.layer")


def test_layers_that_peft_left_out_are_not_missed(tmp_path: Path) -> None:
    folder, _ = foreign(tmp_path, "peft")
    assert without(folder, "layer.0.")
    for fields in ({"layers_to_transform": 1}, {"layers_to_transform": [1], "layers_pattern": "layer"}):
        said(folder, target_modules=["query", "value"], **fields)
        adaptergit.load(folder, base_model(read(BASE)))
    said(folder, layers_to_transform=None, exclude_modules=r"encoder\.layer\.0\..*")
    adaptergit.load(folder, base_model(read(BASE)))
    said(folder, layers_to_transform=[0], exclude_modules=None)
    refused(folder, "2 of what its configuration names have no tensors: encoder.layer.0")


def test_a_checkpoint_of_peft_without_a_parameter_that_it_saves_is_refused(tmp_path: Path) -> None:
    model = base_model(read(BASE))
    norm = "encoder.layer.0.output.LayerNorm"
    tuned = TunedParameters((f"{norm}.weight", f"{norm}.bias"))
    for name, config in (("beside", Union((LoRA(), tuned))), ("alone", tuned)):
        adapters(model).add(name, config)
        with torch.no_grad():
            for parameter in adapters(model).module(name).parameters():
                parameter.add_(1.0)
        adaptergit.export(model, name, tmp_path / name, to="peft")
        adaptergit.load(tmp_path / name, base_model(read(BASE)))
        assert without(tmp_path / name, "LayerNorm.bias") or without(tmp_path / name, "ln_tuning_layers.bias")
        refused(tmp_path / name, f"1 of what its configuration names have no tensors: {norm}.bias")


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
