"""What every method must do, whatever it is: train, save, copy, move, and leave no trace."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, tiny_model
from torch import nn

import adaptergit
from adaptergit.errors import UsageError
from adaptergit.splice import ReFT, VeRA, adapters, parse_config
from adaptergit.splice.config import presets
from adaptergit.splice.methods import TunedParameters

# Sizes that fit tiny models.
SIZES = {
    "adapter_plus": "adapter_plus[reduction_factor=8]",
    "compacter": "compacter[reduction_factor=4]",
    "compacter++": "compacter++[reduction_factor=4]",
    "oft": "oft[block_size=8]",
    "boft": "boft[block_size=8]",
    "fourierft": "fourierft[n_frequency=20]",
    "loha": "loha[r=2]",
    "lokr": "lokr[r=2]",
    "prefix_tuning": "prefix_tuning[prefix_length=3]",
    "prefix_tuning_flat": "prefix_tuning_flat[prefix_length=3]",
    "mam": "prefix_tuning[bottleneck_size=800, prefix_length=3]|par_bn",
}
EVERY = [SIZES.get(name, name) for name in sorted(presets())] + [
    "seq_bn[inv_adapter=glow, inv_adapter_reduction_factor=2]",
    "lora[r=2, use_rslora=True, lora_bias=True]",
    "vera[full=True]",
    "mtl_lora[n_up_projection=3, task_specific_matrix_type=linear]",
    "loreft[suffix_positions=2, tied_weights=True]",
    "prefix_tuning[use_gating=True, shared_gating=False, prefix_length=3]",
    "prompt_tuning[before_positions=True]",
    "seq_bn[leave_out=[0]]|lora[leave_out=[1]]",
]
# In GPT-2, queries, keys and values are one layer.
NOT_FUSED = ("dora", "vera", "dvora", "mtl_lora", "oft", "boft", "fourierft", "loha", "lokr", "hra", "miss")
IDS = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))


def fits(name: str, config: str) -> bool:
    return not (name == "gpt2" and parse_config(config).method in NOT_FUSED)


def noisy(panel: Any, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in panel.module(name).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.2)


def hidden(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


@pytest.mark.parametrize("config", EVERY)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_method_trains_saves_and_leaves(name: str, config: str, tmp_path: Path) -> None:
    if not fits(name, config):
        pytest.skip("not defined for a part of a fused layer")
    model = tiny_model(name)
    before = hidden(model)
    panel = adapters(model)
    panel.add("a", config)
    noisy(panel, "a")
    panel.train("a")
    model.eval()
    model(IDS)[0].pow(2).mean().backward()
    trained = {key for key, p in panel.module("a").named_parameters() if p.requires_grad}
    reached = {key for key, p in panel.module("a").named_parameters() if p.grad is not None}
    assert trained == reached
    assert all(p.grad is None for key, p in model.named_parameters() if not key.startswith("adaptergit."))
    after = hidden(model)
    assert not torch.allclose(after[:, -before.shape[1] :], before, atol=1e-4)
    panel.save("a", tmp_path / "a")
    other = tiny_model(name)
    adaptergit.load(tmp_path / "a", other, policy="unsigned")
    assert torch.allclose(hidden(other), after, atol=1e-6)
    assert adapters(other).config("a") == panel.config("a")
    panel.detach()
    assert torch.equal(hidden(model), before)


@pytest.mark.parametrize("config", EVERY)
def test_a_copy_is_its_own(config: str) -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", config)
    noisy(panel, "a")
    panel.active = "a"
    expected = hidden(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(hidden(twin), expected, atol=1e-6)
        with torch.no_grad():
            for parameter in adapters(twin).module("a").parameters():
                parameter.mul_(-3).add_(torch.randn(parameter.shape))
        assert not torch.allclose(hidden(twin), expected, atol=1e-3)
        assert torch.equal(hidden(model), expected)


@pytest.mark.parametrize("config", EVERY)
def test_a_half_precision_host_is_followed(config: str) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    panel = adapters(model)
    panel.add("a", config)
    panel.active = "a"
    assert hidden(model).dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "llama_gqa"])
def test_a_prefix_is_the_same_with_every_attention(name: str, masked: bool) -> None:
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = transformers.AutoModel.from_pretrained(
            GOLDEN / "bases" / name, attn_implementation=implementation
        ).eval()
        panel = adapters(model)
        panel.add("a", "prefix_tuning_flat[prefix_length=3, init_weights_seed=1]")
        panel.active = "a"
        with torch.no_grad():
            outputs.append(model(IDS, attention_mask=mask if masked else None)[0])
    kept = mask.bool() if masked else torch.ones_like(mask).bool()
    assert torch.allclose(outputs[0][kept], outputs[1][kept], atol=1e-5)


def test_reft_stores_no_more_than_it_trains(tmp_path: Path) -> None:
    panel = adapters(tiny_model("bert"))
    panel.add("a", "loreft")
    panel.save("a", tmp_path / "a")
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < 4 * panel.parameters_of("a") + 2000


def test_vera_trains_two_vectors() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", VeRA(r=4))
    panel.train("a")
    hidden_size = model.config.hidden_size
    trained = sum(p.numel() for p in panel.module("a").parameters() if p.requires_grad)
    assert trained == 2 * 2 * (hidden_size + 4)


def test_loreft_keeps_its_rows_orthonormal() -> None:
    model = tiny_model("bert")
    panel = adapters(model)
    panel.add("a", ReFT(r=4))
    noisy(panel, "a")
    for leaf in panel.module("a").places.values():
        rows = leaf.prefix.rows()
        assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)


def test_an_invertible_adapter_is_undone() -> None:
    for kind in ("nice", "glow"):
        panel = adapters(tiny_model("bert"))
        panel.add("a", f"seq_bn[inv_adapter={kind}, inv_adapter_reduction_factor=2]")
        noisy(panel, "a")
        coupling = next(m for p, m in panel.module("a").places.items() if p.key == "embedding")
        x = torch.randn(2, 5, 32)
        assert torch.allclose(coupling.inverse(coupling(x)), x, atol=1e-4)


def test_biases_alone_can_be_tuned() -> None:
    model = tiny_model("bert")
    paths = tuple(name for name, _ in model.named_parameters() if name.endswith("bias") and "encoder" in name)
    before = hidden(model)
    panel = adapters(model)
    panel.add("bitfit", TunedParameters(paths))
    panel.active = "bitfit"
    assert torch.allclose(hidden(model), before, atol=1e-6)
    noisy(panel, "bitfit")
    assert not torch.allclose(hidden(model), before, atol=1e-3)
    panel.active = None
    assert torch.equal(hidden(model), before)


@pytest.mark.parametrize(
    "text",
    [
        "lora[r=0]",
        "lora[attn_matrices=[x]]",
        "lora[use_gating=True, use_dora=True]",
        "prefix_tuning[prefix_length=0]",
        "prefix_tuning[positions=after]",
        "loreft[prefix_positions=0]",
        "prompt_tuning[combine=suffix]",
        "seq_bn[inv_adapter=nice]",
        "seq_bn[inv_adapter=other]",
        "compacter[phm_dim=0]",
        "mtl_lora[weights_sharpness=0]",
        "vera[r=-1]",
        "oft[kind=other]",
        "seq_bn|",
        "lora|nope",
    ],
)
def test_values_that_are_not_allowed_are_named(text: str) -> None:
    with pytest.raises(UsageError):
        parse_config(text)


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_names_itself(preset: str) -> None:
    assert presets()[preset].method == preset or preset in ("prompt_tuning",)


GATED = ["seq_bn", "lora", "ia3", "vera", "prefix_tuning"]


@pytest.mark.parametrize("config", [*EVERY, *(f"{name}[use_gating=True]" for name in GATED)])
def test_every_parameter_is_given_a_value(config: Any) -> None:
    """Memory that nobody fills is full of NaN here."""
    panel = adapters(tiny_model())
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        panel.add("a", config)
        for key, tensor in panel.module("a").state_dict().items():
            assert torch.isfinite(tensor).all(), key
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "config", ["mam", "unipelt", "compacter[reduction_factor=4]|lora", "vera|seq_bn", "prefix_tuning|x"]
)
def test_all_of_a_union_computes_in_its_hosts_dtype(config: str) -> None:
    """What its parts share too."""
    config = config.replace("|x", "|lora")
    model = tiny_model("bert").to(torch.bfloat16)
    panel = adapters(model)
    panel.add("a", config)
    assert {p.dtype for p in panel.module("a").parameters()} == {torch.bfloat16}
    panel.active = "a"
    assert model(input_ids=torch.arange(1, 9)[None]).last_hidden_state.dtype == torch.bfloat16
    panel.add("b", config, dtype=torch.float64)
    assert {p.dtype for p in panel.module("b").parameters()} == {torch.float64}


def test_what_the_parts_of_a_union_name_counts() -> None:
    panel = adapters(tiny_model("bert"))
    for name in "ab":
        panel.add(name, "lora[init_weights_seed=1, dtype=bfloat16]|seq_bn[init_weights_seed=2]")
    first, second = (panel.module(name).state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {key[0]: value.dtype for key, value in first.items()} == {"0": torch.bfloat16, "1": torch.float32}


@pytest.mark.parametrize(
    "config",
    ["miss[r=0]", "loha[r=0]", "lokr[r=0]", "hra[r=0]", "fourierft[n_frequency=0]", "lora[rank_pattern={'x': 0}]"],
)
def test_ranks_that_mean_nothing_are_refused(config: str) -> None:
    with pytest.raises(UsageError, match="whole number from 1 on"):
        adapters(tiny_model("bert")).add("a", config)
