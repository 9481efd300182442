"""Checkpoints go from one format to another and back, and compute the same; what cannot is refused, and nothing is left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_model
from golden import GOLDEN, base_model, inputs_of, read
from safetensors.torch import load_file

import adaptergit
from adaptergit.errors import AdaptergitError, AdaptergitWarning, UsageError
from adaptergit.splice import TunedParameters, adapters


def case_folder(name: str) -> Path:
    folder = GOLDEN / "public" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in this set of cases")
    return folder


def run(model: Any, case: str) -> torch.Tensor:
    io = load_file(GOLDEN / "public" / case / "io.safetensors")
    with torch.no_grad():
        return model(**inputs_of(io))[0]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def states(model: Any) -> dict[str, torch.Tensor]:
    """Return what the adapter "a" and its head hold."""
    panel = adapters(model)
    found = dict(panel.spliced("a").parts.state_dict())
    if "a" in panel.heads:
        found |= {f"head.{key}": value for key, value in panel.head_module("a").state_dict().items()}
    return {key: value.clone() for key, value in found.items()}


def recorded(config: Any) -> Any:
    return json.loads(json.dumps(config.to_dict(), default=vars))


CHECKPOINTS = sorted(
    (path.parent.parent.name if path.parent.name == "checkpoint" else path.parent.parent.parent.name, path.parent)
    for path in (GOLDEN / "public").glob("*/checkpoint/**/adapter_config.json")
)


@pytest.mark.filterwarnings("ignore:a checkpoint of adapters does not say if it is NoReFT")
@pytest.mark.parametrize(("case", "source"), CHECKPOINTS, ids=[f"{case}-{path.name}" for case, path in CHECKPOINTS])
def test_there_and_back_not_a_bit_is_lost(case: str, source: Path, tmp_path: Path) -> None:
    """Golden checkpoints become packages that hold the same, and checkpoints again with the very same tensors."""
    model = base_model(read(case))
    try:
        adaptergit.load(source, model, name="a")
    except AdaptergitError:
        pytest.skip("a checkpoint that is refused: see test_golden.py")
    direct, config = states(model), adapters(model).config("a")
    adapters(model).detach()
    made = adaptergit.convert(source, tmp_path / "ours", to="adaptergit", base=model, name="a")
    assert made.adapters == ("a",)
    adapters(model).detach()
    adaptergit.load(tmp_path / "ours", model, dtype=next(iter(direct.values())).dtype)
    assert same(direct, states(model))
    assert recorded(adapters(model).config("a")) == recorded(config)
    adapters(model).detach()
    format = "peft" if case.startswith("peft") else "adapterhub"
    try:
        adaptergit.convert(tmp_path / "ours", tmp_path / "theirs", to=format, base=model)
    except UsageError as error:
        reason = error
    else:
        reason = None
    if reason is not None:  # that has no exact equivalent there
        assert re.search("adapters|PEFT", reason.what), reason
        assert {path.name for path in tmp_path.iterdir()} <= {"home", "ours"}
        return
    adapters(model).detach()
    adaptergit.load(tmp_path / "theirs", model, name="a")
    if "reft" in case and getattr(config, "orthogonality", True):
        # adapters keeps the factors of a rotation, which are computed.
        torch.testing.assert_close(states(model), direct, rtol=0, atol=1e-6)
    else:
        assert same(direct, states(model))


@pytest.mark.parametrize(
    "name", ["loras", "adapters", "prefix_tunings", "invertible_adapters", "refts", "naïve", "a b"]
)
@pytest.mark.parametrize("config", ["lora", "seq_bn_inv", "prefix_tuning_flat", "prompt_tuning", "loreft", "compacter"])
def test_adapters_with_names_from_their_format_come_back(name: str, config: str, tmp_path: Path) -> None:
    options = {"compacter": "[reduction_factor=8]"}.get(config, "")
    model, twin = tiny_model("bert"), tiny_model("bert")
    adapters(model).add(name, config + options)
    adaptergit.export(model, name, tmp_path / "theirs", to="adapterhub")
    adaptergit.load(tmp_path / "theirs", twin, name="back")
    own, back = (adapters(m).spliced(n).parts.state_dict() for m, n in ((model, name), (twin, "back")))
    assert own.keys() == back.keys()
    for key, value in own.items():
        torch.testing.assert_close(back[key], value)


@pytest.mark.parametrize(
    ("base", "auto", "config"),
    [
        ("gpt2", "AutoModelForCausalLM", "lora[intermediate_lora=True]"),
        ("gpt2", "AutoModelForCausalLM", "lora[output_lora=True, attn_matrices=['k']]"),
        ("gpt2", "AutoModelForCausalLM", "lora[lora_bias=True]"),
        ("deberta", "AutoModel", "lora[lora_bias=True, attn_matrices=['k', 'v']]"),
        ("llama", "AutoModelForCausalLM", "lora[intermediate_lora=True, use_rslora=True]"),
        ("bert", "AutoModelForMaskedLM", "lora[r=4, alpha=3, intermediate_lora=True]"),
    ],
)
def test_a_lora_of_a_whole_model_comes_back_from_peft(base: str, auto: str, config: str, tmp_path: Path) -> None:
    there_and_back(base, auto, config, "peft", tmp_path)


@pytest.mark.parametrize("base", ["t5", "bart", "gpt2"])
@pytest.mark.parametrize("config", ["prefix_tuning[prefix_length=3, use_gating=True]", "unipelt"])
def test_gates_of_prefixes_come_back_from_adapterhub(base: str, config: str, tmp_path: Path) -> None:
    there_and_back(base, "AutoModel", config, "adapterhub", tmp_path)


BOTTLENECKS = ["seq_bn|seq_bn[mh_adapter=True, output_adapter=False]", "seq_bn[leave_out=[0]]|par_bn[leave_out=[1]]"]


@pytest.mark.parametrize("config", BOTTLENECKS)
def test_a_union_of_two_of_a_kind_comes_back_where_adapters_takes_it(config: str, tmp_path: Path) -> None:
    there_and_back("bert", "AutoModel", config, "adapterhub", tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        "lora|ia3[selfattn_lora=False]",
        "lora[leave_out=[0]]|vera[leave_out=[1]]",
        "lora[leave_out=[0]]|lora[selfattn_lora=False, output_lora=True]",
        "seq_bn|seq_bn[mh_adapter=True, output_adapter=False]|ia3|lora[attn_matrices=['q']]",
        "compacter[leave_out=[0], reduction_factor=4]|compacter[leave_out=[1], reduction_factor=4]",
    ],
)
def test_a_union_that_adapters_takes_for_one_thing_is_refused(config: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    adapters(model).add("a", config)
    with pytest.raises(UsageError, match="adapters cannot load a union"):
        adaptergit.export(model, "a", tmp_path / "theirs", to="adapterhub")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("base", "auto"),
    [
        ("gpt2", "AutoModelForCausalLM"),
        ("llama", "AutoModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
        ("bart", "AutoModelForSeq2SeqLM"),
        ("bert", "AutoModelForMaskedLM"),
    ],
)
def test_an_invertible_adapter_of_a_language_model_comes_back_with_a_warning_of_what_adapters_does(
    base: str, auto: str, tmp_path: Path
) -> None:
    for number, config in enumerate(("double_seq_bn_inv", "seq_bn_inv|lora")):
        with pytest.warns(AdaptergitWarning, match="adapters does not undo the invertible adapter of 'a' in its"):
            there_and_back(base, auto, config, "adapterhub", tmp_path / str(number))
    there_and_back(base, auto, "seq_bn_inv[inv_adapter_undo=False]", "adapterhub", tmp_path / "same")
    there_and_back(base, "AutoModel", "double_seq_bn_inv", "adapterhub", tmp_path / "base")


def test_an_invertible_adapter_is_undone_in_the_models_in_which_adapters_undoes_it(tmp_path: Path) -> None:
    there_and_back("qwen3", "AutoModelForCausalLM", "seq_bn_inv", "adapterhub", tmp_path / "same")
    with pytest.warns(AdaptergitWarning, match="'a' is not undone here"):
        there_and_back(
            "qwen3", "AutoModelForCausalLM", "seq_bn_inv[inv_adapter_undo=False]", "adapterhub", tmp_path / "other"
        )


def there_and_back(base: str, auto: str, config: str, to: str, tmp_path: Path) -> None:
    folder = GOLDEN / "bases" / base
    if not folder.is_dir():
        pytest.skip(f"{base} is not in this set of cases")
    kind = getattr(transformers, auto)
    model, twin = (kind.from_pretrained(folder, attn_implementation="eager").eval() for _ in range(2))
    panel = adapters(model)
    panel.add("a", config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in panel.module("a").parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    panel.active = "a"
    adaptergit.export(model, "a", tmp_path / "theirs", to=to)
    adaptergit.load(tmp_path / "theirs", twin)
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        torch.testing.assert_close(twin(ids, **extra)[0], model(ids, **extra)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("spoil", ["short", "gone", "link"])
def test_what_is_copied_is_looked_at_first(spoil: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", "lora")
    adaptergit.export(model, "a", tmp_path / "theirs", to="peft")
    weights = tmp_path / "theirs" / "adapter_model.safetensors"
    if spoil == "short":
        weights.write_bytes(b"no")
    else:
        weights.rename(tmp_path / "elsewhere")
    if spoil == "link":
        weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdaptergitError, match=r"not a valid safetensors|no weights|is missing|link"):
        adaptergit.convert(tmp_path / "theirs", tmp_path / "again", to="peft")
    assert not (tmp_path / "again").exists()


def test_rows_of_tokens_alone_go_to_peft_and_to_a_package_and_come_back(tmp_path: Path) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", TunedParameters((), {"embeddings.word_embeddings": (3, 5)}))
    with torch.no_grad():
        for parameter in panel.module("a").parameters():
            parameter.normal_()
    adaptergit.export(model, "a", tmp_path / "theirs", to="peft")
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["token_indices"]) == ("TRAINABLE_TOKENS", [3, 5])
    ids = torch.tensor([[2, 3, 5, 7]])
    panel.active = "a"
    expected = model(input_ids=ids)[0]
    panel.save("a", tmp_path / "ours")
    for folder in ("theirs", "ours"):
        again = tiny_model("bert")
        assert not torch.equal(again(input_ids=ids)[0], expected)
        adaptergit.load(tmp_path / folder, again)
        assert torch.equal(again(input_ids=ids)[0], expected)
